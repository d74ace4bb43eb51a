"""PPO of RL-Mix's agent, cut into steps of the classifier's training."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from rlmix.agent.config import RLMixAgentConfig
from rlmix.agent.ppo import restore_search, search_state
from rlmix.agent.rl_mix.loop import Choice
from rlmix.agent.rl_mix.networks import POLICIES
from rlmix.classifier.errors import InputError
from rlmix.classifier.limits import require_memory
from rlmix.envs import RLMixEnv
from rlmix.envs.rl_mix import Observation

DECAY = 0.9  # power of the remaining progress by which the learning rate falls, as published


class RLMixLearner:
    """PPO that chooses thresholds and learns from their rewards, one step of an `RLMixEnv` at a time.

    Does what Stable-Baselines3's `learn` does, cut into steps: a training can be interrupted at any epoch's end, in the
    middle of a rollout, and the random and frozen agents use the same loop (`play`).

    Args:
        config: hyperparameters.
        env: environment whose spaces are used; it is not stepped here.
        seed: RNG seed for weights and sampling; seeds torch's, NumPy's and Python's global generators, as
            Stable-Baselines3 does.
        updates: number of updates of the classifier's training, over which the learning rate falls.
        logger: logger of PPO's own figures; optional, defaults to no logging.

    Raises:
        InputError: the extractor is not known, or a rollout does not fit into memory.
    """

    def __init__(
        self, config: RLMixAgentConfig, env: RLMixEnv, *, seed: int, updates: int, logger: Logger | None = None
    ) -> None:
        if config.extractor not in POLICIES:
            raise InputError(f"extractor must be one of {', '.join(POLICIES)}, got {config.extractor!r}")
        shapes = [space.shape or () for space in env.observation_space.spaces.values()]
        rollout = 4 * config.n_steps * sum(math.prod(shape) for shape in shapes)
        require_memory(rollout, f"a rollout of n_steps {config.n_steps:,}")
        self.model = PPO(
            POLICIES[config.extractor],
            env,
            learning_rate=lambda left: config.learning_rate * left**DECAY,
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.epochs,
            seed=seed,
            device=env.trainer.device,
        )
        self.model.set_logger(logger or Logger(None, []))
        self.model._last_episode_starts = np.ones(1, dtype=bool)
        self._updates = updates
        self._chosen: tuple[Observation, Tensor, Tensor, Tensor]

    def choose(self, observation: Observation, update: int) -> Choice:
        """Return a threshold for each image, drawn from the policy; `update` is not used."""
        self.model.policy.set_training_mode(False)
        with torch.no_grad():
            action, value, log_prob = self.model.policy(self._tensors(observation))
        self._chosen = (observation, action, value, log_prob)
        return action[0].cpu().numpy()

    def learn(self, reward: float, following: Observation, terminated: bool, truncated: bool) -> None:
        """Store the reward of the last choice; update the agent when a rollout is full.

        Args:
            reward: reward of the last choice.
            following: next observation.
            terminated: whether the training ended.
            truncated: whether the episode ended, and the training continues.
        """
        model, buffer = self.model, self._buffer
        observation, action, value, log_prob = self._chosen
        rewards = np.array([reward], dtype=np.float32)
        if truncated:  # the training continues: its value is estimated, as Stable-Baselines3 does
            rewards += model.gamma * self._value(following)
        starts = model._last_episode_starts
        assert isinstance(starts, np.ndarray)
        batched = {name: values[None] for name, values in observation.items()}
        buffer.add(batched, action.cpu().numpy(), rewards, starts, value, log_prob)
        model._last_episode_starts = done = np.array([terminated or truncated])
        model.num_timesteps += 1
        if buffer.full:
            self.update(torch.from_numpy(self._value(following)), done=bool(done[0]))

    def update(self, value: Tensor, *, done: bool) -> None:
        """Learn from a full rollout, and start another one.

        Args:
            value: estimated value of the observation after the rollout, `[1, 1]`.
            done: whether an episode ended with the rollout.
        """
        model, buffer = self.model, self._buffer
        buffer.compute_returns_and_advantage(value, np.array([done]))
        model._update_current_progress_remaining(model.num_timesteps, self._updates)
        model.train()
        model.logger.dump(model.num_timesteps)
        buffer.reset()

    def state_dict(self) -> dict[str, Any]:
        """Return the state between two steps, the unfinished rollout and the global random states included."""
        done = self._buffer.pos
        rollout = {name: torch.from_numpy(values[:done]) for name, values in self.rows().items()}
        return {"search": search_state(self.model), "rollout": rollout}

    def load_state_dict(self, state: dict[str, Any], observation: Observation) -> None:
        """Resume from a state of `state_dict`, with the environment's current observation."""
        restore_search(self.model, state["search"], observation)
        for name, values in self.rows().items():
            kept = state["rollout"][name].numpy()
            values[: len(kept)] = kept
            self._buffer.pos = len(kept)

    @property
    def _buffer(self) -> DictRolloutBuffer:
        buffer = self.model.rollout_buffer
        assert isinstance(buffer, DictRolloutBuffer)
        return buffer

    def rows(self) -> dict[str, NDArray[Any]]:
        """Return the rollout's arrays by name, `[n_steps, 1, ...]` each; those of past steps are filled."""
        names = ("actions", "rewards", "episode_starts", "values", "log_probs")
        return {**self._buffer.observations, **{name: getattr(self._buffer, name) for name in names}}

    def _value(self, observation: Observation) -> NDArray[np.float32]:
        with torch.no_grad():
            return self.model.policy.predict_values(self._tensors(observation))[0].cpu().numpy()

    def _tensors(self, observation: Observation) -> Any:
        return obs_as_tensor({name: values[None] for name, values in observation.items()}, self.model.device)
