"""Measures of a trained network: how they are taken, and how tables, pages and charts show them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlmix.classifier.data import Images, evaluation_chunks
from rlmix.classifier.errors import InputError
from rlmix.classifier.evaluation.network import PixelNetwork, Predictions, predict, trained_network

if TYPE_CHECKING:
    from rlmix.classifier.training.trainer import Trainer

Result = Mapping[str, Any]  # of a measure, as JSON holds it


class NotMeasurable(InputError):
    """A measure is not available for this network or these images; the message says why."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and the images that it is measured on.

    Attributes:
        network: classifier that takes pixels.
        part: images of a split; the first `count` are used.
        count: number of images.
        class_names: names of the K classes.
        device: device of the network.
        seed: RNG seed for attacks' starts, noise, and places of occlusions and objects.
        batch_size: number of images at a time.
        boxes: optional folder of images with boxes in the layout of CUB-200-2011; by default items on larger canvases.
        readers: number of processes that read images from files; 0 reads in this one.
    """

    network: PixelNetwork
    part: Images
    count: int
    class_names: tuple[str, ...]
    device: torch.device
    seed: int = 0
    batch_size: int = 500
    boxes: str | None = None
    readers: int = 0

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return images `[B, C, H, W]`, uint8, and their labels `[B]`, on the device."""
        return evaluation_chunks(
            self.part, count=self.count, batch_size=self.batch_size, device=self.device, workers=self.readers
        )

    @functools.cached_property
    def predictions(self) -> Predictions:
        """Logits and embeddings of the images."""
        return predict(self.network, self.chunks())


def subject_of(trainer: Trainer, split: str, *, count: int | None = None, seed: int = 0) -> Subject:
    """Return a Trainer's network as it is now, with the images of a split.

    Args:
        trainer: Trainer at any point of its training.
        split: name of the split.
        count: number of images from the split's start; defaults to all.
        seed: RNG seed of the measures.
    """
    data = trainer.data
    part = getattr(data, split)
    network = trained_network(
        trainer.network_state(),
        trainer.config.model,
        num_classes=data.num_classes,
        image_shape=part.image_shape,
        mean=data.mean,
        std=data.std,
        embedding=trainer.config.embedding,
    )
    network.to(trainer.device).to(memory_format=torch.channels_last)
    return Subject(network, part, min(count or len(part), len(part)), data.class_names, trainer.device, seed=seed)


@dataclass(frozen=True)
class Column:
    """One number per network, for tables that compare networks.

    Attributes:
        value: picks the number from a result; None where it is not available.
        percent: the number is a share in [0, 1] and shown in %.
        lower_is_better: a small number is good.
    """

    value: Callable[[Result], float | None]
    percent: bool = True
    lower_is_better: bool = False


@dataclass(frozen=True)
class Chart:
    """Data of a line chart.

    Attributes:
        title: title of the chart.
        lines: points (x, y) of each line, by its name.
        x_label: name and unit of the horizontal axis.
        y_label: name and unit of the vertical axis.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    x_label: str
    y_label: str


def no_charts(_: Result) -> list[Chart]:
    """Return nothing: most measures are numbers alone."""
    return []


@dataclass(frozen=True)
class Measure:
    """A measure of a trained network.

    Attributes:
        summary: one phrase that explains the columns, for captions.
        run: takes the measure and returns a result that JSON can hold. It raises `NotMeasurable` where the measure is
            not available, and ImportError where its library is missing.
        rows: names and formatted numbers of a result, for the table of one network; shares in %.
        columns: numbers for tables of several networks, by heading.
        charts: charts of a result.
        modules: modules of the extra `rl-mix[evaluation]` that it needs.
    """

    summary: str
    run: Callable[[Subject], dict[str, Any]]
    rows: Callable[[Result], list[tuple[str, str]]]
    columns: Mapping[str, Column] = field(default_factory=dict)
    charts: Callable[[Result], list[Chart]] = no_charts
    modules: tuple[str, ...] = ()


def percent(*shares: float) -> str:
    """Format shares in [0, 1] as percentages with two decimals."""
    return "  ".join(f"{100 * share:.2f}" for share in shares)
