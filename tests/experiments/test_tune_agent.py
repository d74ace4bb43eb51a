"""Many searches: a member of a population is a training that can change hands, an agent's trial a search like any."""

import gc
import json
import os
import signal
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image

from rlmix.agent.workers import episode_seed
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import DIMENSIONS
from rlmix.experiments import train_agent, tune_agent
from rlmix.experiments.runs.command import Call
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import with_options
from rlmix.experiments.search import cluster, search, tuning
from rlmix.experiments.search.config import PRESETS, SearchConfig, TuneConfig
from rlmix.experiments.search.plan import Search
from rlmix.experiments.search.population_trainable import Member
from tests.envs.tiny import digits
from tests.experiments.test_train_agent import EPISODES, OPTIONS, lines
from tests.soak.writes import workers_here

# A search of one worker: a worker of Ray takes longer to start than its trainings take.
SINGLE = [*OPTIONS, *"--workers 1 --contest-seeds 1 --candidate-seeds 1".split()]
AGENT = [f"--agent.{word[2:]}" if word.startswith("--") else word for word in SINGLE]
SETTING = with_options(
    SearchConfig(),
    dataset="digits",
    train_size=(100, 100),
    updates=(20, 20),
    validation_size=100,
    precision="fp32",
    device="cpu",
)
PLAN = [[4, 0, 0, 0], [2, 1, 3, 0], [5, 1, 0, 0], [0, 3, 2, 1]]
OTHER = [[1, 0, 0, 1], [3, 0, 1, 0], [4, 2, 0, 0], [6, 0, 0, 0]]


class Alone(Member):
    """A member without Ray, which would hand it the setting."""

    setting = SETTING

    def setup(self, config: dict[str, Any]) -> None:  # type: ignore[override]
        super().setup(config, asdict(self.setting))


@pytest.fixture(autouse=True)
def no_folders_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A trainable without Ray makes a folder under the user's home: here elsewhere."""
    monkeypatch.setattr("ray.tune.trainable.trainable.DEFAULT_STORAGE_PATH", str(tmp_path / "ray_results"))


def member(number: int, plan: list[list[int]], **changes: Any) -> Member:
    return Alone({"number": number, "perturbed": False, "plan": plan, **changes})


def by_hand(number: int, plan: list[list[int]]) -> list[float]:
    """Validation accuracies of the same training after each segment."""
    search = Search.from_config(SETTING)
    task = search.tasks.task(0)
    images = digits(100).draw(100, data_seed=task.data_seed)
    trainer = Trainer(search.training, images, seed=episode_seed(0, "search", 0, number))
    accuracies = []
    for action in plan:
        trainer.train(search.menu.policy(action), 5)
        accuracies.append(trainer.evaluate("validation").accuracy)
    return accuracies


# A member of a population


def test_a_member_trains_its_plan() -> None:
    trained = member(3, PLAN)
    results = [trained.step() for _ in PLAN]
    assert [result["validation_accuracy"] for result in results] == by_hand(3, PLAN)
    assert [result["done"] for result in results] == [False, False, False, True]
    assert results[-1]["actions"] == PLAN


def test_a_perturbed_member_follows_what_the_scheduler_sets() -> None:
    trained = member(3, OTHER, perturbed=True, **dict(zip(DIMENSIONS, PLAN[0], strict=True)))
    assert trained.step()["actions"] == PLAN[:1]


def test_a_reused_actor_is_the_member_that_it_becomes(tmp_path: Path) -> None:
    donor, reused = member(3, PLAN), member(8, OTHER)
    donor.step()
    donor.step()
    donor.save_checkpoint(str(tmp_path))
    for _ in OTHER:
        reused.step()
    config = {"number": 3, "perturbed": False, "plan": [*OTHER[:2], *PLAN[2:]]}
    assert reused.reset_config(config)
    reused.load_checkpoint(str(tmp_path))
    results = [reused.step(), reused.step()]
    assert [result["validation_accuracy"] for result in results] == by_hand(3, PLAN)[2:]
    assert results[-1]["actions"] == PLAN, "the weights' own history, not this configuration's"
    assert reused.reset_config({**config, "number": 5, "plan": OTHER})
    assert [reused.step()["validation_accuracy"] for _ in OTHER] == by_hand(5, OTHER)


