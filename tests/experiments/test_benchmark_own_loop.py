"""The cost of one's own loop on a tiny setting: its ratios follow from the rounds."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlmix.experiments.benchmarks import own_loop_cost


def test_ratios_follow_from_the_rounds(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    out = tmp_path / "cost.json"
    own_loop_cost.main(["--sides", "8", "--batch-size", "4", "--updates", "2", "--rounds", "3", "--out", str(out)])
    (found,) = json.loads(out.read_text())["sides"]
    seconds = found["seconds_per_update"]
    for pair, values in found["ratios"].items():
        name, base = pair.split(" / ")
        expected = np.divide(seconds[name]["rounds"], seconds[base]["rounds"])
        assert values["rounds"] == pytest.approx(expected) and len(expected) == 3
        assert values["median"] == pytest.approx(np.median(expected))
