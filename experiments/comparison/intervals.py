"""Means over seeds with intervals."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t, ttest_rel


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of a sample and the half-width of its Student t interval; infinite for a single value.

    Args:
        values: at least one.
        confidence: of the interval, in (0, 1).
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, float(t.ppf((1 + confidence) / 2, len(values) - 1)) * error


def paired_difference(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Mean of `ours - theirs`, pair by pair (the same seed in both), and its interval's half-width.

    Raises:
        ValueError: the lengths differ.
    """
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)], confidence)


def crossed_interval(values: NDArray[np.floating[Any]], confidence: float = 0.95) -> tuple[float, float]:
    """Mean over seeds and images, and the half-width of its interval where both are samples.

    The variance is that of Owen's pigeonhole bootstrap (https://arxiv.org/abs/0712.1111), which draws rows and columns
    anew: that of the rows' means over the number of rows, and that of the columns' means over the number of columns.
    The quantile is Student's with one degree of freedom less than there are seeds, the scarcer of the two.

    Args:
        values: `[S, N]`, of S seeds on the same N images, two each at least; of a difference, each seed's own.
        confidence: of the interval, in (0, 1).
    """
    seeds, images = values.shape
    variance = values.mean(axis=1).var(ddof=1) / seeds + values.mean(axis=0).var(ddof=1) / images
    return float(values.mean()), float(t.ppf((1 + confidence) / 2, seeds - 1) * math.sqrt(variance))


def pigeonhole_bootstrap(
    strata: Sequence[NDArray[np.floating[Any]]],
    images: Sequence[str],
    *,
    confidence: float = 0.95,
    replicates: int = 2000,
) -> tuple[float, float, float]:
    """Mean over tasks of several strata and images, and the ends of its bootstrap interval.

    Each replicate draws tasks anew within their stratum, and images anew (https://arxiv.org/abs/0712.1111): the same
    ones in all strata of the same images. Every task weighs alike. The ends are percentiles, moved outwards by what
    few tasks make them too narrow: the root of T over T less the strata, and Student's quantile over the normal one.

    Args:
        strata: `[T, N]` each, of T tasks on N images; two tasks each at least.
        images: what each stratum's images are; those of one name are the same N images.
        confidence: of the interval, in (0, 1).
        replicates: how often is drawn; always the same draws.
    """
    random = np.random.default_rng(0)
    tasks = sum(len(values) for values in strata)
    drawn = np.zeros(replicates)
    for values, name in zip(strata, images, strict=True):
        count, size = values.shape
        often = random.multinomial(count, np.full(count, 1 / count), replicates) / count
        drawn += count / tasks * np.einsum("rt,rt->r", often, _often(name, size, replicates) @ values.T)
    mean = sum(values.mean() * len(values) for values in strata) / tasks
    free, end = tasks - len(strata), (1 + confidence) / 2
    wider = math.sqrt(tasks / free) * t.ppf(end, free) / norm.ppf(end)
    low, high = mean + wider * (np.quantile(drawn, [1 - end, end]) - mean)
    return float(mean), float(low), float(high)


@functools.cache
def _often(name: str, size: int, replicates: int) -> NDArray[np.float32]:
    """How often each of `size` images is drawn in each replicate, over `size`: the same for the same images."""
    random = np.random.default_rng([size, *name.encode()])
    return (random.multinomial(size, np.full(size, 1 / size), replicates) / size).astype(np.float32)


def paired_p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p-value of the paired t test; 1 where all pairs are equal.

    Args:
        ours: at least two values.
        theirs: as many, of the same seeds.
    """
    if all(a == b for a, b in zip(ours, theirs, strict=True)):
        return 1.0
    return float(ttest_rel(ours, theirs).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for how many comparisons were made (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected.tolist()


def verdict(difference: float, width: float | None) -> str:
    """What a difference with its interval's half-width means, in words."""
    if width is None:
        return "one seed: nothing can be said"
    if abs(difference) <= width:
        return "within noise"
    return "better" if difference > 0 else "worse"
