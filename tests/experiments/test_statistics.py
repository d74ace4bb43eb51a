"""Means with intervals are SciPy's."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from rlmix.experiments.comparison.intervals import (
    crossed_interval,
    format_interval,
    in_words,
    mean_interval,
    paired_difference,
    paired_p_value,
    pigeonhole_bootstrap,
    rise,
)


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


def test_one_value_says_nothing_of_its_error() -> None:
    assert mean_interval([0.7]) == (0.7, math.inf)
    assert paired_difference([0.7], [0.5]) == (pytest.approx(0.2), math.inf)


def test_equal_values_have_no_width() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == (0.5, 0.0)


def test_intervals_are_written_in_one_way() -> None:
    assert format_interval(12.346, 0.5) == "12.35 ± 0.50"
    assert format_interval(1.0, 0.25, signed=True, digits=3) == "+1.000 ± 0.250"
    assert format_interval(-1.0, 0.25, signed=True) == "-1.00 ± 0.25"
    assert format_interval(0.7, None) == format_interval(*mean_interval([0.7])) == "0.70"


@pytest.mark.parametrize("count", [8, 43, 256])
def test_a_rise_is_welchs_test_of_the_last_quarter_against_the_first(count: int) -> None:
    values = np.random.default_rng(count).normal(0, 1, count) * np.linspace(1, 3, count) + np.linspace(0, 4, count)
    found = rise(values.tolist())
    quarter = count // 4
    first, last = values[:quarter], values[count - quarter :]
    assert (found.first, found.last) == (pytest.approx(first.mean()), pytest.approx(last.mean()))
    errors = [part.var(ddof=1) / quarter for part in (first, last)]
    freedom = sum(errors) ** 2 / sum(error**2 / (quarter - 1) for error in errors)
    assert found.standard_error == pytest.approx(math.sqrt(sum(errors)))
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, freedom) * math.sqrt(sum(errors)))


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        ([0.0, 0.1] * 8 + [3.0, 3.1] * 8, "the agent learned"),
        ([3.0, 3.1] * 8 + [0.0, 0.1] * 8, "the agent got worse"),
        ([0.0, 5.0] * 16, "no learning can be seen"),
        ([0.0, 0.0, 0.0, 9.0], "no learning can be seen"),
        ([1.0] * 16 + [2.0] * 16, "the agent learned"),
    ],
)
def test_what_a_rise_means_is_said_in_words(returns: list[float], said: str) -> None:
    assert said in in_words(rise(returns))


def test_the_change_is_that_of_the_numbers_beside_it() -> None:
    told = re.findall(r"[+-]?\d\.\d\d", in_words(rise([-0.2949] * 8 + [-0.3151] * 8)))
    assert told == ["-0.29", "-0.32", "-0.03", "0.00"]


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError):
        paired_difference([1.0, 2.0], [1.0])


def test_interval_over_seeds_and_images_is_that_of_drawing_both_anew() -> None:
    """Against the pigeonhole bootstrap itself: rows and columns drawn anew, many times."""
    random = np.random.default_rng(0)
    seeds, images = 12, 300
    skill = random.normal(0, 0.3, (seeds, 1)) + random.normal(0, 1.0, (1, images))
    hits = (skill + random.normal(0, 1, (seeds, images)) > -1).astype(float)
    means = []
    for _ in range(4000):
        rows, columns = random.integers(seeds, size=seeds), random.integers(images, size=images)
        means.append(hits[rows][:, columns].mean())
    mean, width = crossed_interval(hits)
    assert mean == pytest.approx(hits.mean())
    # The bootstrap's variances have N where those of samples have N - 1, and its cells vary once more.
    assert width / stats.t.ppf(0.975, seeds - 1) == pytest.approx(np.std(means), rel=0.06)


def test_interval_over_seeds_and_images_that_do_not_matter_is_students() -> None:
    of_seeds = np.array([0.7, 0.8, 0.85])
    assert crossed_interval(np.tile(of_seeds[:, None], (1, 50))) == pytest.approx(mean_interval(of_seeds.tolist()))


def test_bootstrap_over_strata_is_that_of_drawing_tasks_and_images_anew() -> None:
    """Against drawing by hand: tasks within their stratum, and the same images for strata that share them."""
    random = np.random.default_rng(0)
    images = random.normal(0, 1, 200)
    one = 1.0 + random.normal(0, 0.2, (6, 1)) + images + random.normal(0, 1, (6, 200))
    two = 2.0 + random.normal(0, 0.2, (3, 1)) + images + random.normal(0, 1, (3, 200))
    other = random.normal(0, 1, (3, 40))
    means = []
    for _ in range(4000):
        shared, own = random.integers(200, size=200), random.integers(40, size=40)
        drawn = [
            one[random.integers(6, size=6)][:, shared].mean() * 6,
            two[random.integers(3, size=3)][:, shared].mean() * 3,
            other[random.integers(3, size=3)][:, own].mean() * 3,
        ]
        means.append(sum(drawn) / 12)
    mean, low, high = pigeonhole_bootstrap([one, two, other], ["a", "a", "b"])
    assert mean == pytest.approx((one.mean() * 6 + two.mean() * 3 + other.mean() * 3) / 12)
    wider = np.sqrt(12 / 9) * stats.t.ppf(0.975, 9) / stats.norm.ppf(0.975)  # 12 tasks in 3 strata
    expected = mean + wider * (np.quantile(means, [0.025, 0.975]) - mean)
    assert (low, high) == pytest.approx(tuple(expected), abs=0.1 * (expected[1] - expected[0]))
    covered = [
        low <= 0 <= high
        for values in random.normal(0, 1, (300, 10, 1))
        for _, low, high in [pigeonhole_bootstrap([values], ["one"], replicates=500)]
    ]
    assert np.mean(covered) > 0.91, "few tasks do not make it too sure"
    apart = pigeonhole_bootstrap([one, two, other], ["a", "c", "b"])
    assert apart[2] - apart[1] < 0.95 * (high - low), "images that are shared count once"


@pytest.mark.filterwarnings("error")
def test_differences_that_do_not_vary_are_tested_by_their_sign() -> None:
    assert paired_p_value([0.5, 0.6], [0.4, 0.5]) == 0.5
    ours, theirs = (np.array([low, low + 1], np.float32) / np.float32(96) for low in (54, 55))  # as trainings have them
    assert ours[0] - theirs[0] != ours[1] - theirs[1] and paired_p_value(ours.tolist(), theirs.tolist()) == 0.5
    assert paired_p_value([0.6] * 5, [0.5] * 5) == stats.binomtest(5, 5).pvalue
    assert paired_p_value([0.5, 0.6, 0.8], [0.4, 0.5, 0.6]) == pytest.approx(
        stats.ttest_1samp([0.1, 0.1, 0.2], 0).pvalue
    )
