"""Tasks: the training of an episode, its images, length and wrong labels, drawn by a seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rlmix.classifier.data import NOISES, Splits
from rlmix.classifier.errors import InputError
from rlmix.classifier.training.config import TrainConfig


@dataclass(frozen=True)
class Task:
    """Training of an episode: what is drawn of it; everything else is the environment's.

    Attributes:
        train_size: number of training images.
        updates: length of the training, in updates.
        label_noise: share of wrong training labels, in [0, 1).
        data_seed: RNG seed for the choice of images and wrong labels.
        noise: kind of wrong labels, `symmetric` or `pair` as in `Splits.draw`, or `confusions`: those of a network
            that has learned the data set a little (`ImageLibrary.confusions`).
        lr_scale: highest learning rate over that of the environment's training; a low one learns slowly.
        dataset: name of the data set in the trainer's `ImageLibrary`; None for the environment's own.
        classes: classes of the data set that are used, numbered anew in this order; None for all.
        image_size: side of the images in pixels; None for the environment's.
        grey: whether colour images are made grey.
        imbalance: number of images of the first class over that of the last, as in `Splits.draw`.
        flip: whether images are mirrored where they are augmented; None as the data set allows.
        options: fields of `TrainConfig` that differ from the environment's training, as pairs of name and value; a
            mapping is taken too.
    """

    train_size: int
    updates: int
    label_noise: float
    data_seed: int
    noise: str = "symmetric"
    lr_scale: float = 1.0
    dataset: str | None = None
    classes: tuple[int, ...] | None = None
    image_size: int | None = None
    grey: bool = False
    imbalance: float = 1.0
    flip: bool | None = None
    options: tuple[tuple[str, Any], ...] | Mapping[str, Any] = ()

    def __post_init__(self) -> None:
        if self.classes is not None:
            object.__setattr__(self, "classes", tuple(self.classes))  # a list, as JSON has it, becomes a tuple
        pairs = self.options.items() if isinstance(self.options, Mapping) else self.options
        object.__setattr__(self, "options", tuple(sorted((name, _frozen(value)) for name, value in pairs)))

    def to_json(self) -> dict[str, Any]:
        """Return the arguments that give this task again; those after `lr_scale` only where they are not the default.

        Tasks of one data set are written as they were before there were others.
        """
        later = [field for field in fields(self)[6:] if getattr(self, field.name) != field.default]
        values = {field.name: getattr(self, field.name) for field in (*fields(self)[:6], *later)}
        if "options" in values:
            values["options"] = dict(self.options)
        return values

    def training(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration of this task's training.

        Args:
            config: configuration of the environment's training.
        """
        config = replace(config, **dict(self.options))
        return replace(config, updates=self.updates, lr=config.lr * self.lr_scale)

    def draw(self, splits: Splits, *, confusions: NDArray[np.float64] | None = None) -> Splits:
        """Return a data set's splits with the classes, training images and labels of this task.

        Args:
            splits: splits of the data set, in this task's size and colours.
            confusions: the data set's confusions `[K, K]`, for tasks whose `noise` are these.

        Raises:
            DataError: the data set has too few images.
            ValueError: the confusions are missing.
        """
        if self.noise == "confusions" and confusions is None:
            raise InputError("wrong labels by confusions need those of a data set: give the trainer an ImageLibrary")
        if self.classes is not None:
            splits = splits.only(self.classes)
            confusions = None if confusions is None else confusions[np.ix_(self.classes, self.classes)]
        if self.flip is not None:
            splits = replace(splits, flip=self.flip)
        return splits.draw(
            self.train_size,
            data_seed=self.data_seed,
            label_noise=self.label_noise,
            noise="symmetric" if self.noise == "confusions" else self.noise,
            confusions=confusions if self.noise == "confusions" else None,
            imbalance=self.imbalance,
        )


class Tasks(Protocol):
    """Distribution of tasks, as an environment draws from it."""

    @property
    def updates(self) -> tuple[int, int]:
        """Lowest and highest number of updates."""

    def task(self, number: int) -> Task:
        """Return task `number`, always the same one."""


@dataclass(frozen=True)
class TaskDistribution:
    """Distribution of tasks; by default, where `low == high`, one fixed task.

    Attributes:
        train_size: lowest and highest number of training images, drawn log-uniformly.
        updates: lowest and highest number of updates, drawn log-uniformly.
        label_noise: lowest and highest share of wrong labels, drawn uniformly.
        pool: number of distinct tasks; None for a new task in every episode.
        seed: RNG seed of the tasks; the same seed gives the same pool.
        clean: probability in [0, 1] that a task has no wrong labels instead.
        noise: kind of wrong labels, `symmetric` or `pair`, as in `Splits.draw`.
        lr_scale: lowest and highest `Task.lr_scale`, drawn log-uniformly.

    Raises:
        ValueError: a range is empty, or an argument is out of range.
    """

    train_size: tuple[int, int] = (1000, 1000)
    updates: tuple[int, int] = (1000, 1000)
    label_noise: tuple[float, float] = (0.0, 0.0)
    pool: int | None = 1
    seed: int = 0
    clean: float = 0.0
    noise: str = "symmetric"
    lr_scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        limits = {
            "train_size": (1, math.inf),
            "updates": (1, math.inf),
            "label_noise": (0, 0.999),
            "lr_scale": (1e-6, 1e6),
        }
        for name, (least, most) in limits.items():
            low, high = getattr(self, name)
            object.__setattr__(self, name, (low, high))  # a list, as configuration files have it, becomes a tuple
            if not least <= low <= high <= most:
                raise InputError(f"{name} must be (low, high) with {least} <= low <= high <= {most}, got {low, high}")
        if self.noise not in NOISES:
            raise InputError(f"noise must be one of {', '.join(NOISES)}, got {self.noise!r}")
        if not 0 <= self.clean <= 1:
            raise InputError(f"clean must be a probability in [0, 1], got {self.clean}")
        if self.pool is not None and self.pool < 1:
            raise InputError(f"pool must be at least 1 task, or None for a new one in every episode, got {self.pool}")

    def task(self, number: int) -> Task:
        """Return task `number` of the distribution, always the same one; with a pool, numbers wrap around."""
        if self.pool is not None:
            number %= self.pool
        random = np.random.default_rng([self.seed, number])
        task = Task(
            train_size=whole(random, *self.train_size),
            updates=whole(random, *self.updates),
            label_noise=round(float(random.uniform(*self.label_noise)), 3),
            data_seed=int(random.integers(2**31)),
            noise=self.noise,
        )
        if random.random() < self.clean:
            task = replace(task, label_noise=0.0)
        return replace(task, lr_scale=float(f"{log_uniform(random, *self.lr_scale):.4g}"))


def log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    """Draw a number log-uniformly from [low, high]."""
    return math.exp(random.uniform(math.log(low), math.log(high)))


def _frozen(value: Any) -> Any:
    """Return a value with tuples in the place of lists, as options of a `TrainConfig` are."""
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list | tuple) else value


def whole(random: np.random.Generator, low: int, high: int) -> int:
    """Draw a whole number log-uniformly from [low, high]."""
    return min(max(round(log_uniform(random, low, high)), low), high)
