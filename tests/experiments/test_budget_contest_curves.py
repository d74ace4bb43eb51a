"""Budgets on a contest's tasks: on a log in which it is planted what each way would find."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.experiments.studies.broad.record import CHOICES
from rlmix.experiments.studies.budget import contest_curves as curves
from rlmix.experiments.studies.budget.recorded import POLICIES

CHECKSUM = Agent.load(SHIPPED).checksum


def planted(folder: Path, groups: dict[str, str], *, best: int) -> None:
    """A contest whose tasks are alike: policy `best` is the best by validation and on test images."""
    folder.mkdir()
    protocol = {"contestants": {"new": {"kind": "agent", "sha256": CHECKSUM}}}
    (folder / "protocol.json").write_text(json.dumps(protocol))
    every = [[0.60 + 0.01 * (place == best), 0.50 + 0.01 * place + (place == best)] for place in range(POLICIES)]
    singles = {
        "new": (0.65, 0.50),
        curves.RULE: (0.70, 0.40),
        curves.BEST_FIXED: (0.60, 0.5),
        curves.COPIES: (0.62, 0.9),
        curves.POPULATION: (0.80, 0.9),
    }
    lines: list[dict[str, Any]] = []
    for number in (0, 1):
        for group, dataset in groups.items():
            what = {"group": group, "task": number, "dataset": dataset}
            lines += [
                {**what, "contestant": name, "accuracy": accuracy, "validation": validation}
                for name, (accuracy, validation) in singles.items()
            ]
            lines.append({**what, "contestant": curves.MENU_16, "accuracy": 0.61, "again": 0.57, "every": every})
    lines.append({**lines[0], "task": 7})  # has not been searched
    (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    portfolio = [CHOICES.index(one) for one in Forecaster.load(SHIPPED).portfolio]
    best = portfolio[2]  # the fourth training of ours
    planted(tmp_path / "contest", {"digits": "digits", "eurosat": "eurosat", curves.VIT: "digits"}, best=best)
    curves.main(["--contest", str(tmp_path / "contest"), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "contest_curves.json").read_text())
    assert result["tasks"] == 4 and result["data_sets"] == {"digits": 2, "eurosat": 2}
    found = {name: np.array(values)[:, 0] for name, values in result["accuracy"].items()}
    assert [len(values) for values in found.values()] == [5] * len(found)
    first = portfolio[0]  # by validation ahead of the agent, unless it is the very first policy
    alone = 60.0 if first else 65.0
    assert found[curves.OURS].tolist() == [65.0, alone, 61.0, 61.0, 61.0]
    assert found[curves.BY_RULE].tolist() == [70.0, 60.0, 61.0, 61.0, 61.0]
    assert found[curves.ORACLE].tolist() == [61.0] * 5 and found[curves.ORACLE_AGAIN].tolist() == [57.0] * 5
    assert found[curves.PORTFOLIO][-1] == 61 and found[curves.RANDOM][-1] == pytest.approx(61)
    # One of sixteen drawn at random is the best one in k of sixteen orders.
    for place, budget in enumerate(result["budgets"]):
        assert found[curves.RANDOM][place] == pytest.approx(60 + budget / 16, abs=0.12)
    less = result["less_best_fixed"]
    assert less[curves.OURS][0]["tasks"] == pytest.approx([5.0, 0.0]) and less[curves.POPULATION][-1]["tasks"][0] == 20
    assert result["ours_less_this"][curves.POPULATION][-1]["data_sets"] == pytest.approx([-19.0, 0.0])
    shown = (tmp_path / "contest_curves.md").read_text()
    (row,) = [line for line in shown.splitlines() if line.startswith(f"| {curves.COPIES}")][:1]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["", "", "", "", "+2.00 ± 0.00"]


def test_the_documents_show_the_committed_results() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/budget.md").read_text()
    results = (root / "experiments/results/budget/contest_curves.md").read_text()
    assert next(part for part in results.split("\n\n") if part.startswith("|")) in page
    result = json.loads((root / "experiments/results/budget/contest_curves.json").read_text())
    portfolio = [CHOICES.index(one) for one in Forecaster.load(SHIPPED).portfolio]
    tasks = curves.read_contest(root / "experiments/results/broad/contest", CHECKSUM)
    again = [[100 * task.best_of([POLICIES, *portfolio][:budget]) for task in tasks] for budget in result["budgets"]]
    assert np.allclose(result["accuracy"][curves.OURS], again, atol=0.01)
    less = {name: [one["tasks"] for one in row] for name, row in result["ours_less_this"].items()}
    for name, place, said in (
        (curves.ORACLE, 2, "at 4 it is {} points behind it"),
        (curves.RANDOM, 1, "random search at 2 (+{})"),
        (curves.POPULATION, 4, "At 16 it is {} behind Population Based Training"),
    ):
        mean, width = less[name][place]
        assert said.format(f"{abs(mean):.1f} ± {width:.1f}") in page, name


def test_what_is_no_contest_of_this_agent_is_refused(tmp_path: Path, refused: Any) -> None:
    folder = tmp_path / "contest"
    assert "studies/broad/contest.py writes them" in refused(curves.main, ["--contest", folder])
    planted(folder, {"digits": "digits"}, best=3)
    (folder / "runs.jsonl").write_text((folder / "runs.jsonl").read_text().splitlines()[0] + "\n")
    assert "fewer than 2 tasks" in refused(curves.main, ["--contest", folder])
    (folder / "protocol.json").write_text(json.dumps({"contestants": {"new": {"sha256": "0"}}}))
    assert "not the agent new" in refused(curves.main, ["--contest", folder])
