"""Signs of wrong training labels that need no clean labels: what a network makes of the images it is trained on.

Each is measured on unmixed, unaugmented training images. None is the share of wrong labels itself: images that are hard
to learn look alike, and a network that has learned wrong labels by heart no longer contradicts them.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlmix.classifier.evaluation.measure import subject_of
from rlmix.classifier.training.trainer import Trainer

DECILES = tuple(round(0.1 * decile, 1) for decile in range(1, 10))
NEIGHBOURS = 10
IMAGES = 500  # by default; the standard error of a share is then at most 0.022


@dataclass(frozen=True)
class LabelStats:
    """Signs of wrong labels.

    Attributes:
        accuracy: share of images, in [0, 1], whose largest logit is at their label.
        loss_deciles: the nine deciles of the cross-entropy against the labels, in nats.
        contradicted: share of images that the network confidently puts into another class than their label.
        hump_share: share of images in the upper of two humps of the losses; in [0, 1].
        hump_gap: distance of the two humps, in standard deviations.
        neighbours_differ: share of images whose label is not the most frequent one among their neighbours.
        images: number of images.
    """

    accuracy: float
    loss_deciles: tuple[float, ...]
    contradicted: float
    hump_share: float
    hump_gap: float
    neighbours_differ: float
    images: int


def check_labels(trainer: Trainer, *, limit: int = IMAGES) -> LabelStats:
    """Measure the signs of wrong labels of a Trainer's training images, with its network as it is now.

    Args:
        trainer: Trainer at any point of its training, which is not changed.
        limit: most images, evenly spaced through the training set.
    """
    train = trainer.data.train
    places = np.unique(np.linspace(0, len(train) - 1, min(limit, len(train))).round().astype(np.int64))
    subject = replace(subject_of(trainer, "train"), part=train.take(places), count=len(places))
    seen = subject.predictions
    return label_stats(seen.logits, seen.embeddings, seen.labels)


def label_stats(logits: Tensor, embeddings: Tensor, labels: Tensor) -> LabelStats:
    """Return the signs of wrong labels of N images.

    Args:
        logits: `[N, K]`.
        embeddings: `[N, D]`.
        labels: `[N]`, as they are, right or wrong.
    """
    logits, labels = logits.float(), labels.long()
    losses = nn.functional.cross_entropy(logits, labels, reduction="none")
    # A diverged network's losses are not finite; they stand for the largest.
    losses = torch.nan_to_num(losses, nan=1e3, posinf=1e3).clamp(max=1e3)
    share, gap = two_humps((losses / math.log(logits.shape[1])).clamp(max=4).cpu().double().numpy())
    return LabelStats(
        accuracy=float((logits.argmax(dim=1) == labels).float().mean()),
        loss_deciles=tuple(losses.quantile(torch.tensor(DECILES, device=losses.device)).tolist()),
        contradicted=contradicted_share(logits.softmax(dim=1), labels),
        hump_share=share,
        hump_gap=gap,
        neighbours_differ=differing_share(embeddings.float(), labels, logits.shape[1]),
        images=len(labels),
    )


def contradicted_share(probabilities: Tensor, labels: Tensor) -> float:
    """Return the share of labels that confident learning holds for wrong (Northcutt et al. 2021, arXiv 1911.00068).

    An image counts as confidently of class j if its probability of j is at least the mean of that probability over
    the images labelled j (their eq. 2); of several such classes, the most probable one. Each label's share of
    contradicted images among its counted ones is weighted by its number of images (their eq. 3).

    Args:
        probabilities: `[N, K]`, rows summing to 1.
        labels: `[N]`.

    Returns:
        A number in [0, 1]; 0 where no image is counted.
    """
    member = nn.functional.one_hot(labels, probabilities.shape[1]).to(probabilities)
    counts = member.sum(dim=0)
    thresholds = (probabilities * member).sum(dim=0) / counts.clamp(min=1)
    confident = (probabilities >= thresholds) & (counts > 0)
    choice = probabilities.masked_fill(~confident, -1).argmax(dim=1)
    counted = confident.any(dim=1).to(probabilities)
    counted_of, differing_of = (member.T @ value for value in (counted, counted * (choice != labels).to(probabilities)))
    return float((counts * differing_of / counted_of.clamp(min=1)).sum() / counts.sum())


def two_humps(losses: NDArray[np.float64]) -> tuple[float, float]:
    """Fit a mixture of two Gaussians to losses, as DivideMix does (Li et al. 2020, arXiv 2002.07394).

    Args:
        losses: `[N]`.

    Returns:
        Weight of the component with the larger mean, and the distance of the two means in root mean square standard
        deviations. (0, 0) where all losses are equal.
    """
    # Imported here because it takes a second.
    from sklearn.mixture import GaussianMixture

    if len(losses) < 2 or np.ptp(losses) < 1e-9:
        return 0.0, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not converged: the estimate is as good as needed
        mixture = GaussianMixture(2, max_iter=30, reg_covar=1e-4, random_state=0).fit(losses[:, None])
    means, variances = mixture.means_[:, 0], mixture.covariances_[:, 0, 0]
    upper = int(np.argmax(means))
    return float(mixture.weights_[upper]), float(np.ptp(means) / math.sqrt(variances.mean()))


def differing_share(embeddings: Tensor, labels: Tensor, num_classes: int) -> float:
    """Return the share of images whose label is not the most frequent one of their 10 nearest neighbours'.

    Args:
        embeddings: `[N, D]`, compared by the cosine of their angle.
        labels: `[N]`.
        num_classes: K.
    """
    count = min(NEIGHBOURS, len(labels) - 1)
    if count < 1:
        return 0.0
    unit = nn.functional.normalize(torch.nan_to_num(embeddings), dim=1)
    nearness = (unit @ unit.T).fill_diagonal_(-2)
    near = labels[nearness.topk(count, dim=1).indices]
    votes = nn.functional.one_hot(near, num_classes).sum(dim=1)
    return float((votes.argmax(dim=1) != labels).float().mean())
