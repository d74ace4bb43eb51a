"""Searches that differ in their seed, summed up: rises and leads are those of SciPy, and counted rightly."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments.studies import main_job

SEEDS, EPISODES = 6, 32


def search(folder: Path, seed: int, *, rises: bool, **changes: Any) -> Path:
    """A run folder of a finished search, as far as it is read."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    config = {"seed": seed, "updates": [100, 100], "dataset": "digits", "start": None, "out": str(folder), **changes}
    schedule = PolicySchedule.fixed(MixPolicy({"clean": 0.5, "mixup": 0.5}))
    noise = random.normal(0, 0.01, (2, SEEDS))
    accuracies = {"learned": 0.6 + noise[0], "plain": 0.5 + noise[1], "random": 0.6 + noise[0] - 0.0001}
    contest = {name: {"accuracies": values.tolist()} for name, values in accuracies.items()}
    returns = random.normal(0, 1, EPISODES) + (np.linspace(0, 6, EPISODES) if rises else 0)
    for name, content in (
        ("config.json", {"config": config}),
        ("summary.json", {"policy": schedule.to_json(), "contest": contest}),
    ):
        (folder / name).write_text(json.dumps(content))
    lines = [json.dumps({"rewards": [float(value) / 2] * 2}) + "\n" for value in returns]
    (folder / "episodes.jsonl").write_text("".join(lines))
    return folder


def test_rises_and_leads_are_scipys(tmp_path: Path) -> None:
    runs = [search(tmp_path / f"run-{seed}", seed, rises=seed != 1) for seed in range(3)]
    main_job.main(["--runs", *map(str, reversed(runs)), "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["seed"] for row in result["searches"]] == [0, 1, 2]
    assert [row["learned"] for row in result["searches"]] == [True, False, True] and result["learned"] == 2
    assert result["ahead"]["plain"] == 3
    for run, row in zip(runs, result["searches"], strict=True):
        returns = [sum(json.loads(line)["rewards"]) for line in (run / "episodes.jsonl").read_text().splitlines()]
        test = stats.ttest_ind(returns[-8:], returns[:8], equal_var=False)
        found = (row["last_quarter"] - row["first_quarter"]) / row["standard_error"]
        assert found == pytest.approx(test.statistic, rel=1e-2), "kept with four digits"
        contest = json.loads((run / "summary.json").read_text())["contest"]
        ours, theirs = contest["learned"]["accuracies"], contest["plain"]["accuracies"]
        interval = stats.ttest_rel(ours, theirs).confidence_interval()
        mean, half_width = row["leads"]["plain"]
        assert (mean - half_width, mean + half_width) == pytest.approx((interval.low, interval.high))
    text = (tmp_path / "out/results.md").read_text()
    assert "2 of 3" in text and "3 of 3" in text

    # The log alone gives the same again, without the runs.
    main_job.main(["--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/results.json").read_text())["searches"] == result["searches"]


@pytest.mark.parametrize("case", ["none", "unfinished", "same seed", "other setting"])
def test_what_cannot_be_summed_up_is_refused(case: str, refused: Any, tmp_path: Path) -> None:
    run = search(tmp_path / "run", 0, rises=True)
    other = {
        "none": None,
        "unfinished": tmp_path / "nothing",
        "same seed": search(tmp_path / "same", 0, rises=True),
        "other setting": search(tmp_path / "longer", 1, rises=True, updates=[300, 300]),
    }[case]
    runs = [] if other is None else ["--runs", str(run), str(other)]
    message = refused(main_job.main, [*runs, "--out", str(tmp_path / "out")])
    assert "--runs" in message


def test_the_committed_table_follows_from_its_log() -> None:
    folder = Path(__file__).parents[2] / "experiments/results/main_job"
    result = json.loads((folder / "results.json").read_text())
    searches = [json.loads(line) for line in (folder / "searches.jsonl").read_text().splitlines()]
    found = json.loads(json.dumps(main_job.summarise(searches)))
    assert {name: result[name] for name in found} == found
    assert (folder / "results.md").read_text() == main_job.markdown(result)
