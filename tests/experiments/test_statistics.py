"""Means with intervals are SciPy's."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.intervals import mean_interval, paired_difference


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
@pytest.mark.parametrize("count", [2, 3, 10, 50])
def test_interval_is_students(count: int, confidence: float) -> None:
    values = np.random.default_rng(count).normal(0.8, 0.05, count).tolist()
    mean, width = mean_interval(values, confidence)
    low, high = stats.t.interval(confidence, count - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (mean - width, mean + width) == pytest.approx((low, high))


def test_paired_difference_is_the_paired_t_test() -> None:
    random = np.random.default_rng(0)
    ours = random.normal(0.8, 0.05, 12)
    theirs = ours - random.normal(0.01, 0.01, 12)  # pairs go together: much surer than the two samples apart
    difference, width = paired_difference(ours.tolist(), theirs.tolist())
    interval = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (difference - width, difference + width) == pytest.approx((interval.low, interval.high))
    assert width < stats.ttest_ind(ours, theirs).confidence_interval(0.95).high - difference


def test_95_percent_is_the_default() -> None:
    assert mean_interval([1.0, 2.0, 4.0]) == mean_interval([1.0, 2.0, 4.0], 0.95)
    assert paired_difference([1.0, 2.0], [0.0, 3.0]) == paired_difference([1.0, 2.0], [0.0, 3.0], 0.95)


def test_one_value_says_nothing_of_its_error() -> None:
    assert mean_interval([0.7]) == (0.7, math.inf)
    assert paired_difference([0.7], [0.5]) == (pytest.approx(0.2), math.inf)


def test_equal_values_have_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.0)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError):
        paired_difference([1.0, 2.0], [1.0])
