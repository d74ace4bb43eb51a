"""The surrogate's studies: a model from logged trainings, agents that learn in it, and their figures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlmix.agent.agent import Agent
from rlmix.envs.surrogate import SurrogateEnv
from rlmix.envs.surrogate_fit import SurrogateConfig
from rlmix.envs.surrogate_model import SurrogateModel
from rlmix.envs.surrogate_tasks import SPLITS, split_of
from rlmix.experiments.comparison.intervals import format_interval
from rlmix.experiments.search.task_family import MENU, PLAIN, REFERENCE, SEGMENTS, part_of
from rlmix.experiments.studies.surrogate import fidelity, play_agents, rounds, scores, train_agents, train_model
from rlmix.experiments.studies.surrogate.fidelity import distinct, measure_fidelity, repeated_seeds
from rlmix.experiments.studies.surrogate.recordings import (
    GROUPS,
    group_of,
    read_log,
    recorded_tasks,
    recordings,
)
from rlmix.experiments.studies.surrogate.scores import always, groups_of, play, references
from tests.experiments.inline import run_inline

Refused = Callable[[Callable[[Sequence[str]], Any], Sequence[object]], str]
ROOT = Path(__file__).parents[2]
TINY = "--ensemble.members 2 --ensemble.hidden 8 --ensemble.steps 30".split()


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trainings of 30 tasks of the committed log, some of every part."""
    file = tmp_path_factory.mktemp("log") / "episodes.jsonl"
    with open(ROOT / "experiments/results/family/episodes.jsonl") as lines:
        file.write_text("".join(line for line in lines if json.loads(line)["task"] % 1_000_000 < 10))
    return file


