"""The soak of a worker's memory: what grows is told from what is flat."""

import numpy as np
import pytest

from rlmix.experiments.runs.errors import RunError
from tests.soak.memory import LEAST, MemorySoak, growth


def readings(slope: float) -> list[float]:
    """A start that fills caches, then a line of known slope with noise."""
    noise = np.random.default_rng(0).normal(0, 0.5, 500)
    return [float(value) for value in 400 - 50 * np.exp(-np.arange(500) / 30) + slope * np.arange(500) + noise]


@pytest.mark.parametrize(("slope", "flat"), [(0.0, True), (0.001, True), (0.02, False), (0.1, False)])
def test_growth_is_told_from_noise(slope: float, flat: bool) -> None:
    result = growth(readings(slope))
    assert result["flat"] is flat
    assert abs(result["slope_mib_per_episode"] - slope) < 2 * result["interval"]


def test_readings_without_any_noise_are_judged() -> None:
    constant = growth([500.0] * 300)
    assert constant["flat"] and constant["slope_mib_per_episode"] == constant["interval"] == 0
    rising = growth([500.0 + 0.1 * (number // 15) for number in range(300)])
    assert not growth([500 + 0.1 * number for number in range(300)])["flat"]
    assert rising["slope_mib_per_episode"] == pytest.approx(0.1 / 15, rel=0.05)


def test_too_few_episodes_are_refused() -> None:
    with pytest.raises(RunError, match=str(LEAST)):
        MemorySoak(episodes=LEAST - 1).run()
