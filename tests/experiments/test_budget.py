"""A search that is given minutes makes as many trainings as fit, and says so."""

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlmix.experiments import train_agent
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.search import budget, search
from rlmix.experiments.search.config import SearchConfig
from rlmix.experiments.search.plan import Search
from rlmix.experiments.search.selection import trainings_after
from tests.experiments.test_train_agent import OPTIONS, asked
from tests.soak.writes import workers_here


class Machine:
    """Stands for workers whose round of trainings takes so many seconds, and for the clock that measures them."""

    def __init__(self, num_envs: int, seconds: float) -> None:
        self.num_envs, self.seconds, self.now, self.trainings = num_envs, seconds, 1000.0, 0

    def env_method(self, name: str, jobs: Sequence[Any]) -> list[dict[str, float]]:
        assert name == "train_under"
        self.now += self.seconds
        self.trainings += len(jobs)
        return [{"validation": 0.5} for _ in jobs]

    def monotonic(self) -> float:
        return self.now


def fit(machine: Machine, folder: Path, *, minutes: float, spent: float = 20.0, per_rollout: int = 16) -> Search:
    plain = asked([*OPTIONS, "--episodes", "0"])
    config = replace(plain, minutes=minutes, ppo=replace(plain.ppo, episodes_per_update=per_rollout))
    asked_for = Search(config, *_tasks_and_menu(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget.time, "monotonic", machine.monotonic)
        return budget.fit_to_time(asked_for, RunFolder(folder), machine, spent)  # type: ignore[arg-type]


def _tasks_and_menu(config: SearchConfig) -> tuple[Any, Any, Any]:
    made = Search.from_config(replace(config, episodes=1))
    return made.tasks, made.training, made.menu


@pytest.mark.parametrize(("num_envs", "seconds", "minutes"), [(2, 4.0, 10.0), (2, 0.9, 10.0), (8, 9.0, 20.0)])
def test_as_many_trainings_as_fit(num_envs: int, seconds: float, minutes: float, tmp_path: Path) -> None:
    machine = Machine(num_envs, seconds)
    found = fit(machine, tmp_path, minutes=minutes)
    episodes = found.config.episodes
    assert episodes % 16 == 0

    def job(episodes: int) -> float:
        """Seconds from the first training to the last one, had there been so many episodes."""
        rounds = [machine.trainings, episodes, *trainings_after(found, RunFolder(tmp_path))]
        return 20 + sum(-(-count // num_envs) for count in rounds) * seconds

    assert job(episodes) <= 60 * minutes, "the whole fits"
    assert job(episodes + 16) > 0.9 * 60 * minutes or episodes == budget.MAX_EPISODES, "and no time is left unused"


def test_a_machine_that_is_too_slow_still_learns_and_says_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = fit(Machine(2, 60.0), tmp_path, minutes=10.0)
    assert found.config.episodes == 16 * budget.MIN_ROLLOUTS
    minutes = json.loads((tmp_path / "budget.json").read_text())["minutes"]
    assert minutes > (found.config.episodes + sum(trainings_after(found, RunFolder(tmp_path)))) / 2, (
        "a minute for every two of them"
    )
    assert f"about {minutes:.0f} minutes in all" in capsys.readouterr().out


def test_trainings_are_timed_once(tmp_path: Path) -> None:
    first = fit(Machine(2, 4.0), tmp_path, minutes=10.0)
    slower = Machine(2, 400.0)
    assert fit(slower, tmp_path, minutes=10.0).config == first.config
    assert slower.trainings == 0


def test_a_number_that_was_asked_for_stays(tmp_path: Path) -> None:
    machine = Machine(2, 4.0)
    asked_for = Search.from_config(asked(OPTIONS))
    assert budget.fit_to_time(asked_for, RunFolder(tmp_path), machine, 0.0) is asked_for  # type: ignore[arg-type]
    assert machine.trainings == 0 and not (tmp_path / "budget.json").exists()


def test_a_resumed_search_keeps_its_number(undrawn: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MIN_ROLLOUTS", 2)
    monkeypatch.setattr(search, "ProcessVecEnv", workers_here)
    run = tmp_path / "run"
    options = [*OPTIONS, "--episodes", "0", "--minutes", "0.01", "--contest-seeds", "1", "--out", str(run)]
    train_agent.main(options)
    episodes = json.loads((run / "budget.json").read_text())["episodes"]
    assert episodes == 4 * budget.MIN_ROLLOUTS
    assert len((run / "episodes.jsonl").read_text().splitlines()) == episodes
    gc.collect()  # the folder's lock goes with its last reference
    trained = (run / "trainings.jsonl").read_bytes()
    train_agent.main(["--resume", str(run)])
    assert (run / "trainings.jsonl").read_bytes() == trained
