"""The measurement of Ray's cost: what it concludes follows from what it measured, and it runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlmix.experiments.benchmarks import ray_overhead


@pytest.mark.parametrize("option", ["--rounds 0", "--waiting-steps 0", "--perturbations 0", "--dataset nonsense"])
def test_refused_in_one_line(refused: Any, option: str) -> None:
    refused(ray_overhead.main, ["--dataset", "digits", "--out", "report.json", *option.split()])


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    options = (
        "--dataset digits --train-size 100 --updates 20 --rounds 1 --waiting-workers 2 --waiting-steps 2 --wait 0.1 "
        f"--perturbations 1 --out {tmp_path}/report.json"
    )
    ray_overhead.main(options.split())
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["driver"][0]["workers"] == 2
    assert 0 < report["driver"][0]["cpu_seconds_per_step"] < 1
    assert 32 < report["bytes"]["action"] < 2000 and 200 < report["bytes"]["answer"] < 4000
    assert report["perturbation"]["perturbation_seconds"] > 0
    rows = report["one_driver_feeds"]
    assert [row["segment_seconds"] for row in rows[1:]] == [1, 10, 60]
    for row in rows:  # the driver's share of a step grows with the workers, and a longer segment feeds more of them
        assert 0 < row["workers_at_a_tenth"] < row["workers_at_half"]
    assert rows[1]["workers_at_half"] < rows[2]["workers_at_half"] < rows[3]["workers_at_half"]
