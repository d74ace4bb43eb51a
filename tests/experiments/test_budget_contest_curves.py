"""Budgets on a contest's tasks: on a log in which it is planted what each way would find."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.experiments.comparison.intervals import mean_interval
from rlmix.experiments.studies.broad.contest_results import BEST_FIXED, VIT
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
        BEST_FIXED: (0.60, 0.5),
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


def planted_searches(folder: Path, groups: list[str], *, checksum: str = CHECKSUM) -> None:
    """Searches on the same tasks, of which the one of 8 trainings has not finished."""
    folder.mkdir()
    searches = {(curves.OURS, 4): 0.74, (curves.POPULATION, 4): 0.73, (curves.OURS, 16): 0.82, (curves.OURS, 8): 0.99}
    protocol = {"sha256": {"agent": checksum}, "searches": list(searches), "groups": groups, "tasks": 2}
    (folder / "protocol.json").write_text(json.dumps(protocol))
    lines = [
        {"group": group, "task": task, "method": method, "budget": budget, "accuracy": found, "again": found - 0.1}
        for (method, budget), found in searches.items()
        for group in groups
        for task in range(2)
    ]
    (folder / "runs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    portfolio = [CHOICES.index(one) for one in Forecaster.load(SHIPPED).portfolio]
    best = portfolio[2]  # the fourth training of ours
    planted(tmp_path / "contest", {"digits": "digits", "eurosat": "eurosat", VIT: "digits"}, best=best)
    planted_searches(tmp_path / "searches", ["digits", "eurosat"])
    options = ["--contest", str(tmp_path / "contest"), "--out", str(tmp_path), "--searches"]
    curves.main([*options, str(tmp_path / "searches")])
    result = json.loads((tmp_path / "contest_curves.json").read_text())
    assert result["tasks"] == 4 and result["data_sets"] == {"digits": 2, "eurosat": 2}, "no group of other networks"
    methods = result["methods"]

    def found(name: str, which: str = "accuracy") -> dict[str, float]:
        columns = {budget: one[which] for budget, one in methods[name].items() if which in one}
        assert all(values == [values[0]] * 4 for values in columns.values()), "tasks are alike"
        return {budget: values[0] for budget, values in columns.items()}

    first = portfolio[0]  # by validation ahead of the agent, unless it is the very first policy
    alone = 60.0 if first else 65.0
    assert found(curves.UNBRANCHED) == {"1": 65, "2": alone, "4": 61, "8": 61, "16": 61}
    assert found(curves.BRANCHED) == {"4": 74, "16": 82}, "on some tasks only 8 has finished"
    assert found(curves.BRANCHED, "again") == pytest.approx({"4": 64, "16": 72})
    assert found(curves.OURS) == {"1": 65, "2": alone, "4": 61, "8": 61, "16": 82}, "it branches from 16 on"
    assert found(curves.POPULATION) == {"4": 73, "16": 80} and found(curves.POPULATION, "again") == {"4": 63}
    assert found(curves.BY_RULE) == {"1": 70, "2": 60, "4": 61, "8": 61, "16": 61}
    assert set(found(curves.ORACLE).values()) == {61} and set(found(curves.ORACLE, "again").values()) == {57}
    assert found(curves.PORTFOLIO)["16"] == 61 and found(curves.COPIES) == {"16": 62}
    # One of sixteen drawn at random is the best one in k of sixteen orders.
    for budget, one in methods[curves.RANDOM].items():
        assert one["accuracy"] == pytest.approx([60 + int(budget) / 16] * 4, abs=0.12)
    compared = result["comparisons"]
    assert compared[curves.OURS]["16"]["less_best_fixed"]["tasks"] == pytest.approx([22, 0])
    assert compared[curves.BRANCHED]["4"]["again_less_best_fixed"]["tasks"] == pytest.approx([4, 0])
    assert compared[curves.BRANCHED]["4"]["ours_less_this"]["tasks"] == pytest.approx([-13, 0])
    assert compared[curves.POPULATION]["16"]["ours_less_this"]["data_sets"] == pytest.approx([2, 0])
    came = [round(aim["came"], 2) for aim in result["aims"].values()]
    assert came == [0 if first else 5, 0, -12, 2]
    assert [aim["reached"] for aim in result["aims"].values()][1:] == [True, False, True]
    shown = (tmp_path / "contest_curves.md").read_text()
    (row,) = [line for line in shown.splitlines() if line.startswith(f"| {curves.COPIES}")][:1]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == ["", "", "", "", "+2.00 ± 0.00"]
    curves.main([*options, "None"])
    result = json.loads((tmp_path / "contest_curves.json").read_text())
    assert set(result["methods"][curves.OURS]) == {"1", "2", "4", "8"} and len(result["aims"]) == 3


def test_the_documents_show_the_committed_results() -> None:
    root = Path(__file__).parents[2]
    page = (root / "docs/budget.md").read_text()
    results = (root / "experiments/results/budget/contest_curves.md").read_text()
    tables = results.split("\n\n")
    for title, place in (("## Above the best fixed policy", 1), ("## What carries over", 2)):
        assert tables[tables.index(title) + place] in page, title
    result = json.loads((root / "experiments/results/budget/contest_curves.json").read_text())
    portfolio = [CHOICES.index(one) for one in Forecaster.load(SHIPPED).portfolio]
    searches = root / "experiments/results/budget/contest"
    tasks = curves.read_contest(root / "experiments/results/broad/contest", str(searches), CHECKSUM)
    order = [POLICIES, *portfolio]
    logged = [json.loads(line) for line in (searches / "runs.jsonl").read_text().splitlines()]
    where = [(task.group, task.number) for task in tasks]
    for budget in (1, 2, 4, 8, 16):
        by_hand = [100 * task.best_of(order[:budget]) for task in tasks]
        assert np.allclose(result["methods"][curves.UNBRANCHED][str(budget)]["accuracy"], by_hand, atol=0.01)
    for budget in (4, 16):
        ours = {
            (line["group"], line["task"]): 100 * line["accuracy"]
            for line in logged
            if line["method"] == curves.OURS and line["budget"] == budget
        }
        by_hand = [ours[one] for one in where]
        assert np.allclose(result["methods"][curves.BRANCHED][str(budget)]["accuracy"], by_hand, atol=0.01)

    compared = result["comparisons"]

    def ahead(name: str, budget: int) -> tuple[float, float]:
        mean, width = compared[name][str(budget)]["ours_less_this"]["tasks"]
        return round(mean, 1) + 0, width  # no negative zero

    def added(methods: Any, budget: int, to: str = curves.UNBRANCHED) -> list[float]:
        apart = np.array(methods[curves.BRANCHED][str(budget)]["accuracy"]) - methods[to][str(budget)]["accuracy"]
        return [float(value) for value in apart]

    other = json.loads((root / "experiments/results/budget/real.json").read_text())["methods"]
    here = [mean_interval(added(result["methods"], budget)) for budget in (4, 16)]
    together = [mean_interval([*added(result["methods"], budget), *added(other, budget)]) for budget in (4, 16)]
    for said, values in (
        ("nothing here at 4 ({:.1f} ± {:.1f};", here[0]),
        ("and {:.1f} ± {:.1f} at 16, where ours", here[1]),
        ("together they add {:.1f} ± {:.1f} at 4 and {:.1f} ± {:.1f} at 16", (*together[0], *together[1])),
        ("Population Based Training ({:.1f} ± {:.1f}) and", ahead(curves.POPULATION, 16)),
        ("and {:.1f} ± {:.1f} ahead of the oracle of 16", ahead(curves.ORACLE, 16)),
        ("nor at 4 of Population Based Training ({:+.1f} ± {:.1f})", ahead(curves.POPULATION, 4)),
        ("random search at 2 ({:+.1f} ± {:.1f})", ahead(curves.RANDOM, 2)),
    ):
        assert said.format(*values) in " ".join(page.split()), said
    mean, width = mean_interval(added(result["methods"], 4, curves.ORACLE))
    other_mean, other_width = mean_interval(added(result["methods"], 4, curves.POPULATION))
    behind_both = (
        f"{-mean:.1f} ± {width:.1f} points behind the oracle, and {-other_mean:.1f} ± {other_width:.1f} behind"
    )
    assert f"with them it is {behind_both} Population Based Training" in " ".join(page.split())
    behind = ahead(curves.ORACLE, 4)
    assert f"at 4 it is {-behind[0]:.1f} ± {behind[1]:.1f} points behind it" in page
    assert not any(aim["reached"] for aim in result["aims"].values())
    assert together[1][0] > together[1][1] and abs(together[0][0]) < together[0][1], "why budgets of 16 and more branch"


def test_what_is_no_contest_of_this_agent_is_refused(tmp_path: Path, refused: Any) -> None:
    folder = tmp_path / "contest"
    assert "studies/broad/contest.py writes them" in refused(curves.main, ["--contest", folder])
    planted(folder, {"digits": "digits"}, best=3)
    searches = tmp_path / "searches"
    options = ["--contest", folder, "--searches", searches]
    assert "studies/budget/contest_searches.py writes them" in refused(curves.main, options)
    planted_searches(searches, ["digits"], checksum="0")
    assert f"not the agent of {searches / 'protocol.json'}" in refused(curves.main, options)
    (folder / "runs.jsonl").write_text((folder / "runs.jsonl").read_text().splitlines()[0] + "\n")
    assert "fewer than 2 tasks" in refused(curves.main, ["--contest", folder, "--searches", "None"])
    (folder / "protocol.json").write_text(json.dumps({"contestants": {"new": {"sha256": "0"}}}))
    assert "not the agent new" in refused(curves.main, ["--contest", folder, "--searches", "None"])
