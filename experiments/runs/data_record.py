"""Record of the images that a run began with: a data set that has changed since is not trained on or measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from rlmix.classifier.data import Splits
from rlmix.classifier.files import write_atomic
from rlmix.experiments.runs.command import Call
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import DatasetConfig, flatten


class Configuration(Protocol):
    """Configuration of a command that reads a data set."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def data(self) -> DatasetConfig:
        """Options of the data set."""


Resumed = TypeVar("Resumed", bound=Configuration)

DATA_FILE = "data.json"  # of a run folder; those of older versions have none


def at_its_place(config: Resumed, call: Call) -> Resumed:
    """Return a stored configuration with its data set where the command line says, which may have moved since."""
    dataset, root = call.value("--dataset"), call.value("--data-root")
    data = replace(config.data, dataset=dataset or config.data.dataset, data_root=root or config.data.data_root)
    return replace(config, data=data)


def keep_to_data(run: RunFolder, data: Splits, config: Resumed) -> None:
    """Record the images of a new run; see to it that a resumed one has the same, and note where they are now.

    Args:
        run: run folder with its `config.json`.
        data: images of the run.
        config: configuration that they were loaded by.

    Raises:
        RunError: they are others, or are at another place and were not recorded.
    """
    stored = run.read_json("config.json")
    before = flatten(stored["config"])
    moved = any(before.get(name) != getattr(config.data, name) for name in ("dataset", "data_root"))
    if (run.path / DATA_FILE).exists():
        require_same_data(run.path, data)
    elif moved:
        raise RunError(
            f"{run.path}: expected {DATA_FILE}, to know the data set at another place, got none, as of older versions; "
            "leave out --dataset and --data-root"
        )
    else:
        record_data(run.path, data)
    if moved:
        run.write_json("config.json", {**stored, "config": asdict(config)})


def record_data(folder: Path, data: Splits) -> None:
    """Record the images of what a folder holds, unless that has been done."""
    if not (folder / DATA_FILE).exists():
        write_atomic(folder / DATA_FILE, (json.dumps(_record(data), indent=2) + "\n").encode())


def require_same_data(run: Path, data: Splits) -> None:
    """Refuse images with other classes, numbers or labels than those of a run, if it recorded them.

    A class that was added or renamed would give all those behind it another number, and an image that was added would
    move others between the training and the held-out images.

    Raises:
        RunError: they are others, or the record cannot be read.
    """
    path = run / DATA_FILE
    try:
        with reject_incompatible(path):
            before = json.loads(path.read_bytes())
            classes, images, labels = before["class_names"], before["images"], before["labels_sha256"]
    except FileNotFoundError:
        return
    now = _record(data)
    if classes != now["class_names"]:
        new, gone = set(now["class_names"]) - set(classes), set(classes) - set(now["class_names"])
        changed = f"the new classes [{', '.join(sorted(new)):.80}] and without [{', '.join(sorted(gone)):.80}]"
    elif images != now["images"]:
        changed = f"{_count(now['images'])} images, not {_count(images)}"
    elif labels != now["labels_sha256"]:
        changed = "other labels"
    else:
        return
    raise RunError(
        f"{run}: expected the data set as it was when this run began, got {data.name} with {changed}; restore it, "
        "or begin a new one"
    )


def _count(images: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {part}" for part, count in images.items())


def _record(data: Splits) -> dict[str, Any]:
    parts = {"train": data.train, "validation": data.validation, "development": data.development, "test": data.test}
    labels = hashlib.sha256()
    for part in parts.values():
        labels.update(part.labels.cpu().numpy().astype(np.dtype("<i8")).tobytes())
    return {
        "class_names": list(data.class_names),
        "images": {name: len(part) for name, part in parts.items()},
        "labels_sha256": labels.hexdigest(),
    }
