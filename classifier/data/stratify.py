"""Draws that keep every class's share, from a random stream that is the same on every machine and version."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]  # one-dimensional: labels, counts, or positions in an image set


def random_stream(seed: int) -> np.random.RandomState:
    """A random stream for draws that must never change.

    NumPy freezes `RandomState`'s streams for good (NEP 19) and promises this of no newer generator; PyTorch promises
    it of none. A split is part of a published result, so it may not move with a library's version or a device.
    """
    return np.random.RandomState(np.random.MT19937(seed))


def apportion(size: int, counts: IntArray, *, at_least: int = 0) -> IntArray:
    """How many of `size` images each class gives, in proportion to what it has (largest remainder).

    Args:
        size: how many in all, 0 to the sum of `counts`.
        counts: `[K]`, how many images each class has.
        at_least: how many each class gives in any case, as far as it has them; at most `size / K`.

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


def positions_by_class(labels: IntArray, num_classes: int) -> tuple[IntArray, ...]:
    """The positions of each class's images, ascending: K arrays for `labels` `[N]`."""
    return tuple(np.flatnonzero(labels == label) for label in range(num_classes))


def interleave(groups: Sequence[IntArray]) -> IntArray:
    """One order of all groups' members in which every prefix holds nearly each group's share.

    The j-th of a group's n members comes at (j + 1/2) / n of the way, so groups of one size simply take turns.
    """
    when = np.concatenate([(np.arange(len(group)) + 0.5) / max(len(group), 1) for group in groups])
    return np.concatenate(groups)[np.argsort(when, kind="stable")]


def set_apart(labels: IntArray, num_classes: int, *, share: float, seed: int) -> tuple[IntArray, IntArray]:
    """Positions that remain (ascending) and positions set apart: a fixed share of each class, by a seed.

    A class of one image keeps it.
    """
    random = random_stream(seed)
    by_class = [random.permutation(positions) for positions in positions_by_class(labels, num_classes)]
    counts = np.array([len(positions) for positions in by_class])
    ends = np.minimum(apportion(round(share * len(labels)), counts), np.maximum(counts - 1, 0))
    apart = interleave([group[:end] for group, end in zip(by_class, ends, strict=True)])
    return np.sort(np.concatenate([group[end:] for group, end in zip(by_class, ends, strict=True)])), apart