def test_a_diverged_member_stands_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Alone, "setting", with_options(SETTING, lr=1e30))
    diverging = member(0, PLAN)
    assert [diverging.step()["validation_accuracy"] for _ in PLAN][1:] == [0.1] * 3


# Hyperparameters


def test_trials_differ_and_are_the_same_again() -> None:
    drawn = [tuning.trial_config(SETTING, 4, number) for number in range(20)]
    assert drawn[0] == SETTING
    assert len({config.ppo for config in drawn}) == 20
    assert drawn == [tuning.trial_config(SETTING, 4, number) for number in range(20)]
    assert drawn[1:] != [tuning.trial_config(SETTING, 5, number) for number in range(1, 20)]
    for config in drawn:
        Search.from_config(config)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_searched_many_times(name: str) -> None:
    agent = tune_agent.parse(Call("tune_agent", ["--preset", name])).agent
    assert agent.episodes == (PRESETS[name].episodes or tune_agent.EPISODES)
    Search.from_config(agent)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--trials 0", "trials must be at least 1"),
        ("--trainings 1", "trainings must be at least 2"),
        ("--seed -1", "seed must be at least 0"),
        ("--agent.episodes 0", "--agent.episodes must be at least 1, got 0"),
        ("--preset nonsense", "--preset"),
        ("--agent.backend local", "--agent.backend"),
        ("--agent.out here", "--agent.out"),
        ("--agent.start here", "--agent.start"),
        ("--agent.preset fashion", "--agent.preset is for a single search: give --preset instead"),
        ("--agent.seed 3", "--agent.seed is for a single search: give --seed instead"),
        ("--resume missing", "missing"),
    ],
)
def test_refused_in_one_line(refused: Any, options: str, told: str) -> None:
    assert told in refused(tune_agent.main, [*AGENT, "--out", "run", *options.split()])


# The data set


