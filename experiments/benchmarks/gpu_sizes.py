"""Sizes of the GPU check's parts: those of a data-centre GPU, and tiny ones that try the same code on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from rlmix.classifier.data import ImageSet, Splits
from rlmix.experiments.benchmarks.timing import BenchmarkTrainConfig

Note = Callable[[str, Any], None]  # keeps a result under a name, at once


@dataclass(frozen=True)
class Case:
    """Network whose speed is measured, with its images.

    Attributes:
        model: name of the network.
        side: side of the images in pixels.
        channels: channels of the images.
        batch_size: images in each update.
        classes: number of classes.
        images: number of training images.
    """

    model: str
    side: int
    channels: int
    batch_size: int
    classes: int
    images: int

    @property
    def name(self) -> str:
        """Name in the report."""
        return f"{self.model}, {self.side} px, batch {self.batch_size}"

    def training(self, device: str, **fields: Any) -> BenchmarkTrainConfig:
        """Return the setting of its training: bf16 where it works, as a user's would be by default."""
        return BenchmarkTrainConfig(model=self.model, batch_size=self.batch_size, device=device, **fields)

    def data(self) -> Splits:
        """Return generated images."""
        return generated(self.side, self.channels, self.images, self.classes)


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts.

    Attributes:
        matrix: side of the matrices whose product shows the attainable rate.
        copied: bytes that are copied to show the memory's rate.
        seconds: of each measurement.
        rounds: number of measurements of each contestant.
        cases: networks whose speed is measured.
        compiled: those of them that are measured compiled too.
        processes: numbers of environment processes.
        lockstep: numbers of trainings in lockstep, of the first of the cases.
        updates: length of an environment's training.
        train_size: its number of images.
    """

    matrix: int
    copied: int
    seconds: float
    rounds: int
    cases: tuple[Case, ...]
    compiled: tuple[Case, ...]
    processes: tuple[int, ...]
    lockstep: tuple[int, ...]
    updates: int
    train_size: int


_SEARCH = Case("search", 28, 1, 100, 10, 5000)
_PREACT = Case("preact_resnet18", 32, 3, 100, 100, 5000)
FULL = Sizes(
    matrix=8192,
    copied=2**32,
    seconds=0.5,
    rounds=3,
    cases=(
        _SEARCH,
        _PREACT,
        Case("preact_resnet18", 32, 3, 1000, 100, 5000),
        Case("resnet50", 224, 3, 128, 1000, 1024),
    ),
    compiled=(_SEARCH, _PREACT),
    processes=(1, 2, 4, 8, 16),
    lockstep=(1, 4, 16, 64, 256),
    updates=250,
    train_size=1000,
)
_TINY = Case("lenet", 8, 1, 8, 3, 40)
TINY = Sizes(
    matrix=64,
    copied=2**16,
    seconds=0.02,
    rounds=2,
    cases=(_TINY, Case("plain_batch_16", 16, 3, 4, 3, 30)),
    compiled=(_TINY,),
    processes=(1, 2),
    lockstep=(1, 3),
    updates=8,
    train_size=30,
)


def generated(side: int, channels: int, count: int, classes: int) -> Splits:
    """Return random images, the same each time; a fifth as many for validation.

    Args:
        side: side in pixels.
        channels: number of channels.
        count: number of training images.
        classes: number of classes.
    """
    generator = torch.Generator().manual_seed(0)

    def part(number: int) -> ImageSet:
        shape = (number, channels, side, side)
        images = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        return ImageSet(images, torch.arange(number) % classes)

    return Splits(
        train=part(count),
        validation=part(max(count // 5, classes)),
        development=part(classes),
        test=part(classes),
        name="generated",
        class_names=tuple(map(str, range(classes))),
        mean=(0.5,) * channels,
        std=(0.25,) * channels,
        flip=True,
        crop_padding=2,
    )
