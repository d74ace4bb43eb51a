"""Search a mixing policy with double DQN instead of PPO, on the tasks, seeds and references of a finished search.

    python experiments/train_agent.py --seed 0 --out runs/main-0
    python experiments/studies/main_job_dqn.py --like runs/main-0 --out runs/dqn-0
    python experiments/studies/main_job.py --runs runs/dqn-0 runs/dqn-1 --out runs/main_job_dqn

Its actions are those of `MixPolicyFlat-v0`, the menu's distinct policies, and nothing is discounted. It makes as many
trainings as the other search, its three best candidates are trained again on the same fresh seeds, and the best one is
compared on the same images and seeds: with PPO's policy too, and without training the other contestants again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from tqdm import tqdm

from rlmix.agent.workers import EpisodeCursor
from rlmix.classifier.files import LineLog
from rlmix.classifier.mixing import PolicySchedule
from rlmix.experiments.comparison.intervals import format_shares, paired_difference
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import RunFolder, read_config
from rlmix.experiments.search.config import AGENT, SearchConfig
from rlmix.experiments.search.plan import Search
from rlmix.experiments.search.search import begin_workers, prepare_references
from rlmix.experiments.search.selection import (
    MAX_CANDIDATES,
    Trainings,
    compare_contestants,
    provenance,
    select_best,
)
from rlmix.experiments.studies.double_dqn import DoubleDQN

LEARNED, PPO = "learned", "PPO"
FIRST_LEARNING = 16  # episodes of random actions before the first gradient step
EXPLORATION = 0.5  # share of the search over which random actions fade out


@dataclass(frozen=True)
class DQNConfig:
    """Search a mixing policy with double DQN on the tasks of a finished search."""

    like: str = ""
    """Run folder of a finished train_agent.py whose agent chooses once."""
    out: str = ""
    """Run folder, for studies/main_job.py."""
    workers: int = 0
    """Number of worker processes; optional, defaults to that of the other search."""

    def __post_init__(self) -> None:
        for option, folder in (("--like", self.like), ("--out", self.out)):
            if not folder:
                raise RunError(f"{option} must name a run folder, got none")


class FlatActions(VecEnvWrapper):
    """Environments whose action is the number of a policy, as in `MixPolicyFlat-v0`; they log what they returned.

    Args:
        workers: environments with the menu's own actions.
        actions: that of each policy.
    """

    def __init__(self, workers: VecEnv, actions: Sequence[tuple[int, ...]]) -> None:
        super().__init__(workers, action_space=spaces.Discrete(len(actions)))
        self._actions = np.array(actions)

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Begin the steps of these policies."""
        self.venv.step_async(self._actions[actions])

    def step_wait(self) -> VecEnvStepReturn:
        """Return what the steps gave."""
        return self.venv.step_wait()

    def reset(self) -> Any:
        """Begin the next episodes."""
        return self.venv.reset()


class Returns(BaseCallback):
    """Callback that logs the return of every episode, each of one step.

    Args:
        log: log of episodes.
        episodes: number of episodes of the search.
    """

    def __init__(self, log: LineLog, episodes: int) -> None:
        super().__init__()
        self._log, self._bar = log, tqdm(total=episodes, desc="search", unit="episode", mininterval=20)

    def _on_step(self) -> bool:
        for action, reward in zip(self.locals["actions"], self.locals["rewards"], strict=True):
            self._log.append({"action": int(action), "rewards": [float(reward)]})
            self._bar.update()
        return True

    def _on_training_end(self) -> None:
        self._bar.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/main_job_dqn", arguments) as call:
        config = call.parse(DQNConfig, __doc__)
        torch.set_num_threads(1)
        _, stored = read_config(config.like, (AGENT,), trust=False)
        if not (Path(config.like) / "summary.json").is_file():
            raise RunError(f"--like: {config.like} is no finished search, it has no summary.json")
        search = Search.from_config(stored_config(SearchConfig, stored))
        if not search.one_decision:
            raise RunError(
                f"--like: expected a search whose agent chooses once, in {config.like} it chooses more often"
            )
        if config.workers:
            search = Search.from_config(replace(search.config, workers=config.workers))
        episodes = len(LineLog(Path(config.like) / "episodes.jsonl").read())
        run = RunFolder.create(config.out, AGENT)
        run.write_config(AGENT, asdict(search.config))
        shutil.copytree(Path(config.like) / "references", run.path / "references", dirs_exist_ok=True)
        known = json.loads((Path(config.like) / "summary.json").read_text())["contest"]
        contest = execute(search, run, episodes, known)
        mean, width = paired_difference(contest[LEARNED]["accuracies"], contest[PPO]["accuracies"])
        print(
            f"{PolicySchedule.load(run.path / 'policy.json').segments[-1][1]}: ahead of PPO's policy by "
            f"{format_shares(mean, width, signed=True)} points\nwritten: {run.path}/summary.json"
        )


def execute(search: Search, run: RunFolder, episodes: int, known: dict[str, Any]) -> dict[str, Any]:
    """Search, select a policy and compare it; return the contest's entries.

    Args:
        search: setting of the search.
        run: run folder.
        episodes: number of trainings.
        known: entries of the other search's contest; what it has trained is not trained again.
    """
    workers = begin_workers(search, run, [EpisodeCursor() for _ in range(search.config.environment_count)])
    try:
        prepare_references(search, workers)
        schedules = learn(search, run, workers, episodes)
        trainings = Trainings(run, workers)
        facts = {"learned_by": "double DQN", "episodes": episodes, **provenance(search)}
        schedule, candidates = select_best(search, run, trainings, schedules, facts)
        learned = compare_contestants(search, schedule, trainings, {}, alone=True)[LEARNED]
    finally:
        workers.close()
    others = {PPO if name == LEARNED else name: {"accuracies": entry["accuracies"]} for name, entry in known.items()}
    contest = {LEARNED: learned, **others}
    run.write_json("summary.json", {"policy": schedule.to_json(), "candidates": candidates, "contest": contest})
    return contest


def learn(search: Search, run: RunFolder, workers: VecEnv, episodes: int) -> dict[str, PolicySchedule]:
    """Train double DQN; return the policies that it holds for the best, the best first, by name.

    Args:
        search: setting of the search.
        run: run folder, for the log of episodes.
        workers: environments.
        episodes: number of trainings.
    """
    actions = search.menu.actions()
    flat = FlatActions(workers, actions)
    learner = DoubleDQN(
        *("MlpPolicy", flat),
        learning_rate=1e-3,
        buffer_size=10_000,
        learning_starts=FIRST_LEARNING,
        batch_size=32,
        gamma=1.0,
        train_freq=1,
        gradient_steps=8,
        target_update_interval=FIRST_LEARNING,
        exploration_fraction=EXPLORATION,
        policy_kwargs={"net_arch": [search.config.ppo.hidden] * 2},
        seed=search.config.seed,
        device="cpu",
    )
    log = LineLog(run.path / "episodes.jsonl")
    log.keep(0)
    learner.learn(episodes, callback=Returns(log, episodes))
    seen = flat.reset()
    with torch.no_grad():
        values = learner.q_net(torch.as_tensor(seen[:1])).numpy()[0]
    best = np.argsort(-values, kind="stable")[:MAX_CANDIDATES]
    return {
        f"choice {place}": PolicySchedule.fixed(search.menu.policy(actions[index]))
        for place, index in enumerate(best.tolist(), start=1)
    }


if __name__ == "__main__":
    main()
