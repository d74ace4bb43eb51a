"""Recorded trainings and their tasks, as the surrogate learns from them; parted into train, validation and test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlmix.classifier.errors import InputError
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.transfer_features import UNMEASURED_FEATURES

SPLITS = {"train": "0123456", "validation": "7", "test": "89"}  # parting of the tasks, by their number's last digit


def split_of(number: int) -> str:
    """Return the split, one of `SPLITS`, that a task belongs to by its number."""
    return next(split for split, digits in SPLITS.items() if str(number)[-1] in digits)


@dataclass(frozen=True)
class View:
    """What a surrogate sees of a training, by the names of features.

    Attributes:
        recorded: features of a recording's rows, in their order.
        known: features of a task, which never change.
        predicted: features that the ensemble predicts, and the updates of a segment that they are measured on.
        accuracy: that of `predicted` which tells the validation accuracy: itself, or its share of the way from chance.
        context: numbers of a task that the ensemble is told, an agent is not.
        interacting: features of `known` and numbers of `context` by which the effect of an action is multiplied too.
    """

    recorded: tuple[str, ...]
    known: tuple[str, ...]
    predicted: Mapping[str, str]
    accuracy: str
    context: tuple[str, ...]
    interacting: tuple[str, ...] = ()

    @property
    def accuracy_column(self) -> int:
        """Place of `accuracy` among `predicted`."""
        return list(self.predicted).index(self.accuracy)

    def columns(self, names: Sequence[str]) -> list[int]:
        """Return where features stand among those that are recorded."""
        return [self.recorded.index(name) for name in names]

    def chance(self, known: Tensor) -> Tensor:
        """Return the accuracy from which `accuracy` counts, `[T]`: that of chance, or 0.

        Args:
            known: features of `known`, `[T, F]`.
        """
        if self.accuracy == "validation_accuracy":
            return torch.zeros(len(known))
        return 1 / (10 ** (3 * known[:, self.known.index("log_classes")])).round()


def _predicted(accuracy: str) -> dict[str, str]:
    return {
        "clean_excess_loss": "clean",
        f"clean_{accuracy}": "clean",
        "mixed_excess_loss": "mixed",
        f"mixed_{accuracy}": "mixed",
        "validation_loss": "all",
        f"validation_{accuracy}": "all",
        "confidence": "all",
        "calibration_error": "all",
        "saliency_entropy": "clean",
        "log_gradient_norm": "clean",
    }


FIRST_VIEW = View(  # the game of MixPolicy-v0 on the family's tasks
    DEFAULT_FEATURES,
    ("log_train_size", "log_updates", "log_passes", "log_classes"),
    _predicted("accuracy"),
    "validation_accuracy",
    ("label_noise", "log_lr_scale", "bare"),
)
BROAD_VIEW = View(  # tasks of several data sets and networks
    UNMEASURED_FEATURES,
    ("log_updates", "log_passes", "log_classes", "log_images_per_class", "log_batch_size"),
    _predicted("way"),
    "validation_way",
    (
        "label_noise",
        "pair_noise",
        "log_parameters",
        "image_side",
        "colour",
        "normalised",
        "log_imbalance",
        "adamw",
        "log_lr",
        # Of a plain training of the task, which says how hard it is, and how soon it is learned by heart.
        *(f"plain_{of}_way_{segment}" for of in ("validation", "clean") for segment in range(1, 6)),
    ),
    ("label_noise", "log_passes"),  # what decides, more than all else, whether mixing helps
)
VIEWS = {"first": FIRST_VIEW, "broad": BROAD_VIEW}  # by the names in the models' files


@dataclass(frozen=True)
class Recording:
    """A recorded training.

    Attributes:
        task: number of its task.
        observations: recorded features of a view before each segment and at the end, `[S + 1, F]`.
        actions: action of each of its S segments.
    """

    task: int
    observations: NDArray[np.float32]
    actions: Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class RecordedTask:
    """A task with what was recorded of it.

    Attributes:
        number: its number, which says its split.
        context: numbers of its view's `context`.
        observations: of any of its recordings, for what is the same in all of them.
        reference: validation accuracy of the reference policy at the end of each segment.
        scale: its standard deviation at the end of each segment, above 0.
        description: what the task is; any JSON object.
    """

    number: int
    context: tuple[float, ...]
    observations: NDArray[np.float32]
    reference: Sequence[float]
    scale: Sequence[float]
    description: Mapping[str, Any]


@dataclass(frozen=True)
class TaskTable:
    """Recorded tasks as tensors; T tasks of S segments.

    Attributes:
        numbers: number of each task, `[T]`, int64.
        known: features of the view's `known`, `[T, K]`.
        context: numbers of its `context`, `[T, C]`.
        progress: at the start and at the end of each segment, `[T, S + 1]`.
        relative_lr: likewise.
        start: features of its `predicted` before the first segment, `[T, P]`.
        reference: validation accuracy of the reference policy at the end of each segment, `[T, S]`.
        scale: its standard deviation, `[T, S]`.
    """

    numbers: Tensor
    known: Tensor
    context: Tensor
    progress: Tensor
    relative_lr: Tensor
    start: Tensor
    reference: Tensor
    scale: Tensor

    @classmethod
    def from_tasks(cls, tasks: Sequence[RecordedTask], view: View) -> TaskTable:
        """Return the table of some tasks, recorded as a view has them."""
        seen = torch.tensor(np.stack([task.observations for task in tasks]), dtype=torch.float32)
        return cls(
            torch.tensor([task.number for task in tasks]),
            seen[:, 0, view.columns(view.known)],
            torch.tensor([task.context for task in tasks], dtype=torch.float32),
            seen[:, :, view.recorded.index("progress")].contiguous(),
            seen[:, :, view.recorded.index("relative_lr")].contiguous(),
            seen[:, 0, view.columns(tuple(view.predicted))],
            torch.tensor([list(task.reference) for task in tasks], dtype=torch.float32),
            torch.tensor([list(task.scale) for task in tasks], dtype=torch.float32),
        )

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], view: View) -> TaskTable:
        """Build the table of a view from the tensors that `state` returned.

        Raises:
            ValueError: a tensor is missing, does not fit the others, or holds values out of range.
        """
        table = cls(**{field.name: state[field.name] for field in fields(cls)})
        count, ends = table.progress.shape
        shapes = {
            "numbers": (count,),
            "known": (count, len(view.known)),
            "context": (count, len(view.context)),
            "relative_lr": (count, ends),
            "start": (count, len(view.predicted)),
            "reference": (count, ends - 1),
            "scale": (count, ends - 1),
        }
        for name, shape in shapes.items():
            tensor = getattr(table, name)
            if tuple(tensor.shape) != shape or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name}: expected finite numbers of shape {shape}, got {tuple(tensor.shape)}")
        if count == 0 or not bool((table.scale > 0).all()):
            raise ValueError("expected at least one task, and scales above 0")
        return table

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __len__(self) -> int:
        return len(self.numbers)

    def rows(self, split: str) -> Tensor:
        """Return the rows of the tasks of a split.

        Raises:
            InputError: there is no such split, or none of its tasks was recorded.
        """
        if split not in SPLITS:
            raise InputError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
        rows = [row for row, number in enumerate(self.numbers.tolist()) if split_of(number) == split]
        if not rows:
            raise InputError(f"no task of split {split} was recorded")
        return torch.tensor(rows)

    def row(self, number: int) -> int:
        """Return the row of a task.

        Raises:
            InputError: the task was not recorded.
        """
        found = (self.numbers == number).nonzero()
        if not len(found):
            raise InputError(f"task must be the number of a recorded task, got {number}")
        return int(found[0, 0])
