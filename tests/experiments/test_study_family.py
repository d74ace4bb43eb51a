"""The study of the family of tasks: which trainings a task gets, and what they say."""

import json
import math
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from rlmix.agent.ppo import bias_action_head, new_policy, to_agent
from rlmix.classifier.files import LineLog
from rlmix.classifier.mixing import MixPolicy
from rlmix.envs.observation import observation_space
from rlmix.experiments.search.task_family import MENU, PARTS, PLAIN, REFERENCE, SEGMENTS, part_of
from rlmix.experiments.studies.task_family import collect, recording
from rlmix.experiments.studies.task_family.collect import DRAWN, FIXED, LOOKING, SWITCHING, TWICE, plans
from rlmix.experiments.studies.task_family.summary import markdown, plot_family, summarise_family
from tests.experiments.inline import run_inline

GOOD = MENU.find(MixPolicy({"rmix": 1.0}))


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
            assert changes <= (plan.kind in ("switching", "looking"))
            if plan.kind == "looking":
                assert plan.actions[0] in (PLAIN, REFERENCE) and len(set(plan.actions[1:])) == 1
            assert plan.training == 0 or plan.kind in ("reference", "plain")
    assert plans(0) != plans(1)
    counts = Counter(plan.kind for task in range(30) for plan in plans(task))
    assert 0.8 * 30 * FIXED <= counts["fixed"] <= 30 * FIXED
    assert 0.9 * 30 * SWITCHING <= counts["switching"] <= 30 * SWITCHING
    assert 0.8 * 30 * LOOKING <= counts["looking"] <= 30 * LOOKING