@pytest.fixture(scope="module")
def trained(log: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a surrogate of these trainings, with its report."""
    folder = tmp_path_factory.mktemp("surrogate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "EPISODES", 4)
        train_model.main([*TINY, "--logs", str(log), "--model", str(folder), "--out", str(folder)])
    return folder


def test_tasks_are_as_they_were_recorded(log: Path) -> None:
    lines = read_log(log)
    tasks = {task.number: task for task in recorded_tasks(lines)}
    assert {part_of(number) for number in tasks} == {"family", "slow", "bare"}
    assert {split_of(number) for number in tasks} == set(SPLITS)
    for line in lines:
        task = tasks[line["task"]]
        # Known beforehand: whatever is done, every training of a task has the same.
        np.testing.assert_array_equal(task.observations[:, :6], np.array(line["observations"], np.float32)[:, :6])
        assert task.context[0] == line["task_drawn"]["label_noise"]
    twice = [line["validation"] for line in lines if line["task"] == 3 and line["kind"] == "reference"]
    assert len(twice) == 2
    np.testing.assert_allclose(tasks[3].reference, np.mean(twice, axis=0))
    assert all(min(task.scale) > 0.004 for task in tasks.values())
    assert {group_of(task.description) for task in tasks.values()} <= set(GROUPS)


def test_the_command_writes_a_model_and_its_report(trained: Path, log: Path) -> None:
    model = SurrogateModel.load(trained)
    assert (model.menu, model.segments) == (MENU, SEGMENTS)
    assert len(model.tasks) == 30
    report = json.loads((trained / "results.json").read_text())
    lines = read_log(log)
    for split, part in report["splits"].items():
        chosen = distinct([line for line in lines if split_of(line["task"]) == split])
        assert part["trainings"] == len(chosen)
        assert part["tasks"] == len({line["task"] for line in chosen})
    groups = report["groups"].values()
    assert sum(part["trainings"] for part in groups) == report["splits"]["test"]["trainings"]
    assert all(0 <= share <= 1 for part in groups for shares in part["inside"].values() for share in shares)
    text = (trained / "results.md").read_text()
    assert f"{report['splits']['test']['over_tasks']:.3f}" in text and "6 tasks that it has not seen" in text
    assert (trained / "results.png").stat().st_size > 10_000


def test_a_surrogate_that_knows_everything_has_no_error(
    trained: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = read_log(log)
    first = [line for line in reversed(lines) if line["training"] == 0]  # some were recorded again, on another machine
    known = {
        str((one.task, one.actions)): line["validation"] for line, one in zip(first, recordings(first), strict=True)
    }

    def told(model: SurrogateModel, chosen: Sequence[Any], **_: Any) -> Any:
        rows = np.array([known[str((one.task, one.actions))] for one in chosen])
        return np.repeat(rows[:, None], 3, axis=1)

    monkeypatch.setattr("rlmix.experiments.studies.surrogate.fidelity.surrogate_accuracies", told)
    report = measure_fidelity(SurrogateModel.load(trained), lines)
    for part in report["splits"].values():
        assert part["over_tasks"] == pytest.approx(1)
        assert part["within_task"] == pytest.approx(1)
        assert [part[name] for name in ("error", "error_within_task", "bias")] == pytest.approx([0, 0, 0])
        assert all(share == 1 for shares in part["inside"].values() for share in shares)
    expected = {"over_tasks": pytest.approx(1), "same_order": 1.0, "orders": 10}
    assert report["repeated_seeds"]["the surrogate"] == expected
    seeds = repeated_seeds(lines)
    pairs = {}
    for line in lines:
        pairs.setdefault((line["task"], str(line["actions"])), {}).setdefault(line["training"], line["validation"][-1])
    off = [pair[0] - pair[1] for pair in pairs.values() if 1 in pair]
    assert seeds["pairs"] == len(off) == 20
    assert seeds["std"] == pytest.approx(np.sqrt(np.mean(np.square(off)) / 2))


def test_the_same_command_writes_the_same_model(
    trained: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fidelity, "EPISODES", 4)
    train_model.main([*TINY, "--logs", str(log), "--model", str(tmp_path), "--out", str(tmp_path)])
    first, again = (SurrogateModel.load(folder) for folder in (trained, tmp_path))
    for name, tensor in first.ensemble.state.items():
        assert (again.ensemble.state[name] == tensor).all()


def test_reference_scores_are_those_of_the_environment(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "EPISODES", 5)
    model = SurrogateModel.load(trained)
    found = references(model, "test")
    assert found["best fixed"].score.mean() <= found["best fixed of each group"].score.mean() + 2
    everyone = [play(model, "test", always(action)) for action in MENU.actions()]
    for row in range(len(found["random"].score)):
        assert found["oracle: best fixed of each task"].score[row] in [played.score[row] for played in everyone]
    assert len(groups_of(model, "test")) == 6
    # One episode of the first task, by the environment of one game.
    env = SurrogateEnv(model=model, reward="standing")
    first = int(model.tasks.numbers[model.tasks.rows("test")][0])
    returns = []
    for seed in range(5):
        env.reset(seed=200_000_000 + seed, options={"task": first})
        rewards = [env.step(PLAIN)[1] for _ in SEGMENTS]
        returns.append(sum(rewards))
    assert play(model, "test", always(PLAIN)).score[0] == pytest.approx(np.mean(returns), abs=1e-3)


def test_agents_learn_and_can_be_loaded(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "EPISODES", 2)
    arguments = "--seeds 2 --reference-seeds 1 --episodes 256 --reference-episodes 128 --ppo.episodes-per-update 64"
    train_agents.main([*arguments.split(), "--model", str(trained), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "scores.json").read_text())
    assert set(result["curves"]) == {"PPO 0", "PPO 1", "A2C 0", "double DQN 0"}
    assert all(points[0]["episodes"] == 0 for points in result["curves"].values())
    rows = result["test"]["rows"]
    assert rows["PPO"]["seeds"] == 2 and rows["A2C"]["seeds"] == 1
    assert rows["best fixed"]["over_best_fixed"][0] == 0
    assert rows["PPO"]["score"] == pytest.approx(np.mean(rows["PPO"]["scores"]))
    for name in ("ppo-0", "ppo-1", "a2c-0"):
        agent = Agent.load(tmp_path / name)
        assert (agent.menu, agent.segments) == (MENU, SEGMENTS)
        assert agent.provenance["surrogate"] == SurrogateModel.load(trained).provenance
    assert "double DQN" in (tmp_path / "scores.md").read_text()
    assert (tmp_path / "learning.png").stat().st_size > 10_000


def test_real_play_is_compared_with_the_recorded(
    trained: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = read_log(log)
    gain = 0.125

    def train(files: Any, checksum: str, number: int, draw: int, *_: Any) -> dict[str, Any]:
        base = next(line for line in lines if line["task"] == number and line["kind"] == "plain")
        better = [*base["validation"][:-1], base["validation"][-1] + gain]
        return {**base, "kind": "played", "agent": checksum, "draw": draw, "validation": better}

    monkeypatch.setattr(play_agents, "train", train)
    played = run_inline(monkeypatch)
    arguments = ["--tasks", "4", "--log", str(log), "--model", str(trained), "--out", str(tmp_path)]
    play_agents.main(arguments)
    result = json.loads((tmp_path / "played.json").read_text())
    assert len(result["tasks"]) == len(played) == 4
    assert all(split_of(number) == "test" for number in result["tasks"])
    (entry,) = result["agents"].values()
    assert entry["plain"]["validation"][0] == pytest.approx(gain)
    assert entry["plain"]["development"][0] == entry["plain"]["surrogate"][0] == 0
    reference = [
        next(line for line in lines if line["task"] == number and line["kind"] == kind)["validation"][-1]
        for kind in ("plain", "reference")
        for number in result["tasks"]
    ]
    expected = gain + np.mean(reference[:4]) - np.mean(reference[4:])
    assert entry["reference"]["validation"][0] == pytest.approx(expected)
    play_agents.main(arguments)
    assert len(played) == 4, "what has finished does not run again"
    # Such a log is one that the surrogate learns from.
    assert len(recordings(read_log(tmp_path / "episodes.jsonl"))) == 4


def test_rounds_learn_from_what_their_agents_played(
    trained: Path, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "EPISODES", 2)
    monkeypatch.setattr(fidelity, "EPISODES", 4)
    monkeypatch.setattr(rounds, "SHIPPED", str(trained))
    lines, gains = read_log(log), iter(range(100))

    def train(files: Any, checksum: str, number: int, draw: int, *_: Any) -> dict[str, Any]:
        base = next(line for line in lines if line["task"] == number and line["kind"] == "plain")
        better = [*base["validation"][:-1], base["validation"][-1] + next(gains) / 1000]
        return {**base, "kind": "played", "agent": checksum, "draw": draw, "validation": better}

    monkeypatch.setattr(play_agents, "train", train)
    played = run_inline(monkeypatch)
    learned: list[tuple[str, ...]] = []
    fit = train_model.train

    def fit_small(config: train_model.ModelConfig, made_by: str) -> None:
        learned.append(config.logs)
        fit(replace(config, ensemble=SurrogateConfig(members=2, hidden=8, steps=30)), made_by)

    monkeypatch.setattr(train_model, "train", fit_small)
    firsts = [str(ROOT / f"experiments/results/surrogate/agents/ppo-{seed}") for seed in range(2)]
    arguments = ["--agents", *firsts, *"--rounds 2 --tasks 2 --recorded 3 --episodes 1024".split()]
    arguments += ["--log", str(log), "--out", str(tmp_path)]
    rounds.main(arguments)
    assert len(played) == 2 * (2 + 3) * 2 + 2 * 2
    result = json.loads((tmp_path / "rounds.json").read_text())
    base = result["rounds"][0]["trainings"]
    assert [row["trainings"] for row in result["rounds"]] == [base, base + 6, base + 12]
    assert [len(logs) for logs in learned] == [2, 3]
    # Every task's gain over plain is known: the mean of its two agents', then over tasks.
    text = (tmp_path / "1/played/played.json").read_text()
    entries = [entry["plain"]["by_task"] for entry in json.loads(text)["agents"].values()]
    expected = 100 * np.mean([[entry[task][1] for task in entry] for entry in entries])
    assert result["rounds"][1]["really_less_plain"][0] == pytest.approx(expected)
    assert (tmp_path / "rounds.md").read_text().count("\n| ") == 4
    rounds.main(arguments)
    assert len(played) == 24 and len(learned) == 2, "what is finished is not done again"


@pytest.mark.parametrize(
    ("main", "option", "named"),
    [
        (train_model.main, "--seed -1", "seed must be at least 0, got -1"),
        (train_model.main, "--logs no_such.jsonl", "no_such.jsonl"),
        (train_model.main, "--ensemble.members 0", "members must be at least 1"),
        (train_agents.main, "--seeds 0", "seeds must be at least 1, got 0"),
        (train_agents.main, "--episodes 0", "episodes must be at least 1, got 0"),
        (train_agents.main, "--model no/such", "no/such"),
        (play_agents.main, "--tasks 1", "tasks must be at least 2, got 1"),
        (play_agents.main, "--tasks 99", "--tasks must be at most 62"),
        (play_agents.main, "--agents no/such", "no/such"),
        (rounds.main, "--rounds -1", "rounds must be at least 0, got -1"),
        (rounds.main, "--agents no/such", "no/such"),
    ],
)
def test_refuses_what_cannot_be_done(main: Any, option: str, named: str, refused: Refused) -> None:
    assert named in refused(main, [*option.split(), "--out", "there"])


def test_the_shipped_model_has_the_recorded_tasks() -> None:
    model = SurrogateModel.load()
    assert (model.menu, model.segments, len(model.tasks)) == (MENU, SEGMENTS, 310)
    counts = {split: len(model.tasks.rows(split)) for split in SPLITS}
    assert counts == {"train": 217, "validation": 31, "test": 62}
    # It has learned: mixing on wrong labels pays, and the reference is level with itself.
    reference, plain = (play(model, "test", always(action)) for action in (REFERENCE, PLAIN))
    assert abs(reference.accuracy.mean() - model.tasks.reference[model.tasks.rows("test"), -1].mean()) < 0.01
    noisy = groups_of(model, "test") == "wrong labels"
    assert (reference.accuracy - plain.accuracy)[noisy].mean() > 0


def test_the_documents_show_the_committed_rounds() -> None:
    page = (ROOT / "docs/surrogate.md").read_text()
    rounds_made = json.loads((ROOT / "experiments/results/surrogate/rounds/rounds.json").read_bytes())["rounds"]
    for number, row in enumerate(rounds_made):
        real, told = (format_interval(*row[f"{of}_less_reference"], signed=True) for of in ("really", "told"))
        each = row["by_agent_less_reference"]
        shown = f"| {number} | {row['trainings']:,} | {real} | {told} | {min(each):+.2f} to {max(each):+.2f} |"
        assert shown in page
