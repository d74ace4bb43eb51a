"""The benchmark of budgets: whole commands, in turn, with ratios within a round."""

import json
from pathlib import Path

import pytest

from rlmix.experiments.benchmarks import budget_cost


def test_every_way_is_measured_in_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def pretended(way: list[str], folder: Path) -> dict[str, float]:
        asked.append(list(way))
        return {"seconds": float(len(asked)), "memory_mb": 300.0, "folder_mb": 2.0}

    monkeypatch.setattr(budget_cost, "measure", pretended)
    out = tmp_path / "cost.json"
    budget_cost.main(["--budgets", "2", "--rounds", "2", "--updates", "20", "--out", str(out)])
    report = json.loads(out.read_text())
    names = [budget_cost.PLAIN, "the agent alone", "budget 2", "budget 2, 2 at a time"]
    assert list(report["ways"]) == names and len(asked) == 2 * len(names)
    # Rounds of 4: the first begins with the plain training, which is the last of the second.
    assert report["ways"]["budget 2"]["times_plain"]["rounds"] == pytest.approx([3 / 1, 6 / 8])
    assert [way[:3] for way in asked[1:3]] == [["replay_policy.py", "--agent", "shipped"]] * 2
    assert asked[3][-4:] == ["--budget", "2", "--workers", "2"] and "--budget" not in asked[1]


def test_a_command_is_run_to_its_end(tmp_path: Path) -> None:
    setting = ["--dataset", "digits", "--train-size", "50", "--updates", "2", "--batch-size", "10"]
    found = budget_cost.measure(["train_classifier.py", "--method", "clean", *setting], tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert found["seconds"] > 0 and found["memory_mb"] > 50 and found["folder_mb"] > 0.1


def test_the_documents_show_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    ways = json.loads((root / "experiments/results/benchmark_budget.json").read_text())["ways"]
    page = (root / "docs/budget.md").read_text()
    for name, way in ways.items():
        times = way["times_plain"]
        shown = f"{times['median']:.2f} ({times['low']:.2f} to {times['high']:.2f})"
        assert f"| {name} | {way['seconds']['median']:.0f} | {shown} |" in page


def test_what_fails_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        budget_cost.main(["--dataset", "nonsense", "--out", str(tmp_path / "cost.json")])
    assert "failed" in (said := capsys.readouterr().err) and "'nonsense'" in said
    with pytest.raises(SystemExit):
        budget_cost.main(["--budgets", "1", "--out", str(tmp_path / "cost.json")])
    assert "whole numbers of 2 or more" in capsys.readouterr().err
