"""How long data sets take to load: a report of what was loaded, without any accuracy."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmix.classifier.data import load_dataset
from rlmix.experiments.benchmarks import loading

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]


def test_a_report_says_what_was_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    out = tmp_path / "loading.json"
    loading.main(["--data-sets", "digits", "--rounds", "2", "--out", str(out)])
    report = json.loads(out.read_text())
    (found,) = report["data_sets"]
    digits = load_dataset("digits")
    assert (found["data_set"], found["classes"], found["shape"]) == ("digits", 10, [1, 8, 8])
    assert found["images"] == len(digits.pool) + len(digits.test) == 1797
    assert len(found["seconds"]["rounds"]) == 2 and min(found["seconds"]["rounds"]) > 0
    assert "accuracy" not in out.read_text() and "1797" in capsys.readouterr().out
    assert "nothing.zip" in refused(loading.main, ["--data-sets", str(tmp_path / "nothing.zip"), "--out", str(out)])
