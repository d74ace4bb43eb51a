"""Searches that differ in their seed, summed up: rises and leads are those of SciPy, and counted rightly."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats
from stable_baselines3.common.vec_env import DummyVecEnv

from rlmix.agent.baselines import FIXED
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments import train_agent
from rlmix.experiments.search import search as searching
from rlmix.experiments.search.task_family import MENU
from rlmix.experiments.studies import main_job, main_job_dqn
from tests.soak.writes import workers_here

SEEDS, EPISODES = 6, 32


def search(folder: Path, seed: int, *, rises: bool, **changes: Any) -> Path:
    """A run folder of a finished search, as far as it is read."""
    random = np.random.default_rng(seed)
    folder.mkdir()
    config = {"seed": seed, "updates": [100, 100], "dataset": "digits", "start": None, "out": str(folder), **changes}
    schedule = PolicySchedule.fixed(MixPolicy({"clean": 0.5, "mixup": 0.5}))
    noise = random.normal(0, 0.01, (2, SEEDS))
    accuracies = {"learned": 0.6 + noise[0], "plain": 0.5 + noise[1], "random": 0.6 + noise[0] - 0.0001}
    contest = {name: {"accuracies": values.tolist()} for name, values in accuracies.items()}
    returns = random.normal(0, 1, EPISODES) + (np.linspace(0, 6, EPISODES) if rises else 0)
    for name, content in (
        ("config.json", {"config": config}),
        ("summary.json", {"policy": schedule.to_json(), "contest": contest}),
    ):
        (folder / name).write_text(json.dumps(content))
    lines = [json.dumps({"rewards": [float(value) / 2] * 2}) + "\n" for value in returns]
    (folder / "episodes.jsonl").write_text("".join(lines))
    return folder


def test_rises_and_leads_are_scipys(tmp_path: Path) -> None:
    runs = [search(tmp_path / f"run-{seed}", seed, rises=seed != 1) for seed in range(3)]
    main_job.main(["--runs", *map(str, reversed(runs)), "--out", str(tmp_path / "out")])
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert [row["seed"] for row in result["searches"]] == [0, 1, 2]
    assert [row["learned"] for row in result["searches"]] == [True, False, True] and result["learned"] == 2
    assert result["ahead"]["plain"] == 3
    for run, row in zip(runs, result["searches"], strict=True):
        returns = [sum(json.loads(line)["rewards"]) for line in (run / "episodes.jsonl").read_text().splitlines()]
        test = stats.ttest_ind(returns[-8:], returns[:8], equal_var=False)
        found = (row["last_quarter"] - row["first_quarter"]) / row["standard_error"]
        assert found == pytest.approx(test.statistic, rel=1e-2), "kept with four digits"
        contest = json.loads((run / "summary.json").read_text())["contest"]
        ours, theirs = contest["learned"]["accuracies"], contest["plain"]["accuracies"]
        interval = stats.ttest_rel(ours, theirs).confidence_interval()
        mean, half_width = row["leads"]["plain"]
        assert (mean - half_width, mean + half_width) == pytest.approx((interval.low, interval.high))
    text = (tmp_path / "out/results.md").read_text()
    assert "2 of 3" in text and "3 of 3" in text

    # The log alone gives the same again, without the runs.
    main_job.main(["--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "out/results.json").read_text())["searches"] == result["searches"]


@pytest.mark.parametrize("case", ["none", "unfinished", "same seed", "other setting"])
def test_what_cannot_be_summed_up_is_refused(case: str, refused: Any, tmp_path: Path) -> None:
    run = search(tmp_path / "run", 0, rises=True)
    other = {
        "none": None,
        "unfinished": tmp_path / "nothing",
        "same seed": search(tmp_path / "same", 0, rises=True),
        "other setting": search(tmp_path / "longer", 1, rises=True, updates=[300, 300]),
    }[case]
    runs = [] if other is None else ["--runs", str(run), str(other)]
    message = refused(main_job.main, [*runs, "--out", str(tmp_path / "out")])
    assert "--runs" in message


@pytest.mark.parametrize("study", ["main_job", "main_job_dqn"])
def test_the_committed_table_follows_from_its_log(study: str) -> None:
    folder = Path(__file__).parents[2] / "experiments/results" / study
    result = json.loads((folder / "results.json").read_text())
    searches = [json.loads(line) for line in (folder / "searches.jsonl").read_text().splitlines()]
    found = json.loads(json.dumps(main_job.summarise(searches)))
    assert {name: result[name] for name in found} == found
    assert (folder / "results.md").read_text() == main_job.markdown(result)


def test_double_dqn_is_compared_on_the_tasks_and_seeds_of_ppo(
    undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "ProcessVecEnv", workers_here)
    options = (
        "--dataset digits --menu family --segments 1 --train-size 60 60 --updates 8 8 --label-noise 0.4 0.4 "
        "--image-size 8 --validation-size 100 --tasks 2 --reference-seeds 2 --episodes 64 --candidate-seeds 2 "
        "--contest-seeds 3 --workers 2 --ppo.episodes-per-update 16"
    )
    ppo, dqn = tmp_path / "ppo", tmp_path / "dqn"
    train_agent.main([*options.split(), "--out", str(ppo)])
    main_job_dqn.main(["--like", str(ppo), "--out", str(dqn)])
    theirs, ours = (json.loads((run / "summary.json").read_text()) for run in (ppo, dqn))
    assert ours["contest"]["PPO"]["accuracies"] == theirs["contest"]["learned"]["accuracies"]
    assert ours["contest"]["plain"]["accuracies"] == theirs["contest"]["plain"]["accuracies"]
    episodes = [json.loads(line) for line in (dqn / "episodes.jsonl").read_text().splitlines()]
    assert len(episodes) == 64 and {episode["action"] for episode in episodes} <= set(range(len(MENU.actions())))
    main_job.main(["--runs", str(dqn), "--out", str(tmp_path / "out")])
    assert "PPO" in json.loads((tmp_path / "out/results.json").read_text())["searches"][0]["leads"]

    # The same policy would have given the same accuracy: images, weights and order of data are those of the search.
    monkeypatch.setattr(main_job_dqn, "learn", lambda *_: {"choice 1": PolicySchedule.fixed(FIXED["plain"])})
    main_job_dqn.main(["--like", str(ppo), "--out", str(tmp_path / "plain")])
    contest = json.loads((tmp_path / "plain/summary.json").read_text())["contest"]
    assert contest["learned"]["accuracies"] == contest["plain"]["accuracies"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("", "--like must name a run folder"),
        ("--like no/such", "--out must name"),
        ("--like no/such --out it", "no/such"),
    ],
)
def test_double_dqn_asks_for_a_finished_search(options: str, said: str, refused: Any) -> None:
    assert said in refused(main_job_dqn.main, options.split())


class Bandit(gym.Env[Any, Any]):
    """One step; each policy of the menu has a mean reward of its own."""

    observation_space = gym.spaces.Box(-1, 1, (3,))
    action_space = gym.spaces.MultiDiscrete(MENU.sizes)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        place = MENU.actions().index(tuple(int(choice) for choice in action))
        return np.zeros(3, np.float32), 4.0 if place == 11 else 2.0 * (place == 5), True, False, {}


def test_double_dqn_ranks_policies_by_their_reward(tmp_path: Path) -> None:
    setting: Any = SimpleNamespace(menu=MENU, config=SimpleNamespace(ppo=SimpleNamespace(hidden=32), seed=0))
    run: Any = SimpleNamespace(path=tmp_path)
    found = main_job_dqn.learn(setting, run, DummyVecEnv([Bandit] * 2), 300)
    first = [schedule.segments[0][1] for schedule in found.values()][:2]
    assert first == [MENU.policy(MENU.actions()[place]) for place in (11, 5)]
    rewards = [json.loads(line)["rewards"][0] for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    assert np.mean(rewards[-75:]) > 3 > 1.5 > np.mean(rewards[:75])
