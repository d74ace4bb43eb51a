"""Accuracy, and calibration: agreement between a network's confidence and its accuracy."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.evaluation.libraries import library
from rlmix.classifier.evaluation.measure import Chart, Column, Measure, Result, Subject, percent

BINS = 15  # of confidence, as in Guo et al. 2017 and the R-Mix paper's tables
METRICS = "torchmetrics.functional.classification"


@dataclass(frozen=True)
class Accuracy:
    """Top-1 and top-5 accuracy.

    Attributes:
        top1: share of images whose largest logit is that of their class, in [0, 1].
        top5: share of images whose class is among the five largest logits; None with five classes or fewer.
        images: number of images.
    """

    top1: float
    top5: float | None
    images: int


@dataclass(frozen=True)
class Calibration:
    """Agreement between confidence, the largest probability, and accuracy.

    Attributes:
        error: expected calibration error in [0, 1]: the mean over images of |accuracy - confidence| in their bin.
        confidence: mean confidence, in [0, 1].
        bins: reliability diagram, equal bins of confidence from 0 to 1: (images, mean confidence, accuracy); the last
            two are None in a bin without an image.
    """

    error: float
    confidence: float
    bins: tuple[tuple[int, float | None, float | None], ...]


def accuracy(logits: Tensor, labels: Tensor) -> Accuracy:
    """Return top-1 and top-5 accuracy.

    Args:
        logits: `[N, K]`.
        labels: `[N]`.

    Raises:
        ImportError: torchmetrics is not installed.
    """
    metrics = library(METRICS, "accuracy")
    classes = logits.shape[1]
    top1, top5 = (
        float(metrics.multiclass_accuracy(logits, labels, classes, average="micro", top_k=k)) if k < classes else None
        for k in (1, 5)
    )
    assert top1 is not None, "a classifier has two classes or more"
    return Accuracy(top1, top5, len(labels))


def calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Return expected calibration error and reliability diagram (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        logits: `[N, K]`.
        labels: `[N]`.

    Raises:
        ImportError: torchmetrics is not installed.
    """
    metrics = library(METRICS, "calibration")
    confidence, answer = logits.float().softmax(dim=1).max(dim=1)
    hits = (answer == labels).long()
    # torchmetrics counts a confidence of exactly 1, which float32 often rounds to, as a bin of its own beyond the last.
    confidence = confidence.clamp(max=1 - torch.finfo(torch.float32).eps)
    error = metrics.binary_calibration_error(confidence, hits, n_bins=BINS)
    edges = torch.linspace(0, 1, BINS + 1, device=confidence.device)
    place = torch.bucketize(confidence, edges, right=True) - 1
    count = torch.bincount(place, minlength=BINS)
    sums = [torch.bincount(place, weights=values.double(), minlength=BINS) for values in (confidence, hits)]
    rows = zip(count.tolist(), *((total / count).tolist() for total in sums), strict=True)
    bins = tuple((images, mean, share) if images else (0, None, None) for images, mean, share in rows)
    return Calibration(float(error), float(confidence.mean()), bins)


def measure_accuracy(subject: Subject) -> dict[str, Any]:
    """Measure top-1 and top-5 accuracy and calibration."""
    predictions = subject.predictions
    reliability = calibration(predictions.logits, predictions.labels)
    return {**asdict(accuracy(predictions.logits, predictions.labels)), "calibration": asdict(reliability)}


def _rows(result: Result) -> list[tuple[str, str]]:
    top5 = [] if result["top5"] is None else [("top-5 accuracy", percent(result["top5"]))]
    return [
        ("top-1 accuracy", percent(result["top1"])),
        *top5,
        ("mean confidence", percent(result["calibration"]["confidence"])),
        ("expected calibration error", percent(result["calibration"]["error"])),
    ]


def _reliability_diagram(result: Result) -> list[Chart]:
    bins = result["calibration"]["bins"]
    lines = {
        "this network": [(100 * confidence, 100 * share) for count, confidence, share in bins if count],
        "perfectly calibrated": [(0.0, 0.0), (100.0, 100.0)],
    }
    return [Chart("Reliability diagram", lines, "confidence, %", "accuracy, %")]


ACCURACY = Measure(
    summary="expected calibration error",
    run=measure_accuracy,
    rows=_rows,
    columns={"calibration error": Column(lambda result: result["calibration"]["error"], lower_is_better=True)},
    charts=_reliability_diagram,
    modules=(METRICS,),
)
