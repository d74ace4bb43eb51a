"""The measurement of Ray's cost: what it concludes follows from what it measured, and it runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlmix.experiments.benchmarks import ray_overhead


def test_workers_that_one_driver_feeds() -> None:
    cost = 0.004
    report: dict[str, Any] = {
        "scaling": {"segment_seconds": 0.5},
        "driver": [
            {
                "wall_seconds_beyond_waiting_per_step_with_learning": cost,
                "cpu_seconds_per_step_with_learning": cost / 2,
            }
        ],
    }
    rows = ray_overhead.feeds(report)
    assert [row["segment_seconds"] for row in rows] == [0.5, 1.0, 10.0, 60.0]
    for row in rows:
        for share, workers in ((0.1, row["workers_at_a_tenth"]), (0.5, row["workers_at_half"])):
            assert workers * cost / (row["segment_seconds"] + workers * cost) == pytest.approx(share)


@pytest.mark.parametrize("option", ["--rounds 0", "--waiting-steps 0", "--perturbations 0", "--dataset nonsense"])
def test_refused_in_one_line(refused: Any, option: str) -> None:
    refused(ray_overhead.main, ["--dataset", "digits", "--out", "report.json", *option.split()])


@pytest.mark.slow
def test_it_runs(start: Any, tmp_path: Path) -> None:
    options = (
        "--dataset digits --train-size 100 --updates 20 --rounds 1 --waiting-workers 2 --waiting-steps 2 --wait 0.1 "
        "--perturbations 1 --out report.json"
    )
    process = start("benchmarks/ray_overhead.py", *options.split(), cwd=tmp_path)
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["driver"][0]["workers"] == 2
    assert 0 < report["driver"][0]["cpu_seconds_per_step"] < 1
    assert 32 < report["bytes"]["action"] < 2000 and 200 < report["bytes"]["answer"] < 4000
    assert report["perturbation"]["perturbation_seconds"] > 0
