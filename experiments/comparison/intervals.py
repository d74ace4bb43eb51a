"""Means with intervals: their computation and their formatting."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit  # scipy.stats takes seconds to import

SAME = 1e-6  # relative difference of accuracies that float32's rounding explains


def format_interval(mean: float, half_width: float | None, *, signed: bool = False, digits: int = 2) -> str:
    """Format `12.34 ± 0.56`; the mean alone where the half-width is None or infinite.

    Args:
        mean: the mean, in the unit that is shown.
        half_width: half-width of its interval, in the same unit.
        signed: show the sign of a positive mean too.
        digits: decimals.
    """
    text = f"{mean:{'+' if signed else '-'}.{digits}f}"
    return text if half_width is None or math.isinf(half_width) else f"{text} ± {half_width:.{digits}f}"


def format_shares(mean: float, half_width: float | None, *, signed: bool = False) -> str:
    """Format a share and its interval in %: `12.34 ± 0.56`; as `format_interval` otherwise."""
    return format_interval(100 * mean, None if half_width is None else 100 * half_width, signed=signed)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the mean of a sample and the half-width of its Student t interval, infinite for a single value.

    Args:
        values: the sample, at least one value.
        confidence: confidence level in (0, 1).
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * error


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the mean of `ours - theirs`, paired by seed, and the half-width of its 95 % interval.

    Raises:
        ValueError: the lengths differ.
    """
    return mean_interval([a - b for a, b in zip(ours, theirs, strict=True)])


