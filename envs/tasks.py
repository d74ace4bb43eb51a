"""Tasks: the training of an episode, its images, length and wrong labels, drawn by a seed."""

import math
from dataclasses import dataclass, replace

import numpy as np

from rlmix.classifier.data import NOISES, Splits
from rlmix.classifier.errors import InputError
from rlmix.classifier.training.config import TrainConfig


@dataclass(frozen=True)
class Task:
    """Training of an episode.

    Attributes:
        train_size: number of training images.
        updates: length of the training, in updates.
        label_noise: share of wrong training labels, in [0, 1).
        data_seed: RNG seed for the choice of images and wrong labels.
        noise: kind of wrong labels, `symmetric` or `pair`, as in `Splits.draw`.
        lr_scale: highest learning rate over that of the environment's training; a low one learns slowly.
    """

    train_size: int
    updates: int
    label_noise: float
    data_seed: int
    noise: str = "symmetric"
    lr_scale: float = 1.0

    def training(self, config: TrainConfig) -> TrainConfig:
        """Return the configuration of this task's training.

        Args:
            config: configuration of the environment's training.
        """
        return replace(config, updates=self.updates, lr=config.lr * self.lr_scale)

    def draw(self, splits: Splits) -> Splits:
        """Return a data set's splits with the training images and labels of this task.

        Raises:
            DataError: the data set has too few images.
        """
        return splits.draw(self.train_size, data_seed=self.data_seed, label_noise=self.label_noise, noise=self.noise)


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
            train_size=_whole(random, *self.train_size),
            updates=_whole(random, *self.updates),
            label_noise=round(float(random.uniform(*self.label_noise)), 3),
            data_seed=int(random.integers(2**31)),
            noise=self.noise,
        )
        if random.random() < self.clean:
            task = replace(task, label_noise=0.0)
        return replace(task, lr_scale=float(f"{_log_uniform(random, *self.lr_scale):.4g}"))


def _log_uniform(random: np.random.Generator, low: float, high: float) -> float:
    return math.exp(random.uniform(math.log(low), math.log(high)))


def _whole(random: np.random.Generator, low: int, high: int) -> int:
    return min(max(round(_log_uniform(random, low, high)), low), high)
