"""Rehearsals on data sets that an agent has not learned from."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.rule import Leaf, Rule, Split
from rlmix.envs import Source
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import rehearse
from tests.agent.loops import agent
from tests.experiments.inline import run_inline

ROOT = Path(__file__).parents[2]
Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]


def line(task: int, name: str, development: float, validation: float = 0.5, dataset: str = "a") -> dict[str, Any]:
    checksum = "1" if name == "mine" else None
    return {
        "task": task,
        "contestant": name,
        "agent_sha256": checksum,
        "dataset": dataset,
        "wrong": 0.3 * (task == 1),
        "development": development,
        "validation": validation,
        "diverged": False,
    }


def test_differences_are_paired_by_task_and_averaged_by_data_set() -> None:
    accuracy = {  # by task; tasks 0 and 2 are of one data set
        "plain": (0.5, 0.6, 0.7),
        "mixup half": (0.6, 0.6, 0.6),
        **{name: (0.1, 0.1, 0.1) for name in rehearse.FIXED if name not in ("plain", "mixup half")},
        "mine": (0.7, 0.5, 0.7),
    }
    lines = [
        line(task, name, value, dataset="ab"[task % 2])
        for name, values in accuracy.items()
        for task, value in enumerate(values)
    ]
    result = rehearse.summarise(lines)
    assert result["data_sets"] == {"a": 2, "b": 1} and result["tasks"] == 3
    mine = result["less_plain"]["mine"]
    assert mine["tasks"] == pytest.approx(mean_interval([20, -10, 0]))
    assert mine["data_sets"] == pytest.approx(mean_interval([10, -10]))
    assert mine["by_data_set"]["a"] == pytest.approx(mean_interval([20, 0]))
    assert mine["worst_tenth"] == pytest.approx(-10)
    assert result["labels"] == {"clean labels": 2, "wrong labels": 1}
    assert mine["by_labels"]["clean labels"] == pytest.approx(mean_interval([20, 0]))
    assert mine["by_labels"]["wrong labels"][0] == pytest.approx(-10)
    assert result["best_fixed"] == "plain", "the first of equals"
    assert result["accuracy"]["mixup half"] == pytest.approx(60)
    assert "+3.33 ± " in rehearse.markdown({**result, "command": "it"})


def test_the_best_of_the_menu_is_chosen_by_validation() -> None:
    names = [f"policy {number}" for number in range(16)]
    lines = [
        line(task, name, 0.5 + number / 100, validation=0.9 if number == 3 + task else 0.5)
        for task in range(2)
        for number, name in enumerate(names)
    ]
    result = rehearse.summarise([*lines, *(line(task, "mine", 0.5) for task in range(2))])
    assert result["best_fixed"] == "policy 15"
    assert result["less_plain"][rehearse.BEST_OF_ALL]["tasks"][0] == pytest.approx((3 + 4) / 2)


def test_tasks_go_through_the_data_sets_in_turn() -> None:
    sources = (Source("digits", (80,) * 10, False), Source("pacs", (300,) * 7, True))
    tasks = [rehearse.task_of(number, sources, group="longer", least_side=12) for number in range(20)]
    assert [task.dataset for task in tasks] == ["digits", "pacs"] * 10
    assert len(set(tasks)) == 20
    large = [rehearse.task_of(number, sources, group="longer", least_side=16) for number in range(10)]
    assert [task.dataset for task in large] == ["digits", "pacs"] * 5
    for name in ("digits", "pacs"):
        all_of, large_of = ([task for task in drawn if task.dataset == name] for drawn in (tasks, large))
        wide_enough = [task for task in all_of if task.image_size is not None and task.image_size >= 16]
        shared = min(len(wide_enough), 5)
        assert 1 < shared < len(all_of) and wide_enough[:shared] == large_of[:shared]


def test_agents_are_rehearsed_beside_fixed_policies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    trained = run_inline(monkeypatch)
    monkeypatch.setitem(rehearse.DRAWN, "usual", {"updates": (10, 10), "seconds": 1.5})
    (tmp_path / "agent").mkdir()
    agent(3).save(tmp_path / "agent")
    out = tmp_path / "out"
    options = ["--data", str(tmp_path), "--data-sets", "digits", "--tasks", "2", "--out", str(out), "--agents"]
    rehearse.main([*options, SHIPPED, f"mine={tmp_path / 'agent'}"])
    lines = [json.loads(text) for text in (out / "runs.jsonl").read_text().splitlines()]
    assert {(one["task"], one["contestant"]) for one in lines} == {
        (task, name) for task in range(2) for name in (*rehearse.FIXED, SHIPPED, "mine")
    }
    mine = next(one for one in lines if one["contestant"] == "mine")
    menu, chosen = Agent.load(tmp_path / "agent").menu, mine["chosen"]
    assert set(chosen) <= {str(menu.policy(action)) for action in menu.actions()} and len(chosen) == 4
    assert "mine" in (out / "results.md").read_text()
    trained.clear()
    rehearse.main([*options, SHIPPED, f"mine={tmp_path / 'agent'}"])
    assert trained == []
    agent(4).save(tmp_path / "agent")
    assert "another agent, rule or schedule by the name mine" in refused(
        rehearse.main, [*options, f"mine={tmp_path / 'agent'}"]
    )
    assert "tasks of --group usual, not longer" in refused(rehearse.main, [*options, SHIPPED, "--group", "longer"])
    assert "tasks of --least-side 12, not 16" in refused(rehearse.main, [*options, SHIPPED, "--least-side", "16"])
    assert "--least-side must be at most 32" in refused(rehearse.main, [*options, SHIPPED, "--least-side", "33"])
    assert "NAME=FOLDER" in refused(rehearse.main, [*options, "plain"])
    assert "'plain' stands for another contestant" in refused(rehearse.main, [*options, "plain=shipped"])
    assert "--data-sets must be among" in refused(rehearse.main, [*options, SHIPPED, "--data-sets", "eurosat"])


def test_rules_are_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused) -> None:
    """A rule whose leaves are all alike is a fixed policy."""
    run_inline(monkeypatch)
    monkeypatch.setitem(rehearse.DRAWN, "usual", {"updates": (10, 10), "seconds": 1.5})
    cutmix = MENU.find(rehearse.CUTMIX)
    rest = Leaf((cutmix,) * (len(SEGMENTS) - 1))
    Rule(MENU, SEGMENTS, (cutmix,), Split("gap", 0.1, rest, rest)).save(tmp_path)
    out = tmp_path / "out"
    options = ["--data", str(tmp_path), "--data-sets", "digits", "--tasks", "2", "--out", str(out), "--agents", SHIPPED]
    rehearse.main([*options, "--rules", f"simple={tmp_path / 'rule.json'}"])
    of = {
        (one["task"], one["contestant"]): one
        for one in map(json.loads, (out / "runs.jsonl").read_text().split("\n")[:-1])
    }
    for task in range(2):
        assert of[task, "simple"]["development"] == of[task, "CutMix half"]["development"]
        assert of[task, "simple"]["chosen"] == [str(rehearse.CUTMIX)] * len(SEGMENTS)
    assert "--rules must be NAME=FILE" in refused(rehearse.main, [*options, "--rules", "simple"])
    assert "cannot be used as a rule" in refused(rehearse.main, [*options, "--rules", f"one={out / 'runs.jsonl'}"])


def test_schedules_are_rehearsed_on_later_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    run_inline(monkeypatch)
    monkeypatch.setitem(rehearse.DRAWN, "usual", {"updates": (10, 10), "seconds": 1.5})
    (file := tmp_path / "it.json").write_text(json.dumps(rehearse.FIXED["CutMix half"].to_json()))
    out = tmp_path / "out"
    options = ["--data", str(tmp_path), "--data-sets", "digits", "--tasks", "2", "--out", str(out), "--agents", SHIPPED]
    rehearse.main([*options, "--first", "5", "--schedules", f"it={file}"])
    lines = [json.loads(text) for text in (out / "runs.jsonl").read_text().splitlines()]
    assert {(one["task"], one["contestant"]) for one in lines} == {
        (task, name) for task in (5, 6) for name in (*rehearse.FIXED, "it", SHIPPED)
    }
    of = {(one["task"], one["contestant"]): one for one in lines}
    assert all(of[task, "it"]["development"] == of[task, "CutMix half"]["development"] for task in (5, 6))
    result = json.loads((out / "results.json").read_bytes())
    assert result["best_fixed"] in rehearse.FIXED and result["less_plain"]["it"] == result["less_plain"]["CutMix half"]
    file.write_text(json.dumps(rehearse.FIXED["mixup half"].to_json()))
    assert "agent, rule or schedule by the name it" in refused(
        rehearse.main, [*options, "--first", "5", "--schedules", f"it={file}"]
    )
    assert "--schedules must be NAME=FILE" in refused(rehearse.main, [*options, "--schedules", "it"])


def test_the_documents_show_the_committed_rehearsal() -> None:
    broad = ROOT / "experiments/results/broad"
    result, fresh = (json.loads((broad / name / "results.json").read_bytes()) for name in ("rehearsal", "confirmed"))
    page = (ROOT / "docs/agent.md").read_text()
    shown = {
        "surrogate": "PPO in a surrogate of many data sets, `broad/surrogate/ppo-0`",
        "CutMix half": "CutMix on half of the updates",
        "R-Mix half": "R-Mix on half",
        rehearse.OFF: "CutMix on half, off at 0.7",
        SHIPPED: "the shipped agent",
        "earlier": "the earlier agent",
        "mixup half": "mixup on half",
        "label smoothing": "label smoothing of 0.3",
    }
    rows = result["less_plain"]
    assert sorted(shown, key=lambda name: -rows[name]["tasks"][0])[0] == next(iter(shown)) and set(shown) == set(rows)
    for name, title in shown.items():
        over_tasks, over_sets = (
            format_interval(*rows[name]["tasks"], signed=True),
            f"± {rows[name]['data_sets'][1]:.2f}",
        )
        assert f"| {title} | {over_tasks} | {over_sets} | {rows[name]['worst_tenth']:.2f} |" in page
    assert f"over {result['tasks']} tasks" in page
    card = (ROOT / "experiments/policies/README.md").read_text()
    titles = {
        SHIPPED: "the shipped agent",
        "CutMix half": "CutMix on half of the updates",
        "R-Mix half": "R-Mix on half",
        "earlier": "the earlier agent",
        "mixup half": "mixup on half",
    }
    for name, title in titles.items():
        intervals = [
            rows[name]["tasks"],
            *(rows[name]["by_labels"][f"{labels} labels"] for labels in ("wrong", "clean")),
        ]
        over, wrong, clean = (format_interval(*interval, signed=True) for interval in intervals)
        assert f"| {title} | {over} | {clean} | {wrong} |" in card, name
    assert f"± {rows[SHIPPED]['data_sets'][1]:.2f}, and CutMix" in card
    assert result["best_fixed"] == "R-Mix half"
    ahead = {
        unit: {name for name, row in rows.items() if row[unit][0] > row[unit][1]} for unit in ("tasks", "data_sets")
    }
    assert ahead["tasks"] == set(rows) - {"label smoothing"} and "All but label smoothing are ahead" in page
    assert ahead["data_sets"] == {"CutMix half", "R-Mix half", rehearse.OFF}
    assert f"({format_interval(*result['less_best_fixed'][SHIPPED]['tasks'], signed=True)} over R-Mix)" in page
    wrong = {name: row["by_labels"]["wrong labels"] for name, row in rows.items()}
    clean = {name: row["by_labels"]["clean labels"] for name, row in rows.items()}
    assert f"({format_interval(*wrong[SHIPPED], signed=True)} by the shipped agent" in page
    assert f"{format_interval(*wrong['CutMix half'], signed=True)} by CutMix on half" in page
    assert max(mean for mean, _ in clean.values()) < 1
    standing = json.loads((broad / "standing/results.json").read_bytes())["less_plain"]
    names = {f"{title} half": f"clean 50 % + {method} 50 %, λ beta(1)" for title, method in
             (("CutMix", "cutmix"), ("R-Mix", "rmix"), ("mixup", "mixup"))} | {SHIPPED: SHIPPED}  # fmt: skip
    names["R-Mix half"] += ", τ drawn"
    for labels, here, advised in (("wrong labels", wrong, ("R-Mix half", "CutMix half", SHIPPED)),
                                  ("clean labels", clean, ("CutMix half", "mixup half", SHIPPED))):  # fmt: skip
        for name in advised:
            there = standing[names[name]]["by_labels"][labels]
            said = f"{here[name][0]:.1f} ± {here[name][1]:.1f} and {there[0]:.1f} ± {there[1]:.1f}"
            assert said in page, (labels, name, said)
    ours = fresh["less_plain"]
    words = {
        "surrogate": "{} ahead of plain",
        SHIPPED: "{} ahead of plain",
        "rule": "and {} on the second 48",
        "CutMix half": "and {}; so on real",
        "r3": "+{}",
        "r4": "+{}",
    }
    for name, said in words.items():
        assert said.format(format_interval(*ours[name]["tasks"])) in page.replace("\n", " "), name
    assert f"± {ours[SHIPPED]['data_sets'][1]:.2f} over data sets" in page


def test_the_documents_say_the_rule_in_words() -> None:
    folder = ROOT / "experiments/results/broad/agent/rule"
    rule, page = Rule.load("rule"), (ROOT / "docs/agent.md").read_text()
    few, many = rule.tree.below, rule.tree.above  # type: ignore[union-attr]
    thresholds = [few.threshold, rule.tree.threshold, many.threshold]  # type: ignore[union-attr]
    assert [rule.tree.feature, few.feature, many.feature] == ["log_passes"] * 3  # type: ignore[union-attr]
    passes = [math.ceil(10 ** (4 * threshold) - 1) for threshold in thresholds]
    assert passes == [20, 32, 70]
    for said in ("fewer than 20", "20 to 31", "32 to 69", "70 and more"):
        assert f"| {said} |" in page
    assert (many.below.feature, round(many.below.threshold, 2)) == ("clean_excess_loss", 0.88)
    assert (many.above.feature, round(many.above.threshold, 2)) == ("mixed_excess_loss", 0.70)
    assert "above 88 % of what" in page and "above 70 % of that" in page
    points = json.loads((folder / "results.json").read_bytes())["points"]
    scores = json.loads((folder.parent / "scores.json").read_bytes())["test"]["rows"]["PPO"]
    assert (
        f"it gains {points['rule']['test']:.2f} points on test tasks, three agents {scores['score'] / 2:.2f} on "
        f"average, the best fixed policy {points['best fixed policy']['test']:.2f}"
    ) in page
    assert f"are {min(scores['scores']):.2f} to {max(scores['scores']):.2f}" in page


def test_the_documents_show_where_the_shipped_agent_stands() -> None:
    folder = ROOT / "experiments/results/broad/standing"
    result, page = json.loads((folder / "results.json").read_bytes()), (ROOT / "docs/agent.md").read_text()
    rows = result["less_plain"]
    fixed = [name for name in rows if name not in (SHIPPED, "earlier", rehearse.BEST_OF_ALL)]
    best = max(fixed, key=lambda name: rows[name]["tasks"][0])
    shown = {
        rehearse.BEST_OF_ALL: "the best of the 16 by validation on each task: 16 trainings",
        SHIPPED: "the shipped agent",
        "earlier": "the earlier agent",
        best: "the best fixed policy of these tasks, LaMix's average on half, smoothing 0.3",
        "clean 50 % + mixup 50 %, λ beta(1)": "mixup on half",
        "clean 50 % + cutmix 50 %, λ beta(1), smoothing 0.3": "CutMix on half, smoothing 0.3",
        "clean 50 % + rmix 50 %, λ beta(1), τ drawn": "R-Mix on half",
        "clean 50 % + cutmix 50 %, λ beta(1)": "CutMix on half",
    }
    for name, title in shown.items():
        row = rows[name]
        over_tasks, over_sets = format_interval(*row["tasks"], signed=True), f"± {row['data_sets'][1]:.2f}"
        assert f"| {title} | {over_tasks} | {over_sets} | {row['worst_tenth']:.2f} |" in page
    ahead = format_interval(*result["less_best_fixed"][SHIPPED]["tasks"])
    assert f"it is {ahead} ahead, which may be chance" in page
    assert rows[SHIPPED]["data_sets"][0] > rows[SHIPPED]["data_sets"][1]
    assert best.startswith("clean 50 % + average 50 %") and best.endswith("smoothing 0.3")
    every = [row for name, row in rows.items() if name.startswith(("mixup 100", "cutmix 100", "rmix 100"))]
    means, worst = [row["tasks"][0] for row in every], [row["worst_tenth"] for row in every]
    assert f"| {min(means):+.2f} to {max(means):+.2f} | | {max(worst):.2f} to {min(worst):.2f} |" in page