def interval_by_unit(values: Sequence[float], data_sets: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return mean and half-width of the 95 % interval with tasks as units, and with data sets: over their means.

    Args:
        values: one for each task.
        data_sets: each task's data set.
    """
    by_set: dict[str, list[float]] = {}
    for value, name in zip(values, data_sets, strict=True):
        by_set.setdefault(name, []).append(value)
    return {
        "tasks": mean_interval(values),
        "data_sets": mean_interval([float(np.mean(by_set[name])) for name in sorted(by_set)]),
    }


MIN_RISE = 4  # values, one for each quarter


class Rise(NamedTuple):
    """Change of a series of values from its first quarter to its last.

    Attributes:
        first: mean of the first quarter.
        last: mean of the last quarter.
        standard_error: of their difference, infinite for fewer than 8 values.
        half_width: half-width of the 95 % interval of their difference (Welch).
    """

    first: float
    last: float
    standard_error: float
    half_width: float


def rise(values: Sequence[float]) -> Rise:
    """Return the change of a series from its first quarter to its last.

    Args:
        values: at least `MIN_RISE`, in the order of time.
    """
    quarter = len(values) // 4
    first, last = values[:quarter], values[-quarter:]
    error, half_width = math.inf, math.inf
    if quarter > 1:
        spreads = np.var(first, ddof=1), np.var(last, ddof=1)
        error = math.sqrt(sum(spreads) / quarter)
        half_width = 0.0  # where both quarters are constant
    if 0 < error < math.inf:
        freedom = (quarter - 1) * sum(spreads) ** 2 / sum(spread**2 for spread in spreads)
        half_width = float(stdtrit(freedom, 0.975)) * error
    return Rise(float(np.mean(first)), float(np.mean(last)), error, half_width)


def in_words(change: Rise) -> str:
    """Put the rise of a search's returns into words."""
    difference = change.last - change.first
    shown = round(change.last, 2) - round(change.first, 2)  # of the numbers beside it, as a reader would subtract them
    conclusions = {
        "better": "the agent learned",
        "within noise": "within noise, no learning can be seen",
        "worse": "the agent got worse",
    }
    return (
        f"The mean return of the first quarter of the trainings is {change.first:.2f}, of the last {change.last:.2f}, "
        f"a change of {format_interval(shown, change.half_width, signed=True)}: "
        f"{conclusions[verdict(difference, change.half_width)]}."
    )


def crossed_interval(values: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Return the mean over seeds and images, and the half-width of its 95 % interval if both are samples.

    The variance is that of Owen's pigeonhole bootstrap (https://arxiv.org/abs/0712.1111), which resamples rows and
    columns: the variance of the rows' means over the number of rows, plus that of the columns' means over the number
    of columns. The quantile is Student's with S - 1 degrees of freedom, since seeds are fewer than images.

    Args:
        values: `[S, N]`, a value per seed and image, at least two of each; a difference is taken seed by seed.
    """
    seeds, images = values.shape
    variance = values.mean(axis=1).var(ddof=1) / seeds + values.mean(axis=0).var(ddof=1) / images
    return float(values.mean()), float(stdtrit(seeds - 1, 0.975) * math.sqrt(variance))


def pigeonhole_bootstrap(
    strata: Sequence[NDArray[np.floating[Any]]],
    images: Sequence[str],
    *,
    replicates: int = 2000,
) -> tuple[float, float, float]:
    """Return the mean over the tasks and images of several groups of tasks, and its 95 % bootstrap interval.

    Both tasks and images are samples, so a replicate draws both with replacement: tasks within their group, and images
    once for all groups that share them (Owen's pigeonhole bootstrap, https://arxiv.org/abs/0712.1111). Every task has
    the same weight. The interval's ends are the 2.5 % and 97.5 % quantiles of the replicates' means. Few tasks make
    them too narrow, so their distance from the mean is multiplied by sqrt(T / (T - G)) and by the ratio of Student's t
    quantile (T - G degrees of freedom) to the normal one, for T tasks in G groups.

    Args:
        strata: `[T, N]` for each group, a value per task and image; at least two tasks each.
        images: name of each group's images; groups of the same name share their N images.
        replicates: number of bootstrap replicates; the draws are always the same.

    Returns:
        The mean, and the interval's lower and upper end.
    """
    random = np.random.default_rng(0)
    tasks = sum(len(values) for values in strata)
    drawn = np.zeros(replicates)
    for values, name in zip(strata, images, strict=True):
        count, size = values.shape
        task_weights = random.multinomial(count, np.full(count, 1 / count), replicates) / count
        drawn += count / tasks * np.einsum("rt,rt->r", task_weights, _image_weights(name, size, replicates) @ values.T)
    mean = sum(values.mean() * len(values) for values in strata) / tasks
    free, end = tasks - len(strata), 0.975
    wider = math.sqrt(tasks / free) * stdtrit(free, end) / ndtri(end)
    low, high = mean + wider * (np.quantile(drawn, [1 - end, end]) - mean)
    return float(mean), float(low), float(high)


@functools.cache
def _image_weights(name: str, size: int, replicates: int) -> NDArray[np.float32]:
    """Return each image's share of a replicate's draws, `[replicates, size]`: alike for images of the same name."""
    random = np.random.default_rng([size, *name.encode()])
    return (random.multinomial(size, np.full(size, 1 / size), replicates) / size).astype(np.float32)


def paired_p_value(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the two-sided p-value of the paired t test; of the sign test where all differences are the same.

    The t test would be sure of differences that do not vary, which two trainings on few images may well have.

    Args:
        ours: at least two values.
        theirs: as many values, for the same seeds.
    """
    differences = np.subtract(ours, theirs)
    if np.ptp(differences) <= SAME * max(np.abs(ours).max(), np.abs(theirs).max()):
        return 2 * 0.5 ** len(differences) if differences.any() else 1.0
    from scipy.stats import ttest_rel

    return float(ttest_rel(ours, theirs).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for the number of comparisons (Holm 1979); their order is kept."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected.tolist()


def verdict(difference: float, width: float | None) -> str:
    """Put a difference and the half-width of its interval into words."""
    if width is None:
        return "one seed: nothing can be said"
    if abs(difference) <= width:
        return "within noise"
    return "better" if difference > 0 else "worse"
