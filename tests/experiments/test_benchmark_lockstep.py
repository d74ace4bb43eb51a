"""The benchmark of lockstep on a tiny setting: ratios follow from the rounds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlmix.experiments.benchmarks import lockstep_speed
from rlmix.experiments.benchmarks.gpu_sizes import TINY


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(lockstep_speed.CASES, "search", TINY.cases[0])


def test_ratios_follow_from_the_rounds(tmp_path: Path) -> None:
    out, threads = tmp_path / "lockstep.json", torch.get_num_threads()
    options = ["--models", "search", "--counts", "1", "3", "--alone", "2", "--updates", "2", "--rounds", "3"]
    try:
        lockstep_speed.main([*options, "--device", "cpu", "--out", str(out)])
    finally:
        torch.set_num_threads(threads)
    report = json.loads(out.read_text())
    counts = report["models"]["search"]
    assert list(counts) == ["1", "3"]
    for row in counts.values():
        expected = np.divide(row["images_per_second"]["rounds"], row["one_by_one"]["rounds"])
        assert row["ratio"]["rounds"] == pytest.approx(expected) and len(expected) == 3
    one, three = (counts[number]["operations"] for number in ("1", "3"))
    assert one["by_itself"] == three["by_itself"] > three["in_lockstep"] < one["in_lockstep"]
    assert all(name in lockstep_speed.text_report(report) for name in ("search", "images/s in lockstep"))


def test_the_part_of_the_gpu_check_notes_every_number() -> None:
    found: dict[str, Any] = {}
    lockstep_speed.measure_part("cpu", TINY, "", found.__setitem__)
    assert list(found) == [f"{count} in lockstep" for count in TINY.lockstep]
    for row in found.values():
        images = TINY.updates * TINY.cases[0].batch_size
        assert row["trainings_per_hour"] == pytest.approx(3600 * row["images_per_second"]["median"] / images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--counts", "0"], "--counts must be at least 1 each, got 0"),
        (["--models", "nope"], "--models must be among search, preact_resnet18, got nope"),
        (["--updates", "1"], "updates must be at least 2"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments: list[str], message: str, refused: Any) -> None:
    assert message in refused(lockstep_speed.main, arguments)
