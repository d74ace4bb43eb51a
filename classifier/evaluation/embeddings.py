"""Distances within and between classes in the space of embeddings, which LaMix's paper shows in two dimensions."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.evaluation.measure import Column, Measure, NotMeasurable, Result, Subject


@dataclass(frozen=True)
class Distances:
    """Euclidean distances between embeddings.

    Attributes:
        within: mean over images of the distance to the mean embedding of their class.
        between: mean over pairs of classes of the distance between their mean embeddings.
        ratio: within / between; unlike the two, it does not change with the embeddings' scale. None where all class
            means coincide.
    """

    within: float
    between: float
    ratio: float | None


def class_distances(embeddings: Tensor, labels: Tensor) -> Distances:
    """Return the mean distances within and between classes.

    Args:
        embeddings: `[N, D]`.
        labels: `[N]`, with at least two different classes.

    Raises:
        ValueError: there are fewer classes.
    """
    classes, member = labels.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"expected images of at least 2 classes, got {len(classes)}; measure on more images")
    embeddings = embeddings.double()
    sums = torch.zeros(len(classes), embeddings.shape[1], dtype=torch.float64, device=embeddings.device)
    means = sums.index_add(0, member, embeddings) / member.bincount()[:, None]
    within = float((embeddings - means[member]).norm(dim=1).mean())
    between = float(torch.nn.functional.pdist(means).mean())
    return Distances(within, between, within / between if between else None)


def measure_embeddings(subject: Subject) -> dict[str, Any]:
    """Measure distances within and between classes.

    Raises:
        NotMeasurable: the images are of fewer than two classes.
    """
    predictions = subject.predictions
    try:
        return asdict(class_distances(predictions.embeddings, predictions.labels))
    except ValueError as error:
        raise NotMeasurable(str(error)) from error


def _rows(result: Result) -> list[tuple[str, str]]:
    ratio = "" if result["ratio"] is None else f", ratio {result['ratio']:.3f}"
    return [("distance within / between classes", f"{result['within']:.3f} / {result['between']:.3f}{ratio}")]


EMBEDDINGS = Measure(
    summary="distance of embeddings within classes over that between them",
    run=measure_embeddings,
    rows=_rows,
    columns={"within / between": Column(lambda result: result["ratio"], percent=False, lower_is_better=True)},
)
