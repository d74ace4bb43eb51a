"""BroadTasks: tasks over everything about a training that a user may have otherwise.

An agent that is to serve strangers has seen variety: breadth of tasks before depth in each. Data sets, their classes,
colours and sizes, number of images, length, batch, network, optimiser, schedule, augmentation, wrong labels and the
balance of classes are drawn for each task, and no training costs more than a limit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlmix.classifier.data.stratify import tail_shares
from rlmix.classifier.errors import InputError
from rlmix.classifier.models import build_model
from rlmix.classifier.models.small import NORMS, WIDTHS
from rlmix.envs.image_library import ImageLibrary
from rlmix.envs.tasks import Task, log_uniform, whole

SIDES = (12, 14, 16, 20, 24, 28, 32)  # pixels; all of them can be cut into R-Mix's patches
BATCHES = (32, 48, 64, 96, 128, 192, 256)
WIDTH_SHARES = (0.2, 0.3, 0.25, 0.25)  # of each width of a kind of networks, narrow ones first
TRIES = 40  # draws of everything else before what was drawn first is drawn again
FEWEST, MOST = 100, 6000  # images
PER_CLASS = 4  # fewest images per class, on average
WRONG, LONG_TAILED, GREY, PLAIN_VIEWS = 0.5, 0.3, 0.25, 0.2  # shares of the tasks
NOISE_KINDS = ("symmetric", "pair", "confusions")
MOST_WRONG = {"symmetric": 0.6, "pair": 0.4, "confusions": 0.45}  # labels above would name the wrong class more often
# Highest learning rates, by optimiser and by whether the network normalises.
RATES = {
    ("sgd", True): (0.02, 0.4),
    ("sgd", False): (0.01, 0.1),
    ("adamw", True): (5e-4, 1e-2),
    ("adamw", False): (3e-4, 3e-3),
}
DECAYS = {"sgd": (0.0, 1e-4, 5e-4, 2e-3), "adamw": (0.0, 0.01, 0.05, 0.2)}
SCHEDULES: tuple[dict[str, Any], ...] = (
    {"lr_schedule": "onecycle"},
    {"lr_schedule": "cosine", "warmup": 0.0},
    {"lr_schedule": "cosine", "warmup": 0.1},
    {"lr_schedule": "multistep"},
    {"lr_schedule": "piecewise", "lr_points": ((0.0, 1.0), (1.0, 0.0))},
    {"lr_schedule": "piecewise", "lr_points": ((0.0, 0.1), (0.2, 1.0), (1.0, 0.0))},
)
# What people mostly take: networks that normalise, a high learning rate that falls smoothly, crops and flips.
USUAL_NETWORKS = (
    *("search",) * 3,
    "search_wide",
    "residual_batch_16",
    "residual_batch_32",
    "residual_group_16",
    "plain_batch_32",
)
USUAL_BATCHES, USUAL_SGD, USUAL_VIEWS = (64, 100, 128), 0.85, 0.85  # the latter two are shares of the tasks
USUAL_RATES = {"sgd": (0.05, 0.3), "adamw": (1e-3, 5e-3)}
USUAL_SCHEDULES = (*SCHEDULES[:1] * 2, *SCHEDULES[1:3])
# Cost on one slow core, where an update of the search network takes 20 ms on 100 images of 14 pixels. Nine networks
# at two sizes are each within a third of it. An update has a cost of its own, and so has every pixel trained on.
SECONDS_PER_GFLOP, SECONDS_PER_PIXEL, SECONDS_PER_UPDATE, SECONDS_PER_TRAINING = 0.018, 2e-7, 0.011, 0.6
EVALUATED = 10_000  # images that a training is measured on, all of its segments together
CHEAPEST = 2.0  # seconds; the limit of a task's cost is drawn log-uniformly from here
SHARE_OF_UPDATES = 0.8  # of the limit, at most, that updates may take by themselves: some is left for the network
SHARE_OF_USUAL_UPDATES = 0.4  # likewise; there are no networks that take less


@dataclass(frozen=True)
class Source:
    """A data set that tasks are drawn from.

    Attributes:
        name: name of the data set in the trainer's `ImageLibrary`.
        counts: number of training images of each class that are there.
        colour: whether its images have colours.
    """

    name: str
    counts: tuple[int, ...]
    colour: bool

    @classmethod
    def of(cls, library: ImageLibrary, name: str) -> Source:
        """Return a library's data set as a source.

        Raises:
            DataError: the data set is not available.
        """
        splits = library.splits(name, SIDES[0])
        counts = torch.bincount(splits.train.labels, minlength=splits.num_classes).tolist()
        return cls(name, tuple(counts), library.colour(name))


@dataclass(frozen=True)
class BroadTasks:
    """Distribution of tasks over data sets and settings.

    Attributes:
        sources: data sets, equally likely.
        seed: RNG seed of the tasks.
        updates: lowest and highest number of updates.
        seconds: highest estimated cost of a training on one slow core, at least 1.
        usual: whether networks, batches, optimisers, schedules and views are those that people mostly take; all else
            is as varied.

    Raises:
        ValueError: there is no source, or the range of updates is empty.
    """

    sources: tuple[Source, ...]
    seed: int = 0
    updates: tuple[int, int] = (100, 3000)
    seconds: float = 15.0
    usual: bool = False

    def __post_init__(self) -> None:
        low, high = self.updates
        if not self.sources or not 1 <= low <= high:
            raise InputError(
                f"tasks need a data set and 1 <= low <= high updates, got {len(self.sources)}, {low, high}"
            )
        for source in self.sources:
            if sum(source.counts) < FEWEST:
                raise InputError(
                    f"tasks need data sets of at least {FEWEST} images, got {sum(source.counts)} of {source.name}"
                )
        if not self.seconds >= max(1.0, self._least_seconds):
            raise InputError(f"a training of {low} updates costs more than seconds allows, got {self.seconds}")

    @property
    def _least_seconds(self) -> float:
        """Lowest limit of cost that the shortest training keeps to."""
        return self.updates[0] * SECONDS_PER_UPDATE / self._share_of_updates + SECONDS_PER_TRAINING

    @property
    def _share_of_updates(self) -> float:
        return SHARE_OF_USUAL_UPDATES if self.usual else SHARE_OF_UPDATES

    def task(self, number: int) -> Task:
        """Return task `number` of the distribution, always the same one.

        Its limit of cost and its length are drawn first, and either the size of its images or its network; then
        everything else until it is within the limit. So there are large images and large networks in short trainings,
        and long trainings of small networks on small images.
        """
        random = np.random.default_rng([self.seed, number])
        limit = log_uniform(random, min(max(CHEAPEST, self._least_seconds), self.seconds), self.seconds)
        longest = max(
            int(self._share_of_updates * (limit - SECONDS_PER_TRAINING) / SECONDS_PER_UPDATE), self.updates[0]
        )
        updates = whole(random, self.updates[0], min(longest, self.updates[1]))
        while True:
            side, model = _one_of(random, ((_one_of(random, SIDES), None), (None, self._network(random))))
            for _ in range(TRIES):
                task = self._draw(random, updates, side or _one_of(random, SIDES), model or self._network(random))
                if task.train_size >= FEWEST and estimated_seconds(task) <= limit:
                    return task

    def _network(self, random: np.random.Generator) -> str:
        """Draw the name of a network."""
        return _one_of(random, USUAL_NETWORKS) if self.usual else _network(random)

    def _draw(self, random: np.random.Generator, updates: int, side: int, model: str) -> Task:
        """Draw everything else about a task."""
        source = self.sources[random.integers(len(self.sources))]
        classes = random.permutation(len(source.counts))[: whole(random, 2, len(source.counts))]
        imbalance = _figures(log_uniform(random, 3, 50)) if random.random() < LONG_TAILED else 1.0
        train_size = _train_size(random, [source.counts[label] for label in classes], imbalance)
        wrong, noise = random.random() < WRONG, NOISE_KINDS[random.integers(len(NOISE_KINDS))]
        share = round(float(random.uniform(0.05, MOST_WRONG[noise])), 3)
        return Task(
            train_size=train_size,
            updates=updates,
            label_noise=share if wrong else 0.0,
            data_seed=int(random.integers(2**31)),
            noise=noise if wrong else "symmetric",
            dataset=source.name,
            classes=tuple(classes.tolist()),
            image_size=side,
            grey=bool(random.random() < GREY) and source.colour,
            imbalance=imbalance,
            flip=bool(random.random() < 0.5),
            options=_usual_options(random, side, model) if self.usual else _options(random, side, model),
        )


def estimated_seconds(task: Task) -> float:
    """Return the estimated cost of a task's training with all its evaluations, on one slow core."""
    options = dict(task.options)
    assert task.image_size is not None
    images = 3 * task.updates * options["batch_size"] + EVALUATED  # backward takes twice the operations of forward
    pixels = task.image_size**2
    operations = images * network_flops(options["model"]) * pixels / SIDES[-1] ** 2
    itself = task.updates * (SECONDS_PER_UPDATE + options["batch_size"] * pixels * SECONDS_PER_PIXEL)
    return operations / 1e9 * SECONDS_PER_GFLOP + itself + SECONDS_PER_TRAINING


