"""Statistics of a training and of an evaluation."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from rlmix.classifier.mixing.methods import METHODS

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class UpdateStats:
    """Means over the updates of one kind (clean or mixed) in a segment of training.

    Attributes:
        loss: cross-entropy against the targets, in nats.
        target_entropy: entropy of the targets, in nats: the lower bound of the loss.
        accuracy: share of images, in [0, 1], whose largest logit is at the largest target.
    """

    loss: float
    target_entropy: float
    accuracy: float

    @classmethod
    def from_sums(cls, sums: Sequence[float], updates: int) -> UpdateStats | None:
        """Return the means from sums over `updates` updates, in the order of the attributes; None without an update."""
        return cls(*(value / updates for value in sums)) if updates else None


@dataclass(frozen=True)
class TrainStats:
    """Statistics of a segment of training.

    Attributes:
        updates: number of updates.
        images: number of images trained on, updates times batch size.
        seconds: wall-clock time; the only value that differs between two runs of one seed.
        methods: number of updates of each method.
        clean: means over clean updates; None without one.
        mixed: means over the other updates; None without one.
        saliency_entropy: mean entropy of the last clean batches' patch saliency, over its highest value, in [0, 1].
        gradient_norm: norm of the parameters' gradient over that of the parameters, at the last clean updates.
        diverged: whether a loss, or a weight after the last update, was not finite; a gradient that was not finite
            shows in the weights.
        probes: number of clean updates whose saliency and gradient were measured.
    """

    updates: int
    images: int
    seconds: float
    methods: dict[str, int]
    clean: UpdateStats | None
    mixed: UpdateStats | None
    saliency_entropy: float | None
    gradient_norm: float | None
    diverged: bool
    probes: int = 0


def merge_stats(parts: Sequence[TrainStats]) -> TrainStats:
    """Return the statistics of consecutive segments as one."""
    counts: Counter[str] = Counter()
    probed = [part for part in parts if part.probes]
    for part in parts:
        counts.update(part.methods)
    return TrainStats(
        updates=sum(part.updates for part in parts),
        images=sum(part.images for part in parts),
        seconds=sum(part.seconds for part in parts),
        methods={method: counts[method] for method in METHODS if counts[method]},
        clean=_weighted([(part.clean, part.methods.get("clean", 0)) for part in parts]),
        mixed=_weighted([(part.mixed, part.updates - part.methods.get("clean", 0)) for part in parts]),
        saliency_entropy=_probed([(part.saliency_entropy, part.probes) for part in probed]),
        gradient_norm=_probed([(part.gradient_norm, part.probes) for part in probed]),
        diverged=any(part.diverged for part in parts),
        probes=sum(part.probes for part in probed),
    )


def _probed(parts: Sequence[tuple[float | None, int]]) -> float | None:
    """Return the mean of measurements, weighted by their numbers; None without one, or if one was not finite."""
    values = [value * number for value, number in parts if value is not None]
    return sum(values) / sum(number for _, number in parts) if parts and len(values) == len(parts) else None


def _weighted(parts: Sequence[tuple[UpdateStats | None, int]]) -> UpdateStats | None:
    there = [(stats, weight) for stats, weight in parts if stats is not None]
    total = sum(weight for _, weight in there)
    if not total:
        return None
    return UpdateStats(
        *(sum(getattr(stats, entry.name) * weight for stats, weight in there) / total for entry in fields(UpdateStats))
    )


@dataclass(frozen=True)
class EvalStats:
    """Performance of the network on a split.

    Attributes:
        accuracy: top-1 accuracy, in [0, 1].
        loss: mean cross-entropy, in nats.
        confidence: mean largest probability, in [0, 1].
        calibration_error: expected calibration error over 15 equal bins of confidence, in [0, 1].
        images: number of images.
    """

    accuracy: float
    loss: float
    confidence: float
    calibration_error: float
    images: int

    @classmethod
    def at_chance(cls, num_classes: int) -> EvalStats:
        """Return the values of guessing, used for a network before its training and after one that diverged."""
        chance = 1 / num_classes
        return cls(chance, math.log(num_classes), chance, 0.0, 0)

    @classmethod
    def from_sums(cls, sums: Tensor, bins: Tensor, images: int) -> EvalStats:
        """Return the values from `evaluation_sums` over `images` images; copies them to the host once."""
        measured = torch.cat((sums / images, (bins[0] - bins[1]).abs().sum()[None]))
        accuracy, loss, confidence, gaps = measured.tolist()
        return cls(accuracy, loss, confidence, gaps / images, images)


def evaluation_sums(logits: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of (hits, loss, confidence) `[3]`, of (hits, confidence) per bin `[2, 15]`, and the answers `[B]`.

    Args:
        logits: `[B, K]` float32.
        labels: `[B]` int64.
        weight: `[B]` float32, 1 for an image that counts and 0 for padding.
    """
    loss = nn.functional.cross_entropy(logits, labels, reduction="none")
    confidence, answer = logits.softmax(dim=1).max(dim=1)
    hits = (answer == labels).float() * weight
    confidence = confidence * weight
    # Clamped from below too: a diverged network's NaN may become an index out of range.
    place = (confidence * CALIBRATION_BINS).long().clamp(0, CALIBRATION_BINS - 1)
    member = nn.functional.one_hot(place, CALIBRATION_BINS).float()
    values = torch.stack((hits, confidence))
    return torch.stack((hits.sum(), (loss * weight).sum(), confidence.sum())), values @ member, answer
