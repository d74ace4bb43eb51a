"""The surrogate's games behind Stable-Baselines3's VecEnv, all in one batch."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from rlmix.envs.surrogate import SurrogateVectorEnv


class SurrogateVecEnv(VecEnv):
    """N games of `MixPolicySurrogate-v0`; an episode that has ended starts anew in the same step.

    `info["episode"]` at an episode's end holds return and length, as Stable-Baselines3's `Monitor` gives them.

    Args:
        num_envs: number of games.
        options: arguments of `SurrogateEpisodes`.

    Raises:
        InputError: an argument is out of range, or menu or segments were not recorded.
        DamagedFileError: there is no usable model in the folder.
    """

    def __init__(self, num_envs: int, **options: Any) -> None:
        self.vector = SurrogateVectorEnv(num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options)
        self.render_mode = None
        self._returns = np.zeros(num_envs)
        self._began = time.time()
        super().__init__(num_envs, self.vector.single_observation_space, self.vector.single_action_space)

    def reset(self) -> NDArray[np.float32]:
        """Start the next episode of every game; the seeds of `seed` are used once."""
        seeds = None if all(seed is None for seed in self._seeds) else self._seeds
        observations, _ = self.vector.reset(seed=seeds)
        self._reset_seeds()
        self._returns[:] = 0.0
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Return every game's observation, reward, whether its episode ended, and info."""
        observations, rewards, dones, _, vector_info = self.vector.step(self._actions)
        self._returns += rewards
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            final, ended = vector_info["final_obs"], vector_info["final_info"]
            passed, length = round(time.time() - self._began, 6), len(self.vector.episodes.segments)
            for index in np.flatnonzero(dones).tolist():
                infos[index] = {
                    "terminal_observation": final[index],
                    "TimeLimit.truncated": False,
                    "episode": {"r": float(self._returns[index]), "l": length, "t": passed},
                    "task": int(ended["task"][index]),
                    "validation_accuracy": float(ended["validation_accuracy"][index]),
                }
            self._returns[dones] = 0.0
        return observations, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Do nothing: there is nothing to give back."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of this object or of the vector of games, the same for each."""
        owner = self if attr_name in self.__dict__ else self.vector
        return [getattr(owner, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refused: games of one batch are alike.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{attr_name} cannot be set in games of one batch: give it to SurrogateVecEnv")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refused: games of one batch have no methods of their own.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"games of one batch have no method {method_name} of their own")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return False for each: games of one batch are not wrapped."""
        return [False] * len(list(self._get_indices(indices)))
