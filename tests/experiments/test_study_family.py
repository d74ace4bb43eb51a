"""The study of the family of tasks: which trainings a task gets, and what they say."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from classifier.mixing import MixPolicy
from experiments.family import FIRST_SLOW, MENU, PLAIN, REFERENCE, SEGMENTS
from experiments.family_summary import markdown, picture, summary
from experiments.run_folder import LineLog
from experiments.study_family import FIXED, SWITCHING, TWICE, plans


def test_every_task_gets_the_same_kinds_of_trainings_again() -> None:
    for task in range(30):
        drawn = plans(task)
        assert drawn == plans(task)
        assert len({(plan.training, plan.actions) for plan in drawn}) == len(drawn)
        assert all(len(plan.actions) == len(SEGMENTS) and plan.task == task for plan in drawn)
        assert all(set(plan.actions) <= set(MENU.actions()) for plan in drawn)
        known = {(plan.training, plan.actions[0]) for plan in drawn if len(set(plan.actions)) == 1}
        seeds = (0, 1) if task < TWICE else (0,)
        assert {(training, action) for training in seeds for action in (PLAIN, REFERENCE)} <= known
        for plan in drawn:
            changes = sum(one != other for one, other in zip(plan.actions, plan.actions[1:], strict=False))
            assert changes <= (plan.kind == "switching")
            assert plan.training == 0 or plan.kind in ("reference", "plain")
    assert plans(0) != plans(1)
    counts = Counter(plan.kind for task in range(30) for plan in plans(task))
    assert 0.8 * 30 * FIXED <= counts["fixed"] <= 30 * FIXED
    assert 0.9 * 30 * SWITCHING <= counts["switching"] <= 30 * SWITCHING


def line(task: int, training: int, kind: str, action: tuple[int, ...], points: float) -> dict[str, Any]:
    """A training of which nothing but its result matters."""
    drawn = {"train_size": 1000, "updates": 100, "label_noise": 0.3 if task % 2 else 0.0, "data_seed": task}
    actions = [list(action)] * len(SEGMENTS)
    return {
        "task": task, "training": training, "kind": kind, "actions": actions, "task_drawn": drawn,
        "development": points / 100,
    }  # fmt: skip


def test_the_summary_finds_what_was_put_in() -> None:
    """Plain training is 2 points above the reference on even tasks and 1 below on odd ones, all with noise."""
    draw, lines, tasks = np.random.default_rng(0), [], 2000
    other = MENU.find(MixPolicy({"rmix": 1.0}))
    for task in range(tasks):
        level, effect = draw.uniform(50, 90), -1.0 if task % 2 else 2.0
        for training in (0, 1):
            seed = level + draw.normal(0, 3)  # of the training, the same under every policy
            lines.append(line(task, training, "reference", REFERENCE, seed + draw.normal()))
            lines.append(line(task, training, "plain", PLAIN, seed + effect + draw.normal()))
            if training == 0:
                lines.append(line(task, 0, "fixed", other, seed + 4 + draw.normal()))
    lines.append(line(tasks, 0, "reference", REFERENCE, 50))  # has not finished, and does not count
    found = summary(lines)
    assert found["tasks"] == tasks and found["trainings"] == 5 * tasks
    assert found["plain"]["mean"] == pytest.approx(0.5, abs=0.1)
    assert found["plain"]["noise"] == pytest.approx(math.sqrt(2), abs=0.1)
    assert found["plain"]["over_tasks"] == pytest.approx(math.sqrt(1.5**2 + 1), abs=0.1)  # of means of two seeds
    # Plain training and the other lie 2 or 5 apart: their variances, of two values each, are 2 and 12.5.
    assert found["policies"]["variance"] == pytest.approx((2 + 12.5) / 2, abs=0.4)
    assert found["policies"]["noise_variance"] == pytest.approx(1, abs=0.1)
    right, wrong = norm.cdf(2 / math.sqrt(2)), norm.cdf(-1 / math.sqrt(2))  # how often plain training is chosen
    gain = (2 * right - wrong) / 2
    assert found["choosing"]["against_reference"][0] == pytest.approx(gain, abs=0.1)
    assert found["choosing"]["against_plain"][0] == pytest.approx(gain - 0.5, abs=0.1)
    cells = found["sources"]
    assert cells["clean"]["clean labels"]["mean"] == pytest.approx(2, abs=0.15)
    assert cells["clean"]["wrong labels"]["mean"] == pytest.approx(-1, abs=0.15)
    assert cells["rmix all"]["clean labels"]["mean"] == pytest.approx(4, abs=0.15)
    assert cells["rmix all"]["clean labels"]["tasks"] == tasks / 2
    assert cells["mixup all"]["clean labels"] == {"mean": None, "interval": None, "tasks": 0}
    text = markdown(found)
    assert "| mixup all | (0 tasks) | (0 tasks) | (0 tasks) |" in text
    assert "2000 tasks (0 slow ones, 2000 from two seeds), 10,000 trainings" in text
    assert len(picture(lines).axes) == len(MENU.sources) + 1


def test_slow_tasks_are_told_apart_and_one_seed_counts_where_there_is_but_one() -> None:
    lines = [
        line(task, seed, kind, action, 50 + shift)
        for task, shift in ((0, 1), (1, 1), (2, 1), (FIRST_SLOW, 5), (FIRST_SLOW + 1, 5), (FIRST_SLOW + 2, 5))
        for seed in ((0, 1) if task < FIRST_SLOW else (0,))
        for kind, action, shift in (("reference", REFERENCE, 0), ("plain", PLAIN, shift))
    ]  # fmt: skip
    found = summary(lines)
    assert (found["tasks"], found["slow"], found["twice"], found["trainings"]) == (6, 3, 3, 18)
    assert found["plain"]["mean"] == pytest.approx(1), "slow ones are a kind of their own"
    assert found["sources"]["clean"]["slow"] == {"mean": pytest.approx(5), "interval": pytest.approx(0), "tasks": 3}
    assert found["choosing"]["against_reference"][0] == pytest.approx(1), "of the tasks that were trained twice"


def test_a_task_whose_first_reference_has_not_finished_does_not_count() -> None:
    lines = [
        line(task, seed, kind, action, 50)
        for task in range(4) for seed in (0, 1) for kind, action in (("reference", REFERENCE), ("plain", PLAIN))
        if (task, seed, kind) != (3, 0, "reference")
    ]  # fmt: skip
    assert summary(lines)["tasks"] == 3


def test_trainings_of_one_task_are_one_value_of_a_source() -> None:
    other = [action for action in MENU.actions() if action[0] == MENU.find(MixPolicy({"rmix": 1.0}))[0]]
    lines = [
        line(task, seed, kind, action, 50 + task)
        for task in range(4) for seed in (0, 1) for kind, action in (("reference", REFERENCE), ("plain", PLAIN))
    ]  # fmt: skip
    lines += [line(task, 0, "fixed", action, 53 + task) for task in range(4) for action in other[:1]]
    lines += [line(0, 0, "fixed", other[1], 55)]
    cell = summary(lines)["sources"]["rmix all"]["clean labels"]
    assert cell == {"mean": None, "interval": None, "tasks": 2}
    even = summary([{**entry, "task_drawn": {**entry["task_drawn"], "label_noise": 0.0}} for entry in lines])
    assert even["sources"]["rmix all"]["clean labels"]["mean"] == pytest.approx((4 + 3 + 3 + 3) / 4)


def test_a_few_tasks_say_nothing() -> None:
    lines = [line(0, seed, kind, action, 50) for seed in (0, 1) for kind, action in (("plain", PLAIN),)]
    assert "at least 3 are needed" in markdown(summary(lines))
    picture(lines)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, 8) if isinstance(value, float) else value


def test_the_committed_summary_follows_from_the_committed_log() -> None:
    folder = Path(__file__).parents[2] / "experiments/results/family"
    written = json.loads((folder / "results.json").read_text())
    found = json.loads(json.dumps(summary(LineLog(folder / "episodes.jsonl").read())))
    assert {name: rounded(written[name]) for name in found} == rounded(found)
    assert (folder / "results.md").read_text() == markdown(written)
