"""An environment with MixPolicyEnv's spaces and nothing to train: quick, and as hard to resume as one likes."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tqdm import tqdm

from rlmix.agent.callbacks import SearchLog
from rlmix.agent.config import PPOConfig
from rlmix.agent.ppo import build_agent, start_search
from rlmix.agent.workers import EpisodeCursor, Worker
from rlmix.classifier.files import LineLog, load_state, save_state
from rlmix.envs import Menu
from rlmix.envs.observation import observation_space

SEGMENTS = (0.25, 0.5, 0.75, 1.0)
DIVERGES = 6  # the source that ends an episode at once
CONFIG = PPOConfig(episodes_per_update=4, epochs=2)


class Stub(gym.Env[Any, Any]):
    """Observations are a pure function of seed and actions; pays 1 for one source in each of four steps.

    Args:
        pays: the source that is paid.
        late: whether all is paid after the last step.
        diverges: the source that ends an episode at once; none = no source does.
    """

    def __init__(self, pays: int = 4, late: bool = False, diverges: int | None = None) -> None:
        self.observation_space = observation_space(Menu())
        self.action_space = spaces.MultiDiscrete(Menu().sizes)
        self._pays, self._late, self._diverges = pays, late, diverges
        self.trainer = SimpleNamespace(last_mixed=None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._seed, self._actions = seed, []
        return self._observe(), {"episode_seed": seed}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._actions.append(tuple(int(index) for index in action))
        diverged = self._actions[-1][0] == self._diverges
        done = diverged or len(self._actions) == len(SEGMENTS)
        info = {"episode_seed": self._seed, "validation_accuracy": 0.5, "images": 1, "diverged": diverged}
        paid = [float(action[0] == self._pays) for action in self._actions]
        reward = paid[-1] if not self._late else sum(paid) * done
        return self._observe(), reward, done, False, {**info, "task": {}} if done else info

    def _observe(self) -> NDArray[np.float32]:
        random = np.random.default_rng(zlib.crc32(repr((self._seed, self._actions)).encode()))
        observation = np.zeros(self.observation_space.shape or (), dtype=np.float32)
        observation[:8] = random.random(8)
        return observation


def stub_workers(positions: list[EpisodeCursor], **changes: Any) -> VecEnv:
    """Stub environments behind `Worker`s of search 3."""

    def factory(index: int, position: EpisodeCursor) -> Callable[[], gym.Env[Any, Any]]:
        return lambda: Worker(Stub(**changes), 3, index, position)  # type: ignore[arg-type]

    return DummyVecEnv([factory(index, position) for index, position in enumerate(positions)])


def search(
    folder: Path,
    make_workers: Callable[[list[EpisodeCursor]], VecEnv],
    *,
    rollouts: int,
    workers: int = 2,
    config: PPOConfig = CONFIG,
    checkpoint: Path | None = None,
) -> tuple[PPO, SearchLog]:
    """A search up to `rollouts`, from the start or a checkpoint; leaves `folder/<timesteps>.checkpoint` after each."""
    folder.mkdir(exist_ok=True)
    state = None if checkpoint is None else load_state(checkpoint)
    positions = [EpisodeCursor() for _ in range(workers)]
    if state is not None:
        positions = [
            EpisodeCursor("search", entry["episode"], tuple(tuple(action) for action in entry["actions"]))
            for entry in state["positions"]
        ]
    vector = make_workers(positions)
    try:
        model = build_agent(config, vector, segments=len(SEGMENTS), seed=5, start=(2, 0, 0, 0))
        model.set_logger(configure(str(folder / "events"), ["tensorboard"]))
        observations = vector.reset()
        assert isinstance(observations, np.ndarray)
        start_search(model, observations, None if state is None else state["search"])
        log = SearchLog(
            menu=Menu(),
            segments=SEGMENTS,
            episodes=LineLog(folder / "episodes.jsonl"),
            positions=positions,
            bar=tqdm(disable=True),
            rollouts=rollouts,
            save=lambda kept: save_state(folder / f"{kept['search']['timesteps']}.checkpoint", kept),
            checkpoint=state,
        )
        steps = len(SEGMENTS) * config.episodes_per_update
        model.learn(rollouts * steps - model.num_timesteps, callback=log, reset_num_timesteps=False)
        model.logger.close()
    finally:
        vector.close()
    return model, log
