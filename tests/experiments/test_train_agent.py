"""The search as a user runs it: what it leaves, what it refuses, and that stopping it changes nothing."""

import gc
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from stable_baselines3.common.vec_env import DummyVecEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.transforms.functional import to_pil_image

from rlmix.agent.agent import Agent
from rlmix.agent.decisions import probabilities_of
from rlmix.agent.replay import to_schedule
from rlmix.agent.tags import WRITTEN_BY
from rlmix.agent.vec_env import WorkerFailedError
from rlmix.agent.workers import Job, episode_seed
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Menu, MixPolicyEnv, Task
from rlmix.experiments import report, train_agent
from rlmix.experiments.comparison.intervals import verdict
from rlmix.experiments.runs.command import Call
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import DataConfig, DatasetConfig
from rlmix.experiments.search import config, plan, search, selection
from rlmix.experiments.search.config import PRESETS, SearchConfig, TaskTrainConfig
from rlmix.experiments.search.replay_command import replay_command
from rlmix.experiments.training.config import ReplayConfig
from tests import board
from tests.agent.loops import agent
from tests.experiments.explained import help_of, require_explained
from tests.experiments.inline import skip_drawing
from tests.soak.writes import workers_here

# A search of seconds that learns fast enough for its agent to end somewhere else than where it started.
EPISODES, SEGMENTS, PER_ROLLOUT, SEEDS = 8, 4, 4, 2
OPTIONS = (
    "--dataset digits --train-size 100 120 --updates 8 10 --validation-size 100 --tasks 2 --reference-seeds 2 "
    f"--episodes {EPISODES} --ppo.episodes-per-update {PER_ROLLOUT} --ppo.learning-rate 0.03 "
    f"--ppo.start-probability 0.2 --candidate-seeds 2 --contest-seeds {SEEDS} --workers 2"
).split()
CONTESTANTS = ["learned", "its agent, live", "shipped agent, live", "plain", "CutMix half", "random"]
OUTCOME = ["policy.json", "agent.safetensors", "agent.json", "candidates.json", "episodes.jsonl", "trainings.jsonl"]


class Killed(BaseException):
    """Stands for SIGKILL in this process: nothing but `finally` sees it."""


