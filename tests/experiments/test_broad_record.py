"""Recording of broad tasks, and what estimates of wrong labels are worth."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlmix.agent.agent import Agent
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.envs import BroadTasks, Source, Task
from rlmix.envs.observation import RECORDED_FEATURES
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import logs, record
from rlmix.experiments.studies.broad.wrong_labels import FITTED, SEEN, measured, scores

EARLIER = Path(__file__).parents[2] / "experiments/policies/fashion"  # sees other features


def test_every_task_is_trained_plainly_under_two_fixed_and_two_changing_policies() -> None:
    for number in range(40):
        planned = record.plans(number)
        assert planned == record.plans(number)
        assert [plan.training for plan in planned] == [0, 1, 2, 3, 4]
        assert [len(plan.policies) for plan in planned] == [len(SEGMENTS)] * 5
        plain, one, other, switching, _ = [plan.policies for plan in planned]
        assert MENU.policy(record.CHOICES[plain[0]]).shares == {"clean": 1.0}
        assert [len(set(policies)) for policies in (plain, one, other)] == [1, 1, 1]
        assert len({plain, one, other}) == 3
        changes = [before != after for before, after in pairwise(switching)]
        assert sum(changes) <= 1
    assert len({plan.policies for number in range(40) for plan in record.plans(number)}) > 80


def test_tasks_to_rehearse_on_are_trained_under_every_policy() -> None:
    planned = record.every_policy(7)
    assert planned[0] == record.plans(7)[0]
    assert [plan.training for plan in planned] == list(range(len(MENU.actions())))
    assert {plan.policies for plan in planned} == {(choice,) * len(SEGMENTS) for choice in range(len(MENU.actions()))}


def test_usual_tasks_are_also_trained_plainly_at_first() -> None:
    start = record.CHOICES.index(record.PLAIN)
    for number in range(40):
        planned = record.usual_plans(number)
        assert planned == record.usual_plans(number) and planned[:3] == record.plans(number)[:3]
        assert [plan.kind for plan in planned] == ["plain", "fixed", "fixed", "later", "later", "switching"]
        assert [plan.training for plan in planned] == list(range(6))
        for plan in planned[3:5]:
            place = next(place for place, choice in enumerate(plan.policies) if choice != start)
            assert place in (1, 2) and len(set(plan.policies[place:])) == 1 and len(plan.policies) == len(SEGMENTS)
        assert planned[3].policies[-1] != planned[4].policies[-1]


def test_a_line_says_what_the_training_was_and_how_it_ended() -> None:
    tasks = BroadTasks((Source("digits", (80,) * 10, False),), seed=5, updates=(10, 10), seconds=1.5)
    places = (("digits", "digits"),)
    plan = record.plans(3)[0]
    line = json.loads(json.dumps(record.record(plan, tasks, places, "fp32")))
    assert Task(**line["task_drawn"]) == tasks.task(3) and line["wrong"] == tasks.task(3).label_noise
    names = RECORDED_FEATURES[record.BEFOREHAND :]
    rows = [dict(zip(names, row, strict=True)) for row in line["rows"]]
    assert len(line["known"]) == record.BEFOREHAND and len(rows) == len(SEGMENTS) + 1
    assert [row["progress"] for row in rows] == pytest.approx([0, *SEGMENTS], abs=0.06)
    classes = len(line["task_drawn"]["classes"])
    expected = [(accuracy - 1 / classes) / (1 - 1 / classes) for accuracy in line["validation"]]
    assert [row["validation_way"] for row in rows[1:]] == pytest.approx(expected, abs=2e-3)
    trainer = record.shared_trainer(places, "fp32")
    assert line["development"] == pytest.approx(trainer.measure(["development"])["development"], abs=1e-4)
    again = json.loads(json.dumps(record.record(plan, tasks, places, "fp32")))
    assert {**again, "seconds": 0} == {**line, "seconds": 0}
    assert "task_drawn" not in record.record(record.plans(3)[1], tasks, places, "fp32")


def test_data_are_found_as_zip_or_folder(tmp_path: Path) -> None:
    (tmp_path / "pacs").mkdir()
    (tmp_path / "mnist.zip").touch()
    found = record.data_places(str(tmp_path), ["fashion_mnist", "pacs", "mnist"])
    assert found == {
        "fashion_mnist": "fashion_mnist",
        "pacs": str(tmp_path / "pacs"),
        "mnist": str(tmp_path / "mnist.zip"),
    }
    with pytest.raises(ValueError, match=r"cifar10\.zip"):
        record.data_places(str(tmp_path), ["cifar10"])


def logged(task: int, dataset: str, wrong: float, random: np.random.Generator) -> dict[str, Any]:
    values = dict.fromkeys(RECORDED_FEATURES, 0.5) | {"contradicted": wrong / 2, "hump_share": random.random()}
    known, row = [values[name] for name in RECORDED_FEATURES[:4]], [values[name] for name in RECORDED_FEATURES[4:]]
    return {
        "task": task,
        "task_drawn": {"dataset": dataset},
        "known": known,
        "rows": [row] * 3,
        "wrong": wrong,
        "diverged": False,
    }


def test_estimates_are_judged_on_data_sets_that_they_have_not_seen() -> None:
    random = np.random.default_rng(0)
    lines = [logged(task, "ab"[task % 2], round(random.uniform(0, 0.6), 3), random) for task in range(200)]
    meaning = {"known": RECORDED_FEATURES[:4], "rows": RECORDED_FEATURES[4:]}
    results = {(result["dataset"], result["estimate"]): result for result in measured(lines, meaning, 1)}
    assert set(SEEN) <= set(RECORDED_FEATURES)
    for name in ("a", "b", "all"):
        assert results[name, "contradicted"]["correlation"] == pytest.approx(1)
        assert abs(results[name, "hump_share"]["correlation"]) < 0.3
        assert results[name, FITTED]["error"] < 0.03 and results[name, FITTED]["correlation"] > 0.95
    # A data set whose signs mean something else shows in its own row alone.
    strange = [{**line, "wrong": 0.6 - line["wrong"]} if line["task"] % 2 else line for line in lines]
    results = {(result["dataset"], result["estimate"]): result for result in measured(strange, meaning, 1)}
    assert results["b", FITTED]["correlation"] < -0.9 and results["a", FITTED]["correlation"] < -0.9
    assert scores(np.array([0.1, 0.3]), np.array([0.1, 0.1]))["within"] == 0.5


def always(choice: int) -> Agent:
    """An agent that surely takes one action, and sees what any loop shows."""
    policy = new_policy(MENU, [8], logs.FEATURES)
    with torch.no_grad():
        policy.action_net.weight.zero_()
        policy.action_net.bias.fill_(-50.0)
        first = 0
        for place, size in zip(MENU.actions()[choice], MENU.sizes, strict=True):
            policy.action_net.bias[first + place] = 50.0
            first += size
    return to_agent(policy, MENU, SEGMENTS, {}, logs.FEATURES)


def test_what_an_agent_plays_is_recorded_as_its_policies_are(tmp_path: Path, refused: Any) -> None:
    tasks = BroadTasks((Source("digits", (80,) * 10, False),), seed=5, updates=(10, 10), seconds=1.5)
    places = (("digits", "digits"),)
    chooser = always(6)
    _, played = record.played_plans([chooser], 3)
    line = record.record(played, tasks, places, "fp32")
    plan = record.TrainingPlan(3, 1, "fixed", (6,) * len(SEGMENTS))
    given = record.record(plan, tasks, places, "fp32")
    assert line["policies"] == [6] * len(SEGMENTS) and line["agent"] == chooser.checksum
    for name in ("rows", "known", "validation", "development"):
        assert line[name] == given[name]
    (led,) = record.led_plans([chooser], 3)
    line = record.record(led, tasks, places, "fp32")
    assert (led.training, line["kind"], line["policies"]) == (len(record.CHOICES), "led", [6] * len(SEGMENTS))
    assert line["development"] == given["development"] and line["agent"] == chooser.checksum
    assert record.plans_of("rehearse-usual", [chooser], 3) == [*record.every_policy(3), led]
    chooser.save(tmp_path)
    asked = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert "--agents belong to --group played" in refused(record.main, [*asked, "--agents", str(tmp_path)])
    assert "expected --agents, whose draws are recorded" in refused(record.main, [*asked, "--group", "played"])
    other = refused(record.main, [*asked, "--group", "played", "--agents", EARLIER])
    assert f"expected agents of recorded features, got {EARLIER}" in other and "log_train_size" in other