@functools.cache
def network_flops(model: str) -> int:
    """Return a network's number of floating-point operations for one colour image of 32 x 32 pixels, forward."""
    # Imported here because it takes a second.
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:  # shapes without numbers
        build_model(model, num_classes=10, in_channels=3).eval()(torch.zeros(1, 3, SIDES[-1], SIDES[-1]))
    return int(counter.get_total_flops())


def _network(random: np.random.Generator) -> str:
    """Draw the name of a network; small ones are more likely, since more trainings of them are cheap enough."""
    kind, norm = _one_of(random, tuple(WIDTHS)), _one_of(random, tuple(NORMS))
    width = int(random.choice(WIDTHS[kind], p=WIDTH_SHARES))
    return f"{kind}_{norm}_{width}"


def _options(random: np.random.Generator, side: int, model: str) -> dict[str, Any]:
    """Draw the fields of the `TrainConfig`, for images of `side` pixels and a network."""
    optimizer = _one_of(random, ("sgd", "adamw"))
    rate = log_uniform(random, *RATES[optimizer, "_none_" not in model])
    crops = {"crop_padding": max(1, side // _one_of(random, (16, 8)))}
    return {
        "model": model,
        "batch_size": _one_of(random, BATCHES),
        "optimizer": optimizer,
        "lr": _figures(rate),
        "weight_decay": _one_of(random, DECAYS[optimizer]),
        **_one_of(random, SCHEDULES),
        **({"augmentation": False} if random.random() < PLAIN_VIEWS else crops),
    }


def _usual_options(random: np.random.Generator, side: int, model: str) -> dict[str, Any]:
    """Draw the fields of the `TrainConfig` that people mostly take."""
    optimizer = "sgd" if random.random() < USUAL_SGD else "adamw"
    return {
        "model": model,
        "batch_size": _one_of(random, USUAL_BATCHES),
        "optimizer": optimizer,
        "lr": _figures(log_uniform(random, *USUAL_RATES[optimizer])),
        "weight_decay": 5e-4 if optimizer == "sgd" else 0.05,
        **_one_of(random, USUAL_SCHEDULES),
        **({} if random.random() < USUAL_VIEWS else {"augmentation": False}),
        "crop_padding": max(1, side // 16),
    }


def _train_size(random: np.random.Generator, counts: Sequence[int], imbalance: float) -> int:
    """Draw the number of training images, as many as there are of classes with these counts."""
    most = sum(counts)
    if imbalance > 1:
        # One image less of each class than there is: shares are rounded to whole images.
        most = int(((np.array(counts) - 1) / tail_shares(len(counts), imbalance)).min())
    low = max(FEWEST, PER_CLASS * len(counts))
    return whole(random, low, min(MOST, most)) if low < most else most


def _one_of(random: np.random.Generator, choices: Sequence[Any]) -> Any:
    return choices[int(random.integers(len(choices)))]


def _figures(value: float) -> float:
    """Return a number with three significant figures."""
    return float(f"{value:.3g}")
