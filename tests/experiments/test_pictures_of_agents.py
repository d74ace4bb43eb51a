"""What the agent does on some tasks, and how it learned: files and pictures that follow from what was played."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlmix.agent.agent import Agent
from rlmix.agent.decisions import probabilities_of
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.envs import ImageLibrary, Task, TaskTrainer
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad import draw_agent
from rlmix.experiments.studies.contest.contest_results import ALL
from rlmix.experiments.studies.task_family import learning_curves


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "agent"
    folder.mkdir()
    to_agent(new_policy(MENU, [8]), MENU, SEGMENTS, {}).save(folder)
    return folder


def test_schedules_are_what_the_agent_chose(agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"model": "search", "batch_size": 20}
    tasks = {
        "easy": Task(100, 20, 0.0, 1, dataset="digits", image_size=8, options=options),
        "few images": Task(50, 20, 0.4, 2, dataset="digits", image_size=8, options=options),
    }
    monkeypatch.setattr(draw_agent, "TASKS", tasks)
    draw_agent.main(["--data", str(tmp_path), "--agent", str(agent), "--out", str(tmp_path / "out")])
    trainer = TaskTrainer(training=TrainConfig(device="cpu"), library=ImageLibrary({"digits": "digits"}))
    for name, task in tasks.items():
        schedule = PolicySchedule.load(tmp_path / "out" / f"{name.replace(' ', '-')}.json")
        chooser = Agent.load(agent)
        env = chooser.environment(trainer, task)
        actions = chooser.play(env, task, 0)
        assert [policy for _, policy in schedule.segments] == [MENU.policy(action) for action in actions]
        told = probabilities_of(schedule)
        assert told is not None
        for one, action in zip(told, actions, strict=True):
            assert max(one["source"], key=lambda choice: one["source"][choice]) == MENU.names("source")[action[0]]
        assert schedule.provenance["validation_accuracy"] == trainer.trainer.evaluate("validation").accuracy
    assert (tmp_path / "out" / "choices.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_choices_are_the_shipped_agents() -> None:
    folder = Path(__file__).parents[2] / "experiments/results/choices"
    assert {file.stem for file in folder.glob("*.json")} == {name.replace(" ", "-") for name in draw_agent.TASKS}
    for file in folder.glob("*.json"):
        assert PolicySchedule.load(file).provenance["agent_sha256"] == Agent.load("shipped").checksum


def run_folder(folder: Path, seed: int, returns: list[float]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"seed": seed}}))
    lines = [json.dumps({"task": seed, "rewards": [0.0, value]}) for value in returns]
    (folder / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_curves_are_means_of_updates_with_a_students_band(tmp_path: Path, capsys: Any) -> None:
    random = np.random.default_rng(0)
    values = [random.normal(0, 1, 40) + np.arange(40) / 20 for _ in range(3)]
    runs = [run_folder(tmp_path / f"run{seed}", seed, own.tolist()) for seed, own in enumerate(values)]
    arguments = ["--episodes-per-update", "8", "--out", str(tmp_path / "out")]
    learning_curves.main(["--runs", *map(str, runs), *arguments])
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert result["episodes"] == [8, 16, 24, 32, 40]
    table = np.array([own.reshape(5, 8).mean(axis=1) for own in values])
    np.testing.assert_allclose([result["searches"][f"seed-{seed}"] for seed in range(3)], table)
    np.testing.assert_allclose(result["mean"], table.mean(axis=0))
    np.testing.assert_allclose(result["half_width"], 4.302653 * table.std(axis=0, ddof=1) / np.sqrt(3), rtol=1e-6)
    gains = table[:, -2:].mean(axis=1) - table[:, :2].mean(axis=1)
    assert result["second_less_first"][0] == pytest.approx(gains.mean())
    for run in runs:
        shutil.rmtree(run)
    before = (tmp_path / "out" / "results.png").read_bytes()
    learning_curves.main(arguments)
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {**again, "command": ""} == {**result, "command": ""}, "the logs are kept"
    assert (tmp_path / "out" / "results.png").read_bytes() == before
    capsys.readouterr()
    with pytest.raises(SystemExit):
        learning_curves.main(["--runs", str(tmp_path), *arguments])
    assert "--runs must be run folders of train_agent.py" in capsys.readouterr().err
    other = run_folder(tmp_path / "other", 5, [0.0] * 40)
    with pytest.raises(SystemExit):
        learning_curves.main(["--runs", str(other), str(other), *arguments])
    assert "--runs must differ in --seed" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("seed-*.jsonl"))) == 3, "what was there stays"


def test_halves_are_compared_task_by_task() -> None:
    """Easy tasks fill the second half, and every task loses one point from one half to the other."""
    random = np.random.default_rng(1)
    ease = {"first": 0.0, "both": 10.0, "also both": 20.0, "second": 40.0}

    def episodes(names: list[str], shift: float) -> list[tuple[str, float]]:
        return [(name, ease[name] + shift) for name in random.permutation(names)]

    early, late = ["first"] * 8 + ["both"] * 3 + ["also both"], ["second"] * 9 + ["both"] + ["also both"] * 2
    found = {
        name: [
            *episodes(early, 0.0),
            *episodes(["first"] * 4, 100.0),
            *episodes(late, shift),
            *episodes(["both"], 90.0),
        ]
        for name, shift in (("seed-0", -1.0), ("seed-1", -2.0))
    }
    result = learning_curves.curves(found, 4)
    assert result["second_less_first"][0] > 10
    assert result["tasks_of_both_halves"] == 4
    assert result["second_less_first_by_task"] == pytest.approx((-1.5, 3.182446 * np.sqrt(1 / 3) / 2), rel=1e-6)
    apart = {name: [(str(number), gained) for number, (_, gained) in enumerate(log)] for name, log in found.items()}
    assert learning_curves.curves(apart, 4)["second_less_first_by_task"] is None


def test_committed_curves_follow_from_the_committed_logs() -> None:
    folder = Path(__file__).parents[2] / "experiments/results/learning"
    result = json.loads((folder / "results.json").read_text())
    together = result["episodes"][0]
    logs = {
        log.stem: learning_curves.returns([json.loads(line) for line in log.read_text().splitlines()])
        for log in sorted(folder.glob("seed-*.jsonl"))
    }
    found = json.loads(json.dumps(learning_curves.curves(logs, together)))
    mean, width = result["second_less_first_by_task"]
    told = f"({mean:+.2f} ± {width:.2f} standard errors over {result['tasks_of_both_halves']} tasks that"
    rehearsed = json.loads((folder / "rehearsal/results.json").read_text())["tables"][0][ALL]["agent_minus"]
    gaps = [rehearsed[f"ppo-{seed}"] for seed in range(len(logs))]
    behind = sorted(f"{gap['mean']:.2f}" for gap in gaps)
    noise = f"(95 % intervals from {min(gap['low'] for gap in gaps):+.2f} to {max(gap['high'] for gap in gaps):+.2f})"
    for page in ("results/README.md", "policies/README.md"):
        text = " ".join((folder.parents[1] / page).read_text().split())
        assert told in text and f"{behind[0]} to {behind[-1]} points behind" in text and noise in text, page
    for name, value in found.items():
        if name == "searches":
            assert list(value) == list(result[name])
            for search, points in value.items():
                np.testing.assert_allclose(points, result[name][search])
        else:
            np.testing.assert_allclose(value, result[name])