def test_a_run_keeps_to_its_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = tmp_path / "images", tmp_path / "run"
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(60):
            pixels = np.random.default_rng([*name.encode(), number]).integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    # The search is interrupted where it would begin, so that Ray is not needed.
    monkeypatch.setattr(cluster, "ray_session", lambda address: nullcontext())
    monkeypatch.setattr(cluster, "check_capacity", lambda workers, share: None)

    def interrupted(config: TuneConfig, run: RunFolder) -> None:
        raise RunError(f"began with {config.agent.data.dataset}")

    monkeypatch.setattr(tuning, "agents", interrupted)

    def told(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            tune_agent.main(arguments)
        gc.collect()  # the lock goes with the folder's last reference
        return capsys.readouterr().err

    options = f"--agent.dataset {folder} --agent.train-size 20 20 --agent.validation-size 20 --agent.updates 4 4"
    began, resume = f"began with {folder}", ("--resume", str(run), "--trust")
    assert began in told(*AGENT, *options.split(), "--out", str(run))
    assert began in told(*resume)
    (folder / "dog" / "0.png").rename(folder / "cat" / "60.png")
    assert "expected the data set as it was when this run began, got" in told(*resume)
    (folder / "cat" / "60.png").rename(folder / "dog" / "0.png")
    assert began in told(*resume)
    (run / "data.json").unlink()  # of an older version
    assert began in told(*resume)
    (folder / "dog" / "0.png").rename(folder / "cat" / "60.png")
    assert "expected the data set as it was when this run began, got" in told(*resume)


# Whole runs


@pytest.mark.slow
def test_killed_run_goes_on_and_its_trials_are_searches_like_any(
    start: Any, wait_until: Any, undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*AGENT, "--trials", "2", "--at-once", "1", "--grace", str(EPISODES)]
    run = tmp_path / "run"
    process = start("tune_agent.py", *arguments, "--out", "run", cwd=tmp_path)
    wait_until("a finished trial", lambda: any(run.glob("trials/*/policy.json")), running=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    run = run.rename(moved)
    kept = {path: path.read_bytes() for path in run.glob("trials/*/policy.json")}
    process = start("tune_agent.py", "--resume", "moved", "--trust", cwd=moved.parent)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    assert kept and all(path.read_bytes() == content for path, content in kept.items())
    assert not (tmp_path / "run").exists(), "nothing is written where the folder was"

    policies = {path.parent.name: PolicySchedule.load(path) for path in run.glob("trials/*/policy.json")}
    assert set(policies) == {"0000", "0001"}
    best = PolicySchedule.load(run / "policy.json")
    accuracies = {name: policy.provenance["validation_accuracy"] for name, policy in policies.items()}
    assert best.provenance["validation_accuracy"] == max(accuracies.values())
    assert best.segments == policies[best.provenance["trial"]].segments
    for file in ("agent.safetensors", "agent.json"):
        assert (run / file).read_bytes() == (run / "trials" / best.provenance["trial"] / file).read_bytes()
    episodes = [entry for folder in policies for entry in lines(run / "trials" / folder / "episodes.jsonl")]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["images_trained"] == 100 * sum(episode["task"]["updates"] for episode in episodes)
    assert "Development-test accuracy" in out

    # Trial 0 is the search that train_agent.py makes of the same options.
    monkeypatch.setattr(search, "ProcessVecEnv", workers_here)
    train_agent.main([*SINGLE, "--out", str(tmp_path / "alone")])
    for file in ("policy.json", "agent.safetensors", "episodes.jsonl"):
        assert (run / "trials/0000" / file).read_bytes() == (tmp_path / "alone" / file).read_bytes()


@pytest.mark.slow
def test_population_leaves_the_winning_lineage(undrawn: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tune_agent.main([*AGENT, "--search", "pbt", "--trainings", "4", "--out", str(run)])
    found = {entry["trial"]: entry for entry in lines(run / "members.jsonl")}
    assert len(found) == 4
    search = Search.from_config(SETTING)
    policy = PolicySchedule.load(run / "policy.json")
    winner = found[policy.provenance["candidate"].removeprefix("member ")]
    assert list(policy.segments) == [
        (end, search.menu.policy(action)) for end, action in zip(search.segments, winner["actions"], strict=True)
    ]
    assert policy.provenance["learned_by"] == "pbt" and policy.provenance["trainings"] == 4
    for entry in found.values():
        assert len(entry["lineage"]) == 4 and set(entry["lineage"]) <= set(found)
        assert entry["lineage"][-1] == entry["trial"]
    updates = (
        Search.from_config(replace(SETTING, train_size=(100, 120), updates=(8, 10), tasks=2)).tasks.task(0).updates
    )
    assert json.loads((run / "summary.json").read_text())["images_trained"] == 4 * updates * 100


class Holder:
    """Has what it was given, until it is ended."""

    def ready(self) -> bool:
        return True


@pytest.mark.slow
def test_actors_that_outlive_their_trials_leave_the_comparison_its_cpus(
    undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, left = tuning.fit, []

    def leaving(*arguments: Any) -> Any:
        results = search(*arguments)
        left.append(ray.remote(num_cpus=ray.cluster_resources()["CPU"])(Holder).remote())
        assert ray.get(left[0].ready.remote())
        return results

    monkeypatch.setattr(tuning, "fit", leaving)
    tune_agent.main([*AGENT, "--search", "random", "--trainings", "2", "--out", str(tmp_path / "run")])
    assert (tmp_path / "run/summary.json").exists()