class Recorded:
    """An environment that trains nothing: it keeps what was done to it."""

    def __init__(self) -> None:
        self.done: list[tuple[int, ...]] = []
        random = np.random.default_rng(0)
        self.task_trainer = SimpleNamespace(measure=lambda splits: dict.fromkeys(splits, float(random.random())))

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.done = []
        return self._seen(), {}

    def step(self, action: tuple[int, ...]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.done.append(action)
        over = len(self.done) == len(SEGMENTS)
        return self._seen(), 0.0, over, False, {"validation_accuracy": 0.5, "diverged": False}

    def _seen(self) -> Any:
        return np.full(observation_space(MENU).shape, len(self.done) / len(SEGMENTS), dtype=np.float32)


def test_an_agent_draws_once_and_once_again_and_its_draws_are_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env, tasks = Recorded(), 60
    parts: list[str] = []
    monkeypatch.setattr(recording, "shared_environment", lambda part, *_: parts.append(part) or env)
    run_inline(monkeypatch)
    for folder, probability in (("sure", 0.9999), ("open", None)):
        policy = new_policy(MENU, [8])
        if probability is not None:
            bias_action_head(policy, GOOD, MENU.sizes, probability)
        (tmp_path / folder).mkdir()
        to_agent(policy, MENU, SEGMENTS, {}).save(tmp_path / folder)
        counts = ["--tasks", str(tasks - 2), "--slow", "1", "--bare", "1"]
        arguments = [*counts, "--agent", str(tmp_path / folder), "--out", str(tmp_path / "study")]
        collect.main(arguments)
    lines = LineLog(tmp_path / "study/episodes.jsonl").read()
    assert parts == [part_of(line["task"]) for line in lines] and set(parts) == set(PARTS)
    by_agent: dict[str, list[Any]] = {}
    for entry in lines:
        if entry["kind"] == "drawn":
            by_agent.setdefault(entry["agent"], []).append([tuple(action) for action in entry["actions"]])
    sure, free = by_agent.values()
    assert len(sure) == len(free) == DRAWN * tasks
    assert sum(set(actions) == {GOOD} for actions in sure) > 0.98 * len(sure)
    places = Counter(
        next(place for place in range(1, len(SEGMENTS)) if actions[place] != actions[place - 1])
        for actions in free
        if len(set(actions)) > 1
    )
    assert sum(places.values()) > 0.8 * len(free), "a new agent draws nearly evenly among 16 actions"
    assert set(places) == set(range(1, len(SEGMENTS))), "it draws again after any segment"
    assert all(sum(one != other for one, other in pairwise(actions)) <= 1 for actions in free)
    count = len(lines)
    collect.main(arguments)
    assert len(LineLog(tmp_path / "study/episodes.jsonl").read()) == count, "what has finished is not run again"


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
    found = summarise_family(lines)
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
    text = re.sub(" +", " ", markdown(found))
    assert "| mixup all | (0 tasks) | (0 tasks) | (0 tasks) | (0 tasks) |" in text
    assert (
        "2000 tasks (0 slow ones, 0 of a network without normalisation, 2000 from two seeds), 10,000 trainings" in text
    )
    assert len(plot_family(lines).axes) == len(MENU.sources) + 1


def test_parts_are_told_apart_and_one_seed_counts_where_there_is_but_one() -> None:
    slow, bare = PARTS["slow"].first, PARTS["bare"].first
    lines = [
        line(first + number, seed, kind, action, 50 + shift)
        for first, shift in ((0, 1), (slow, 5), (bare, 7))
        for number in range(3)
        for seed in ((0, 1) if first == 0 else (0,))
        for kind, action, shift in (("reference", REFERENCE, 0), ("plain", PLAIN, shift))
    ]  # fmt: skip
    found = summarise_family(lines)
    assert [found[name] for name in ("tasks", "slow", "bare", "twice", "trainings")] == [9, 3, 3, 3, 24]
    assert found["plain"]["mean"] == pytest.approx(1), "the others are kinds of their own"
    for kind, shift in (("slow", 5), ("bare", 7)):
        assert found["sources"]["clean"][kind] == {
            "mean": pytest.approx(shift),
            "interval": pytest.approx(0),
            "tasks": 3,
        }
    assert found["choosing"]["against_reference"][0] == pytest.approx(1), "of the tasks that were trained twice"


def test_a_task_whose_first_reference_has_not_finished_does_not_count() -> None:
    lines = [
        line(task, seed, kind, action, 50)
        for task in range(4) for seed in (0, 1) for kind, action in (("reference", REFERENCE), ("plain", PLAIN))
        if (task, seed, kind) != (3, 0, "reference")
    ]  # fmt: skip
    assert summarise_family(lines)["tasks"] == 3


def test_trainings_of_one_task_are_one_value_of_a_source() -> None:
    other = [action for action in MENU.actions() if action[0] == MENU.find(MixPolicy({"rmix": 1.0}))[0]]
    lines = [
        line(task, seed, kind, action, 50 + task)
        for task in range(4) for seed in (0, 1) for kind, action in (("reference", REFERENCE), ("plain", PLAIN))
    ]  # fmt: skip
    lines += [line(task, 0, "fixed", action, 53 + task) for task in range(4) for action in other[:1]]
    lines += [line(0, 0, "fixed", other[1], 55)]
    cell = summarise_family(lines)["sources"]["rmix all"]["clean labels"]
    assert cell == {"mean": None, "interval": None, "tasks": 2}
    even = summarise_family([{**entry, "task_drawn": {**entry["task_drawn"], "label_noise": 0.0}} for entry in lines])
    assert even["sources"]["rmix all"]["clean labels"]["mean"] == pytest.approx((4 + 3 + 3 + 3) / 4)


def test_a_few_tasks_say_nothing() -> None:
    lines = [line(0, seed, kind, action, 50) for seed in (0, 1) for kind, action in (("plain", PLAIN),)]
    assert "at least 3 are needed" in markdown(summarise_family(lines))
    plot_family(lines)


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, 8) if isinstance(value, float) else value


def test_the_committed_summary_follows_from_the_committed_log() -> None:
    folder = Path(__file__).parents[2] / "experiments/results/family"
    written = json.loads((folder / "results.json").read_text())
    found = json.loads(json.dumps(summarise_family(LineLog(folder / "episodes.jsonl").read())))
    assert {name: rounded(written[name]) for name in found} == rounded(found)
    assert (folder / "results.md").read_text() == markdown(written)