@pytest.fixture
def here(undrawn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of this test run in this process alone, which saves the start of others, and draw nothing."""
    monkeypatch.setattr(search, "ProcessVecEnv", workers_here)


def status_of(arguments: list[str]) -> object:
    """The exit status of a search in this process that stops; its folder is free again."""
    try:
        train_agent.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    gc.collect()  # the lock goes with the folder's last reference
    return status


def outcome(run: Path) -> dict[str, bytes]:
    """Everything that must not depend on when a search was stopped."""
    summary = json.loads((run / "summary.json").read_text())
    del summary["timing"]
    return {**{name: (run / name).read_bytes() for name in OUTCOME}, "summary": json.dumps(summary).encode()}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def offered(run: Path) -> dict[str, Any]:
    """The candidates' schedules by name."""
    candidates: dict[str, Any] = json.loads((run / "candidates.json").read_text())
    return candidates


@pytest.fixture(scope="module")
def user(start: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A search from a folder of the user's own: the run folder, what was printed, and what went to standard error."""
    folder = tmp_path_factory.mktemp("somewhere")
    process: subprocess.Popen[str] = start("train_agent.py", *OPTIONS, "--out", "run", cwd=folder)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return folder / "run", out, err


@pytest.fixture
def run(user: tuple[Path, str, str]) -> Path:
    """The run folder of a finished search; not to be changed."""
    return user[0]


# One rollout of a training in each of four environments, and then a round and a half of them.
FOUR = [*OPTIONS, *"--environments 4 --episodes 4 --candidate-seeds 1 --contest-seeds 1".split()]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a search leaves with four environments, all in this process."""
    folder = tmp_path_factory.mktemp("four")
    with pytest.MonkeyPatch.context() as patch:
        skip_drawing(patch)
        patch.setattr(search, "ProcessVecEnv", workers_here)
        train_agent.main([*FOUR, "--out", str(folder / "run")])
    return outcome(folder / "run")


def test_the_report_shows_contest_and_choices(run: Path) -> None:
    page = unescape((run / "report.html").read_text())
    for name, entry in summary_of(run)["contest"].items():
        assert f">{name}</th><td>{100 * entry['mean']:.2f} ± {100 * entry['interval']:.2f}</td>" in page
    menu = Agent.load(run).menu
    episodes = lines(run / "episodes.jsonl")
    late = episodes[-EPISODES // 4 :]
    assert f"in the last {len(late)} trainings" in page
    schedule = PolicySchedule.load(run / "policy.json")
    for place, (until, policy) in enumerate(schedule.segments):
        share = np.mean([menu.policy(episode["actions"][place]) == policy for episode in late])
        assert f'{100 * until:.3g}\u00a0%</th><td class="text">{policy}</td><td>{100 * share:.0f}</td>' in page
    sources = [episode["actions"][0][0] for episode in late]
    for source, name in enumerate(menu.names("source")):
        share = sources.count(source) / len(late)
        cell = f'>{name}</th><td style="background:color-mix(in srgb,var(--c1) {55 * share:.0f}%,transparent)">'
        assert cell + (f"{100 * share:.0f}</td>" if share else "</td>") in page


def test_the_report_says_what_the_task_is_and_what_the_policy_was_selected_from(run: Path) -> None:
    page = unescape((run / "report.html").read_text())
    assert "8 trainings of the network 'search', each of 8 to 10 updates on 100 to 120 images. The learned" in page
    candidates, kept = summary_of(run)["candidates"], PolicySchedule.load(run / "policy.json").provenance["candidate"]
    assert "The learned policy is " in page and "trained again on 2 fresh seeds" in page
    for name, entry in candidates.items():
        policies = [str(policy) for _, policy in PolicySchedule.from_json(offered(run)[name]).segments]
        row = f'>{name}</th><td class="text">{" → ".join(policies)}</td><td class="text">'
        shown = f"{100 * entry['mean']:.2f} ± {100 * entry['interval']:.2f}"
        assert f"{row}{'kept' if name == kept else ''}</td><td>{shown}</td>" in page
    (caption,) = re.findall("The agent tried this policy there: ([^<]*)<", page)
    menu = Agent.load(run).menu
    drawn = [menu.policy(action) for episode in lines(run / "episodes.jsonl") for action in episode["actions"]]
    assert caption in {str(policy) for policy in drawn if set(policy.shares) != {"clean"}}


def test_the_report_of_an_agent_that_chooses_once(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The most probable policy need not be the one that is kept."""
    options = (
        "--dataset digits --menu family --segments 1 --train-size 100 100 --updates 8 8 --label-noise 0.4 0.4 "
        "--image-size 8 --validation-size 100 --tasks 1 --reference-seeds 2 --episodes 4 --candidate-seeds 2 "
        "--contest-seeds 1 --workers 1 --ppo.episodes-per-update 4"
    )
    run = tmp_path / "run"
    train_agent.main([*options.split(), "--out", str(run)])
    told, page = capsys.readouterr().out, unescape((run / "report.html").read_text())
    task = "8 updates on 100 images of 8 x 8 pixels with 40 % wrong labels"
    assert f"trainings of {task}, 1 worker, " in told and f"each of {task}." in page
    sentence = "The learned policy is one of the agent's 3 most probable ones: each was trained again on 2 fresh seeds"
    assert sentence in told and sentence in page
    schedule = PolicySchedule.load(run / "policy.json")
    for name, entry in summary_of(run)["candidates"].items():
        (row,) = [line for line in told.splitlines() if line.startswith(f"{name} ")]
        assert f"{100 * entry['mean']:.2f} ± {100 * entry['interval']:.2f}" in row
        assert ("kept" in row.split()) == (name == schedule.provenance["candidate"])
        assert row.endswith(entry["policies"][0])


def test_the_command_that_comes_next_trains_on_the_task_that_was_searched(user: tuple[Path, str, str]) -> None:
    _, out, _ = user
    told, explained = out.splitlines()[-2:]
    script = "python experiments/replay_policy.py "
    assert told.strip().startswith(script) and "the largest task that was searched" in explained
    asked = Call("replay_policy", shlex.split(told.strip().removeprefix(script))).parse(ReplayConfig, None)
    data = DataConfig("digits", validation_size=100, train_size=120)
    assert asked == ReplayConfig(policy="run/policy.json", data=data, train=TrainConfig(updates=10))


@pytest.mark.parametrize("name", PRESETS)
def test_the_next_command_names_what_differs_from_its_defaults(name: str) -> None:
    searched = PRESETS[name]
    line, _, explained = replay_command(Path("my runs/policy.json"), searched).partition("\n")
    options = shlex.split(line.removeprefix("python experiments/replay_policy.py "))
    asked = Call("replay_policy", options).parse(ReplayConfig, None)
    largest = searched.train_size[1], searched.updates[1], searched.label_noise[1]
    assert (asked.data.train_size, asked.train.updates, asked.data.label_noise) == largest
    assert replace(asked.train, compile="auto", updates=1000) == TrainConfig(
        model=searched.train.model, batch_size=searched.train.batch_size
    )
    for option in ("dataset", "data_root", "image_size", "validation_size"):
        assert getattr(asked.data, option) == getattr(searched.data, option)
    assert asked.policy == "my runs/policy.json" and ("--dataset" in options) == (name in ("cifar10", "cifar100"))
    assert ("the largest task" in explained) == (name == "family")


def test_options_of_every_kind_are_spelled_as_the_next_command_reads_them() -> None:
    train = TaskTrainConfig(nesterov=False, lr=0.05, lr_points=((0.0, 0.5), (1.0, 0.0)), lr_milestones=(0.25,))
    searched = replace(PRESETS["clean"], train=train, lr_scale=(0.5, 0.5), data=DatasetConfig("a folder/of images"))
    line = replay_command(Path("policy.json"), searched).splitlines()[0]
    options = shlex.split(line.removeprefix("python experiments/replay_policy.py "))
    asked = Call("replay_policy", options).parse(ReplayConfig, None)
    assert asked.data.dataset == "a folder/of images"
    assert (asked.train.nesterov, asked.train.lr) == (False, 0.025)
    assert (asked.train.lr_points, asked.train.lr_milestones) == (train.lr_points, train.lr_milestones)


def test_the_report_shows_the_probabilities_that_the_agent_gave(run: Path, copy: Path) -> None:
    schedule = PolicySchedule.load(run / "policy.json")
    probabilities = probabilities_of(schedule)
    assert probabilities is not None
    page = unescape((run / "report.html").read_text())
    for (until, _), given in zip(schedule.segments, probabilities, strict=True):
        for name, share in given["source"].items():
            start = until - 1 / SEGMENTS
            assert f"<title>source {name} {100 * share:.3g} %, from {100 * start:.3g} to {100 * until:.3g} %<" in page
    assert "with a dot: that of the learned policy" in page and 'class="kept"' in page
    # Searches of before they were kept.
    summary = summary_of(copy)
    del summary["policy"]["provenance"]["probabilities"]
    (copy / "summary.json").write_text(json.dumps(summary))
    report.main(["--run", str(copy)])
    assert "that the agent gave" not in (copy / "report.html").read_text()
    summary["policy"]["provenance"]["probabilities"] = [{"source": {"<script>": 2}}] * SEGMENTS
    (copy / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(SystemExit, match="2"):
        report.main(["--run", str(copy)])


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A copy of the finished search's folder."""
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture
def unfinished(copy: Path) -> Path:
    """A copy of the search's folder as it stood after the last rollout."""
    for name in (*OUTCOME, "summary.json"):
        if name != "episodes.jsonl":
            (copy / name).unlink()
    return copy


# What a search leaves


def test_says_what_was_learned_and_how_to_go_on(user: tuple[Path, str, str]) -> None:
    run, out, err = user
    assert "Traceback" not in err and "Warning" not in err and "error" not in err
    schedule = PolicySchedule.load(run / "policy.json")
    assert "The learned policy" in out
    for until, policy in schedule.segments:
        assert f"until {100 * until:5.1f} %  {policy}" in out
    contest = summary_of(run)["contest"]
    for name in CONTESTANTS:
        row = next(line for line in out.splitlines() if line.startswith(f"{name} "))
        assert f"{100 * contest[name]['mean']:.2f} ± {100 * contest[name]['interval']:.2f}" in row
        if name != "learned":
            difference, width = contest[name]["learned_minus_this"], contest[name]["difference_interval"]
            assert f"{100 * difference:+.2f} ± {100 * width:.2f}" in row
            verdict = "within noise" if abs(difference) <= width else "better" if difference > 0 else "worse"
            assert row.rstrip().endswith(verdict)
    assert "tensorboard --logdir run/tensorboard" in out
    assert "python experiments/replay_policy.py --policy run/policy.json" in out
    assert "the test set is not read" in out


def test_configuration_holds_every_option_and_the_machine(run: Path) -> None:
    written = json.loads((run / "config.json").read_text())
    assert written["kind"] == "agent" and written["command"][1:] == [*OPTIONS, "--out", "run"]
    assert {entry.name for entry in fields(SearchConfig)} == set(written["config"])
    assert written["config"]["workers"] == 2 and "auto" not in written["config"]["train"].values()
    assert {"torch", "processor", "cores", "threads"} <= set(written["machine"])


def test_policy_tells_where_it_comes_from(run: Path) -> None:
    schedule = PolicySchedule.load(run / "policy.json")
    assert [until for until, _ in schedule.segments] == [0.25, 0.5, 0.75, 1.0]
    provenance = schedule.provenance
    expected = {"learned_by": "ppo", "dataset": "digits", "model": "search", "episodes": EPISODES, "seed": 0}
    assert expected.items() <= provenance.items()
    assert provenance["train_size"] == [100, 120] and provenance["updates"] == [8, 10]
    assert PolicySchedule.from_json(offered(run)[provenance["candidate"]]).segments == schedule.segments
    assert_best_is_kept(run)


def test_best_candidate_is_kept(here: None, unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    menu, ends = Menu(), (0.25, 0.5, 0.75, 1.0)
    rolled = [to_schedule([[source, 0, 0, 0]] * 4, menu, ends) for source in (3, 3, 3, 4, 4, 0)]
    monkeypatch.setattr(selection, "greedy_schedules", lambda *_: rolled)
    train_agent.main(["--resume", str(unfinished)])
    assert len(json.loads((unfinished / "candidates.json").read_text())) == 3
    assert_best_is_kept(unfinished)


def assert_best_is_kept(run: Path) -> None:
    provenance = PolicySchedule.load(run / "policy.json").provenance
    means = {
        name: np.mean([e["accuracy"]["validation"] for e in lines(run / "trainings.jsonl")
                       if e["stage"] == "candidates" and e["name"] == name])
        for name in offered(run)
    }  # fmt: skip
    assert {name: entry["mean"] for name, entry in summary_of(run)["candidates"].items()} == pytest.approx(means)
    assert provenance["validation_accuracy"] == pytest.approx(means[provenance["candidate"]])
    assert means[provenance["candidate"]] == max(means.values())


def test_agent_can_be_asked(run: Path) -> None:
    agent = Agent.load(run)
    assert agent.segments == (0.25, 0.5, 0.75, 1.0)
    assert agent.provenance["episodes"] == EPISODES
    env = MixPolicyEnv("digits", tasks={"train_size": (100, 100), "updates": (8, 8)}, reward="change")
    observation, _ = env.reset(seed=0)
    assert env.action_space.contains(np.array(agent.choose(observation)))


def test_every_episode_is_logged_with_its_rewards(run: Path) -> None:
    episodes = lines(run / "episodes.jsonl")
    assert len(episodes) == EPISODES
    references = [json.loads(path.read_text()) for path in (run / "references").iterdir()]
    assert len(references) == 2  # one for each task
    for worker in range(2):
        own = [episode for episode in episodes if episode["worker"] == worker]
        assert [episode["number"] for episode in own] == list(range(EPISODES // 2))
        assert [e["seed"] for e in own] == [episode_seed(0, "search", worker, e["number"]) for e in own]
    for episode in episodes:
        reference = next(entry for entry in references if episode["task"] in entry["key"])
        scores = (np.array(episode["validation_accuracy"]) - reference["accuracies"]) / np.array(reference["scales"])
        assert len(episode["actions"]) == len(episode["rewards"]) == SEGMENTS
        rewards = np.diff(scores.clip(-10, 10), prepend=0)
        assert episode["rewards"] == pytest.approx(rewards.tolist(), abs=2e-6)
        assert not episode["diverged"]


def test_logged_episode_can_be_had_again(run: Path) -> None:
    episode = lines(run / "episodes.jsonl")[-1]
    search, _ = plan.resolve(asked(OPTIONS))
    env = MixPolicyEnv(**{**search.environment(None), "reward": "change"})
    env.reset(seed=episode["seed"])
    accuracies = [env.step(action)[4]["validation_accuracy"] for action in episode["actions"]]
    assert accuracies == episode["validation_accuracy"]


def test_contest_follows_from_its_trainings(run: Path) -> None:
    trainings = [entry for entry in lines(run / "trainings.jsonl") if entry["stage"] == "comparison"]
    assert [entry["name"] for entry in trainings] == CONTESTANTS * SEEDS
    found = {
        name: np.array([entry["accuracy"]["development"] for entry in trainings if entry["name"] == name])
        for name in CONTESTANTS
    }
    contest = summary_of(run)["contest"]
    assert list(contest) == CONTESTANTS
    for name, values in found.items():
        entry = contest[name]
        assert entry["accuracies"] == values.tolist()
        low, high = stats.t.interval(0.95, SEEDS - 1, loc=values.mean(), scale=stats.sem(values))
        assert (entry["mean"] - entry["interval"], entry["mean"] + entry["interval"]) == pytest.approx((low, high))
        gaps = found["learned"] - values
        assert entry["learned_minus_this"] == pytest.approx(gaps.mean())
        if gaps.any():
            interval = stats.ttest_rel(found["learned"], values).confidence_interval(0.95)
            assert entry["difference_interval"] == pytest.approx((interval.high - interval.low) / 2)
        else:
            assert entry["difference_interval"] == 0
    learned = PolicySchedule.load(run / "policy.json")
    assert all(
        PolicySchedule.from_json(entry["schedule"]).segments == learned.segments
        for entry in trainings
        if entry["name"] == "learned"
    )


def test_contest_is_fair_and_fresh(run: Path) -> None:
    trainings = lines(run / "trainings.jsonl")
    contest = [entry for entry in trainings if entry["stage"] == "comparison"]
    rounds = [contest[start : start + len(CONTESTANTS)] for start in range(0, len(contest), len(CONTESTANTS))]
    for entries in rounds:  # the same images and seed for everybody
        assert all((e["task"], e["seed"]) == (entries[0]["task"], entries[0]["seed"]) for e in entries)
    images = [entries[0]["task"]["data_seed"] for entries in rounds]
    seeds = [entries[0]["seed"] for entries in rounds]
    assert len(set(images)) == len(set(seeds)) == SEEDS
    seen = [e["task"]["data_seed"] for e in lines(run / "episodes.jsonl")]
    used = [e["seed"] for e in trainings if e["stage"] == "candidates"] + [
        e["seed"] for e in lines(run / "episodes.jsonl")
    ]
    assert not set(images) & set(seen) and not set(seeds) & set(used)


def test_tensorboard_shows_the_search(run: Path) -> None:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    board.charts(run / "tensorboard")
    assert board.written(run / "tensorboard") == WRITTEN_BY["search"]
    scalars = set(events.Tags()["scalars"])
    assert {"learning_curve/return_mean", "validation/accuracy_mean", "train/loss"} <= scalars
    steps = [event.step for event in events.Scalars("learning_curve/return_mean")]
    assert steps == [PER_ROLLOUT * SEGMENTS * (number + 1) for number in range(EPISODES // PER_ROLLOUT)]
    episodes = lines(run / "episodes.jsonl")[:PER_ROLLOUT]
    first = np.mean([sum(episode["rewards"]) for episode in episodes])
    assert events.Scalars("learning_curve/return_mean")[0].value == pytest.approx(first, abs=1e-4)
    for tag in ("comparison/text_summary", "learned_policy/text_summary"):
        assert tag in events.Tags()["tensors"]
    assert {"policy/over_the_search", "policy/over_training_progress"} <= set(events.Tags()["images"])


# Stopping and going on


def test_workers_do_not_change_the_search(here: None, run: Path, tmp_path: Path) -> None:
    train_agent.main([*OPTIONS, "--out", str(tmp_path / "here")])
    assert outcome(tmp_path / "here") == outcome(run)


@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_results_depend_on_the_environments_and_not_on_the_processes_that_hold_them(
    undrawn: None, workers: int, four: dict[str, bytes], tmp_path: Path
) -> None:
    train_agent.main([*FOUR, "--workers", str(workers), "--out", str(tmp_path / "run")])
    assert outcome(tmp_path / "run") == four


def test_killed_at_any_write_and_resumed(
    here: None, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every result is on the disk when `fsync` returns: kills there stand for those at any moment."""
    draw, synchronise = random.Random(0), os.fsync
    left = 0

    def fsync(file: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        synchronise(file)

    monkeypatch.setattr(os, "fsync", fsync)
    arguments, kills = [*OPTIONS, "--out", str(tmp_path / "run")], 0
    while True:
        # config.json is there after 2; what a start repeats takes 2 in the search and about 10 after it.
        left = draw.randint(12, 20) if (tmp_path / "run/agent.json").exists() else draw.randint(3, 9)
        try:
            train_agent.main(arguments)
            break
        except Killed:
            kills += 1
        gc.collect()  # the lock goes with the folder's last reference
        arguments = ["--resume", str(tmp_path / "run")]
    assert kills >= 6
    assert outcome(tmp_path / "run") == outcome(run)


@pytest.mark.slow
def test_killed_and_interrupted_as_by_a_user(
    start: Any,
    wait_until: Any,
    members: Any,
    here: None,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    process = start("train_agent.py", *OPTIONS, "--out", "run", cwd=tmp_path)
    wait_until("a checkpoint", lambda: any(folder.glob("checkpoints/*.safetensors")), running=process)

    # A second process on the same run, which does not come to its end meanwhile.
    os.killpg(process.pid, signal.SIGSTOP)
    assert status_of(["--resume", str(folder)]) == 2
    assert capsys.readouterr().err == (
        f"error: {folder}: process {process.pid} is running there; wait for it, stop it, or use another\n"
    )

    # Everybody is killed.
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)

    # Ctrl-C, which a terminal sends to all, while the workers start.
    process = start("train_agent.py", "--resume", "run", cwd=tmp_path)
    wait_until("its workers", lambda: len(workers_of(process, members)) == 2, running=process)
    os.killpg(process.pid, signal.SIGINT)
    assert_stopped_politely(process)
    wait_until("the workers to end", lambda: not members(process))

    # The command alone is killed; nobody is there to stop its workers.
    process = start("train_agent.py", "--resume", "run", cwd=tmp_path)
    before = newest_checkpoint(folder)
    wait_until("more of the search", lambda: newest_checkpoint(folder) > before, running=process)
    process.kill()
    wait_until("the workers to end by themselves", lambda: not members(process))
    process.communicate(timeout=60)

    # SIGTERM to all, as a cluster's scheduler sends it, in the middle of the comparison.
    process = start("train_agent.py", "--resume", "run", cwd=tmp_path)
    log = folder / "trainings.jsonl"
    wait_until("a training", lambda: log.exists() and log.stat().st_size, running=process)
    os.killpg(process.pid, signal.SIGTERM)
    assert_stopped_politely(process)
    wait_until("the workers to end", lambda: not members(process))
    assert not (folder / "summary.json").exists()

    train_agent.main(["--resume", str(folder)])
    assert outcome(folder) == outcome(run)


def workers_of(process: subprocess.Popen[str], members: Any) -> list[int]:
    found = []
    for member in members(process):
        try:
            command = Path(f"/proc/{member}/cmdline").read_bytes()
        except OSError:
            continue
        if b"spawn_main" in command:
            found.append(member)
    return found


def newest_checkpoint(folder: Path) -> str:
    return max((path.name for path in folder.glob("checkpoints/*.safetensors")), default="")


def assert_stopped_politely(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "Error" not in err, err
    assert err.endswith("\ninterrupted; resume with: python experiments/train_agent.py --resume run\n")


def test_lost_worker_is_told_in_one_line(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: object) -> None:
        raise WorkerFailedError("worker 1 failed: RuntimeError: boom")

    monkeypatch.setattr(search, "prepare_references", lost)
    assert status_of([*OPTIONS, "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: worker 1 failed: RuntimeError: boom; ")
    assert line.endswith(f"--resume {tmp_path / 'run'}")


def test_resumed_after_its_end_trains_nothing(
    here: None, run: Path, copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: object, **__: object) -> None:
        raise AssertionError("a finished search trains nothing")

    monkeypatch.setattr(Trainer, "train", train)
    train_agent.main(["--resume", str(copy)])
    assert outcome(copy) == outcome(run)
    assert "The learned policy" in capsys.readouterr().out


def test_damaged_checkpoint_costs_one_rollout(
    here: None, run: Path, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *_, newest = sorted((unfinished / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    train_agent.main(["--resume", str(unfinished)])
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "going back" in line]
    assert str(newest) in line
    assert outcome(unfinished) == outcome(run)


def test_torn_logs_are_mended(here: None, run: Path, unfinished: Path) -> None:
    """A power failure in the middle of a line, and a rollout that was logged but whose checkpoint was not."""
    with open(unfinished / "episodes.jsonl", "a") as file:
        file.write('{"worker": 0, "number": 99}\n{"worker": 1, "num')
    trainings = (run / "trainings.jsonl").read_bytes()
    (unfinished / "trainings.jsonl").write_bytes(trainings[: len(trainings) // 2])
    train_agent.main(["--resume", str(unfinished)])
    assert outcome(unfinished) == outcome(run)


# The data's splits, and what is the user's own

OWN = """
from dataclasses import replace
from torch import nn
from rlmix.classifier.data import load_dataset

def load():
    return replace(load_dataset("digits"), name="mine")

def build(num_classes, in_channels):
    return nn.Sequential(nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, num_classes))
"""


def test_own_data_and_network_and_no_look_at_the_test_set(
    here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own_for_search.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    evaluate, splits = Trainer.evaluate, []

    def noted(self: Trainer, split: str, **keywords: Any) -> Any:
        splits.append(split)
        return evaluate(self, split, **keywords)

    monkeypatch.setattr(Trainer, "evaluate", noted)
    train_agent.main(
        "--dataset own_for_search:load --model own_for_search:build --train-size 50 50 --validation-size 100 "
        "--updates 4 4 --episodes 4 --ppo.episodes-per-update 4 --candidate-seeds 1 --contest-seeds 1 "
        "--workers 1".split()
    )
    assert set(splits) == {"validation", "development"}
    out = capsys.readouterr().out
    assert out.startswith("mine: ") and "one seed: nothing can be said" in out
    (run,) = (tmp_path / "runs").iterdir()
    assert summary_of(run)["contest"]["plain"]["interval"] is None
    assert PolicySchedule.load(run / "policy.json").provenance["model"] == "own_for_search:build"


def test_a_search_keeps_to_its_images(here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = tmp_path / "images", tmp_path / "run"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            pixels = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1000 * ord(name[0]) + number))
            to_pil_image(pixels).save(folder / name / f"{number}.png")
    options = (
        f"--dataset {folder} --train-size 20 20 --validation-size 20 --updates 4 4 --episodes 4 --batch-size 10 "
        f"--ppo.episodes-per-update 4 --candidate-seeds 1 --contest-seeds 1 --workers 1 --out {run}"
    )
    train_agent.main(options.split())
    gc.collect()  # the lock goes with the folder's last reference
    kept = ("agent.safetensors", "candidates.json", "episodes.jsonl", "trainings.jsonl")
    before = [(run / name).read_bytes() for name in kept]
    (folder / "dog" / "0.png").rename(folder / "cat" / "60.png")
    capsys.readouterr()
    assert status_of(["--resume", str(run)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected the data set as it was when this run began" in line
    (folder / "cat" / "60.png").rename(folder / "dog" / "0.png")
    folder = folder.rename(tmp_path / "moved")
    train_agent.main(["--resume", str(run), "--dataset", str(folder)])
    gc.collect()
    train_agent.main(["--resume", str(run)])
    assert [(run / name).read_bytes() for name in kept] == before


# What is refused


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--preset nonsense", "--preset must be one of default, clean, fashion"),
        ("--preset=nonsense", "--preset must be one of default, clean, fashion"),
        ("--episodes -1", "episodes"),
        ("--reward nothing", "reward must be one of relative, standing"),
        ("--episodes 0 --minutes 0", "--minutes must be above 0, got 0"),
        ("--episodes 0 --minutes nan", "--minutes must be above 0"),
        ("--candidate-seeds 0", "candidate_seeds"),
        ("--contest-seeds 0", "contest_seeds"),
        ("--reference-seeds -1", "reference_seeds"),
        ("--workers -1", "workers"),
        ("--environments -1", "environments"),
        ("--environments 200 --ppo.episodes-per-update 200", "at most 64 for each of 2 workers, got 200"),
        ("--workers 100000", "--workers and --environments must be at most 1,000"),
        ("--environments 1", "at least --workers"),
        ("--environments 3", "episodes_per_update"),
        ("--environments 2 --backend ray", "--environments 0, and their number as --workers"),
        ("--seed -1", "seed"),
        ("--tasks 0", "pool"),
        ("--segments 0.5", "segments"),
        ("--segments 0.5 0.5 1.0", "segments"),
        ("--updates 2 2", "4 segments"),
        ("--updates 0 8", "updates"),
        ("--updates 10 8", "updates"),
        ("--train-size 1 1", "train_size"),
        ("--train-size 100 100000", "train_size"),
        ("--label-noise 0.5 1.0", "label_noise"),
        ("--batch-size 1", "batch_size"),
        ("--lr nan", "lr"),
        ("--validation-size 0", "validation_size"),
        ("--validation-limit 0", "validation_limit"),
        ("--also nonsense", "unknown method 'nonsense'"),
        ("--also cutmix", "offers 'cutmix' already"),
        ("--also manifold --model torchvision/mobilenet_v3_small", "stages of"),
        ("--dataset nonsense", "'nonsense'"),
        ("--dataset nopackage:fn", "nopackage"),
        ("--model nonsense", "'nonsense'"),
        ("--model nopackage:fn", "nopackage"),
        ("--model os:nothing", "nothing"),
        ("--embedding nothing", "nothing"),
        ("--device nonsense", "device"),
        ("--device cuda:99", "cuda:99"),
        ("--ppo.episodes-per-update 3", "number of parallel environments"),
        ("--ppo.episodes-per-update 0", "16 steps|0 steps"),
        ("--ppo.minibatches 3", "minibatches"),
        ("--ppo.minibatches 0", "minibatches"),
        ("--ppo.epochs 0", "epochs"),
        ("--ppo.hidden 0", "hidden"),
        ("--ppo.hidden 100000000000000000000", "hidden"),
        ("--ppo.episodes-per-update 100000000000 --ppo.minibatches 1", "would take"),
        ("--ppo.start-probability 1", "start_probability"),
        ("--ppo.learning-rate -1", "learning_rate"),
        ("--out file/run", "file/run"),
        ("--resume missing", "missing"),
        ("--resume .", "expected a run folder"),
    ],
)
def test_refused_in_one_line_before_anything_is_made(option: str, named: str, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = [*OPTIONS, *([] if option.startswith("--out") else ["--out", "run"]), *option.split()]
    assert re.search(named, refused(train_agent.main, arguments))


def test_refuses_to_overwrite_a_run(refused: Any, copy: Path) -> None:
    assert f"--resume {copy}" in refused(train_agent.main, [*OPTIONS, "--out", copy])


@pytest.mark.parametrize("damage", ["cut", "empty", "missing", "another kind", "no config"])
def test_refuses_to_resume_what_is_no_search(damage: str, refused: Any, copy: Path) -> None:
    file = copy / "config.json"
    written = json.loads(file.read_text())
    match damage:
        case "cut":
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        case "empty":
            file.write_bytes(b"")
        case "missing":
            file.unlink()
        case "another kind":
            file.write_text(json.dumps({**written, "kind": "replay"}))
        case "no config":
            file.write_text(json.dumps({**written, "config": 5}))
    assert str(copy) in refused(train_agent.main, ["--resume", copy])


@pytest.mark.parametrize("change", [{"unknown": 1}, {"episodes": -1}, {"ppo": {"unknown": 1}}])
def test_refuses_a_configuration_of_another_version(change: dict[str, Any], copy: Path, capsys: Any) -> None:
    file = copy / "config.json"
    written = json.loads(file.read_text())
    written["config"].update(change)
    file.write_text(json.dumps(written))
    assert status_of(["--resume", str(copy)]) == 2
    assert re.fullmatch("error: .*\n", capsys.readouterr().err)


def test_search_of_nothing_but_diverged_trainings(here: None, tmp_path: Path, capsys: Any) -> None:
    assert status_of([*OPTIONS, "--out", str(tmp_path / "run"), "--lr", "1e30", "--episodes", "4"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "--lr" in line


# Options and presets


def asked(arguments: Sequence[str]) -> SearchConfig:
    return train_agent.parse(Call("train_agent", arguments))


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    require_explained(SearchConfig, help_of(train_agent.main, capsys, monkeypatch))


@pytest.mark.parametrize(("share", "warned"), [(0.9, True), (1.1, False)])
def test_workers_that_may_not_fit_into_memory_are_told(
    share: float, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    monkeypatch.setattr(search, "available_memory", lambda: int(4 * size * share))
    search.warn_of_memory(4)
    err = capsys.readouterr().err
    assert ("4 workers of about" in err and "--workers 3" in err) if warned else err == ""


def test_the_published_agent_is_another_command(refused: Any) -> None:
    assert "python experiments/train_rl_mix.py" in refused(train_agent.main, ["--env", "rl-mix", "--dataset", "digits"])


def test_a_data_set_of_the_users_own_keeps_its_labels() -> None:
    assert asked([]) == PRESETS["default"] and asked([]).label_noise[1] > 0
    own = asked(["--dataset", "digits"])
    assert own.preset == "clean" and own.label_noise == (0, 0) and own.data.image_size is None
    both = asked(["--dataset", "digits", "--preset", "default"])
    assert both.preset == "default" and both.label_noise == PRESETS["default"].label_noise


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_searches_that_can_run(name: str) -> None:
    config = asked(["--preset", name])
    assert config == PRESETS[name] == asked([f"--preset={name}"]) and config.preset == name
    changed = asked(["--episodes", "5", "--preset", name, "--ppo.epochs", "3"])
    assert changed == replace(PRESETS[name], episodes=5, ppo=replace(PRESETS[name].ppo, epochs=3))
    search = plan.Search.from_config(config)
    environments = DummyVecEnv([lambda: MixPolicyEnv(**search.environment(None))] * config.worker_count)
    plan.new_agent(search, environments)


@pytest.mark.parametrize(("cores", "workers"), [(1, 1), (2, 2), (3, 2), (6, 4), (12, 8), (64, 8)])
def test_default_search_starts_on_any_number_of_cores(
    cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: cores)
    assert SearchConfig().worker_count == workers
    assert SearchConfig().environment_count == workers
    assert SearchConfig(workers=3).worker_count == SearchConfig(workers=3).environment_count == 3
    held = SearchConfig(environments=6)
    assert held.environment_count == 6 and held.worker_count == min(cores, 6)
    assert SearchConfig(environments=6, workers=4).worker_count == 4


@pytest.mark.parametrize(
    ("difference", "width", "said"),
    [(0.1, 0.05, "better"), (-0.1, 0.05, "worse"), (0.05, 0.05, "within noise"), (-0.01, 0.05, "within noise"),
     (0.5, None, "one seed: nothing can be said")],
)  # fmt: skip
def test_verdict(difference: float, width: float | None, said: str) -> None:
    assert verdict(difference, width) == said


def test_segments_are_given_as_a_number_or_as_their_ends() -> None:
    def ends(text: str) -> tuple[float, ...]:
        return plan.Search.from_config(asked(f"--dataset digits --segments {text}".split())).segments

    assert ends("4") == (0.25, 0.5, 0.75, 1.0)
    assert ends("1") == ends("1.0") == (1.0,)
    assert ends("0.1 1") == (0.1, 1.0)


@pytest.mark.parametrize("name", ["shipped", "surrogate"])
def test_a_named_start_brings_its_menu_its_segments_and_its_features(name: str) -> None:
    agent = Agent.load(name)
    asked = plan.Search.from_config(plan.like_agent(replace(PRESETS["default"], start=name), name))
    assert (asked.menu, asked.segments) == (agent.menu, agent.segments) != (agent.menu, (1.0,))
    assert asked.features == agent.features
    environments = DummyVecEnv([lambda: MixPolicyEnv(**asked.environment(None))] * 2)
    learner = plan.new_agent(asked, environments, agent).policy.state_dict()
    assert all(bool((learner[key] == tensor).all()) for key, tensor in agent.policy.state_dict().items())


def test_a_search_starts_at_an_agent_and_goes_on_without_it(
    here: None, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No learning: the searched agent is the one that it started at, though that was deleted on the way."""
    shutil.copytree(run, tmp_path / "known")
    known = Agent.load(tmp_path / "known").policy.state_dict()
    still = ["--ppo.learning-rate", "1e-12", "--start", str(tmp_path / "known"), "--out", str(tmp_path / "new")]
    train_agent.main([*OPTIONS, *still])
    found = Agent.load(tmp_path / "new")
    assert all(np.allclose(known[name], tensor, atol=1e-6) for name, tensor in found.policy.state_dict().items())
    assert found.provenance["start_sha256"] == Agent.load(tmp_path / "known").checksum
    contest = json.loads((tmp_path / "new" / "summary.json").read_text())["contest"]
    # Nothing was learned: the agent that was started from makes the same choices, so the same networks.
    assert contest["start agent, live"]["accuracies"] == contest["its agent, live"]["accuracies"]
    shutil.rmtree(tmp_path / "known")
    for part in ("summary.json", "checkpoints"):
        target = tmp_path / "new" / part
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    gc.collect()  # the lock goes with the folder's last reference
    train_agent.main(["--resume", str(tmp_path / "new")])
    again = Agent.load(tmp_path / "new").policy.state_dict()
    assert all(np.allclose(known[name], tensor, atol=1e-6) for name, tensor in again.items())
    capsys.readouterr()
    for changed, named in (
        (["--segments", "2"], "another menu or of other segments"),
        (["--ppo.hidden", "9"], "--ppo.hidden"),
    ):
        with pytest.raises(SystemExit):
            train_agent.main([*OPTIONS, *changed, "--start", str(run), "--out", str(tmp_path / "refused")])
        assert named in capsys.readouterr().err
    assert not (tmp_path / "refused").exists()


def test_the_training_of_another_schedule_or_agent_is_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a resumed tuning run finds another best trial, whose policy and agent have the names of the last."""
    ran: list[Job] = []

    def train(_: object, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, float]]]:
        for job in jobs:
            ran.append(job)
            yield job, {"validation": len(ran) / 10}

    monkeypatch.setattr(selection, "run_jobs", train)

    def results(*choosers: PolicySchedule | Agent) -> list[float]:
        gc.collect()  # the lock of the folder before
        trainings = selection.Trainings(RunFolder(tmp_path), None)  # type: ignore[arg-type]
        jobs = [Job.from_chooser(f"number {n}", chooser, Task(10, 20, 0.0, 0), 5, ["validation"])
                for n, chooser in enumerate(choosers)]  # fmt: skip
        return [result["validation"] for result in trainings.run("comparison", jobs)]

    clean, cutmix = (PolicySchedule.fixed(MixPolicy({method: 1.0})) for method in ("clean", "cutmix"))
    one, other = agent(3), agent(4)
    assert results(clean, one) == results(clean, one) == [0.1, 0.2]
    assert results(cutmix, one) == results(cutmix, one) == [0.3, 0.2]
    assert results(cutmix, other) == [0.3, 0.4]
    assert results(clean, one) == [0.1, 0.2] and len(ran) == 4
    assert len((tmp_path / "trainings.jsonl").read_text().splitlines()) == 4
