"""Experience of an agent: how large, long and fine the trainings were that it learned from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlmix.agent.files import place_of
from rlmix.classifier.data import Splits
from rlmix.classifier.files import DamagedFileError, write_atomic
from rlmix.classifier.mixing.policy import require_fields
from rlmix.classifier.training.config import TrainConfig

EXPERIENCE_FILE = "experience.json"  # beside an agent's other files
FAR = 2.0  # times the highest, or less than the lowest over it
FORMAT, VERSION = "rl-mix experience", 1


@dataclass(frozen=True)
class Scale:
    """Size of a training, in numbers that any training has.

    Attributes:
        training_images: number of training images.
        updates: number of updates.
        batch_size: images per update.
        classes: number of classes.
        side: shorter side of the images in pixels.
    """

    training_images: int
    updates: int
    batch_size: int
    classes: int
    side: int

    @classmethod
    def of(cls, data: Splits, train: TrainConfig) -> Scale:
        """Return the size of a training of these images."""
        side = min(data.train.image_shape[1:])
        return cls(len(data.train), train.updates, train.batch_size, data.num_classes, side)

    def quantities(self) -> dict[str, float]:
        """Return what is compared, by its unit."""
        return {
            "training images": self.training_images,
            "updates": self.updates,
            "passes over the images": self.updates * self.batch_size / self.training_images,
            "images per update": self.batch_size,
            "classes": self.classes,
            "pixels per side": self.side,
        }


@dataclass(frozen=True)
class Experience:
    """Lowest and highest of each quantity of `Scale` in the trainings that an agent learned from.

    Attributes:
        ranges: lowest and highest by unit.
        command: command that found them.
    """

    ranges: Mapping[str, tuple[float, float]]
    command: str

    def beyond(self, scale: Scale) -> str | None:
        """Return in what a training is far from all that were learned from, in words; None if in nothing."""
        far = [
            f"{_in_words(value)} {unit} ({_in_words(low)} to {_in_words(high)})"
            for unit, value in scale.quantities().items()
            for low, high in [self.ranges[unit]]
            if not low / FAR <= value <= high * FAR
        ]
        return ", ".join(far) or None

    def remark(self, scale: Scale) -> str | None:
        """Return a note on a training that is far from all that were learned from; None if it is not."""
        far = self.beyond(scale)
        return far and f"far from all trainings that the choices were learned from, they are less certain: {far}"

    def save(self, folder: Path) -> None:
        """Write `experience.json` into `folder`."""
        ranges = {unit: list(ends) for unit, ends in self.ranges.items()}
        value = {"format": FORMAT, "version": VERSION, "command": self.command, "ranges": ranges}
        write_atomic(folder / EXPERIENCE_FILE, (json.dumps(value, indent=1) + "\n").encode())

    @classmethod
    def load(cls, place: str | Path) -> Experience | None:
        """Return the experience that lies beside an agent; None where there is none.

        Args:
            place: name of an agent that comes with the program, folder of an agent, or a file in it.

        Raises:
            DamagedFileError: the file is damaged.
        """
        folder = place_of(place)
        file = (folder if folder.is_dir() else folder.parent) / EXPERIENCE_FILE
        if not file.is_file():
            return None
        try:
            value = json.loads(file.read_bytes())
            require_fields("experience", value, ["format", "version", "command", "ranges"])
            if (value["format"], value["version"]) != (FORMAT, VERSION):
                raise ValueError(f"not {FORMAT!r} of version {VERSION}")
            ranges = {unit: (float(low), float(high)) for unit, (low, high) in value["ranges"].items()}
            if ranges.keys() != Scale(1, 1, 1, 1, 1).quantities().keys():
                raise ValueError(f"ranges must be those of {', '.join(Scale(1, 1, 1, 1, 1).quantities())}")
            if not all(0 < low <= high < math.inf for low, high in ranges.values()):
                raise ValueError("every range must be two rising numbers above 0")
            return cls(ranges, str(value["command"]))
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise DamagedFileError(f"{file}: cannot be used ({error!s:.200}); remove it, or restore it") from None


def _in_words(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
