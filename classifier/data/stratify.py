"""Draws that keep every class's share, from a random stream that is the same on every machine and version."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]  # one-dimensional: labels, counts, or positions in an image set


def random_stream(seed: int) -> np.random.RandomState:
    """Return a random stream for draws that must never change.

    NumPy guarantees that `RandomState`'s streams do not change (NEP 19); it does not for newer generators, nor PyTorch
    for any. A split is part of a published result, and must not depend on a library's version or a device.
    """
    return np.random.RandomState(np.random.MT19937(seed))


def apportion(size: int, counts: IntArray, *, at_least: int = 0) -> IntArray:
    """Distribute `size` images over the classes in proportion to their counts (largest remainder).

    Args:
        size: number of images in all, from 0 to the sum of `counts`.
        counts: `[K]`, number of images of each class.
        at_least: lowest number from each class that has as many; at most `size / K`.

    Returns:
        `[K]`, summing to `size`; each within 1 of its exact share, unless `at_least` takes from the larger classes.
    """
    share, remainder = np.divmod(size * counts, counts.sum())
    lifted = np.maximum(share, np.minimum(at_least, counts))
    remainder[lifted > share] = -1
    missing = size - int(lifted.sum())
    if missing > 0:
        lifted[np.argsort(-remainder, kind="stable")[:missing]] += 1
    for _ in range(-missing):
        lifted[np.argmax(lifted)] -= 1
    return lifted


def tail_shares(num_classes: int, imbalance: float) -> NDArray[np.float64]:
    """Return each class's share `[K]` of a long-tailed set, falling exponentially (Cui et al. 2019, arXiv 1901.05555).

    Args:
        num_classes: K.
        imbalance: share of the first class over that of the last, at least 1.
    """
    shares = imbalance ** -np.linspace(0, 1, num_classes)
    return shares / shares.sum()


def positions_by_class(labels: IntArray, num_classes: int) -> tuple[IntArray, ...]:
    """Return the positions of each class's images, ascending: K arrays for `labels` `[N]`."""
    return tuple(np.flatnonzero(labels == label) for label in range(num_classes))


def interleave(groups: Sequence[IntArray]) -> IntArray:
    """Return all groups' members in an order in which every prefix holds nearly each group's share.

    The j-th of a group's n members comes at (j + 1/2) / n of the way, so groups of one size simply take turns.
    """
    when = np.concatenate([(np.arange(len(group)) + 0.5) / max(len(group), 1) for group in groups])
    return np.concatenate(groups)[np.argsort(when, kind="stable")]


def set_apart(labels: IntArray, num_classes: int, *, share: float, seed: int) -> tuple[IntArray, IntArray]:
    """Draw a share of each class; return the positions that remain (ascending) and those set apart.

    A class of one image keeps it.
    """
    random = random_stream(seed)
    by_class = [random.permutation(positions) for positions in positions_by_class(labels, num_classes)]
    counts = np.array([len(positions) for positions in by_class])
    ends = np.minimum(apportion(round(share * len(labels)), counts), np.maximum(counts - 1, 0))
    apart = interleave([group[:end] for group, end in zip(by_class, ends, strict=True)])
    return np.sort(np.concatenate([group[end:] for group, end in zip(by_class, ends, strict=True)])), apart
