"""Searches that start somewhere or from nothing, summed up: leads are paired within a task, means are over tasks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments.studies import going_on

ROOT = Path(__file__).parents[2]
SEEDS, EPISODES = 5, 16


def search(folder: Path, seed: int, start: str | None, lead: float, **changes: Any) -> Path:
    """A run folder of a finished search, as far as it is read; its policy is `lead` ahead of plain training."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    where = None if start is None else f"/somewhere/{start}"
    segments = [1.0] if start is None else [0.5, 1.0]
    config = {"seed": seed, "dataset": "/data/mine.zip", "start": where, "segments": segments, "episodes": EPISODES}
    config |= {"train_size": [100, 100], "label_noise": [0.2, 0.2], "out": str(folder), **changes}
    level = random.normal(0.5, 0.1, SEEDS)
    accuracies = {"learned": level + lead, "plain": level}
    if start is not None:
        accuracies["start agent, live"] = level + 0.01
    contest = {name: {"accuracies": values.tolist()} for name, values in accuracies.items()}
    schedule = PolicySchedule.fixed(MixPolicy({"clean": 1.0}))
    (folder / "config.json").write_text(json.dumps({"config": config}))
    (folder / "summary.json").write_text(json.dumps({"policy": schedule.to_json(), "contest": contest}))
    (folder / "episodes.jsonl").write_text((json.dumps({"rewards": [0.0]}) + "\n") * EPISODES)
    return folder


def test_leads_are_paired_on_a_task_and_means_are_over_tasks(tmp_path: Path) -> None:
    leads = {0: (0.05, 0.02), 1: (0.03, 0.04), 2: (0.01, 0.0)}
    runs = [
        search(tmp_path / f"{seed}-{start}", seed, start, lead)
        for seed, both in leads.items()
        for start, lead in zip(("surrogate", None), both, strict=True)
    ]
    going_on.main(["--runs", *map(str, runs), "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert result["tasks"] == 3 and len(result["searches"]) == 6
    means = result["means"]["surrogate, 16"]
    for name, expected in {
        "plain": [both[0] for both in leads.values()],
        "start agent, live": [both[0] - 0.01 for both in leads.values()],
        "nothing": [both[0] - both[1] for both in leads.values()],
    }.items():
        interval = stats.ttest_1samp(expected, 0).confidence_interval()
        assert means[name][0] == pytest.approx(np.mean(expected))
        assert means[name][1] == pytest.approx((interval.high - interval.low) / 2)
    assert set(result["means"]["nothing, 16"]) == {"plain"}
    page = (tmp_path / "out/results.md").read_text()
    assert "mine.zip" in page and str(tmp_path) not in page, "a path means nothing elsewhere"

    # The log alone gives the same again, without the runs.
    going_on.main(["--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/results.json").read_text())["searches"] == result["searches"]


def test_the_documents_report_going_on_as_it_came() -> None:
    result = json.loads((ROOT / "experiments/results/going_on/results.json").read_bytes())
    page = (ROOT / "docs/results.md").read_text()
    for start, title in (("surrogate", "the surrogate's agent"), ("nothing", "nothing")):
        for episodes in (96, 304):
            means = result["means"][f"{start}, {episodes}"]
            others = ("start agent, live", "nothing", "plain", "CutMix half", "random", "shipped agent, live")
            cells = [f" {going_on.points(means[name], signed=True)} " if name in means else " " for name in others]
            assert f"| {title}, {episodes} |{'|'.join(cells)}|" in page
    assert result["tasks"] == 5 and "over five tasks" in page


def test_two_searches_of_one_kind_are_refused(refused: Any, tmp_path: Path) -> None:
    runs = [search(tmp_path / name, 0, None, 0.0) for name in ("one", "two")]
    assert "--runs" in refused(going_on.main, ["--runs", *map(str, runs), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
