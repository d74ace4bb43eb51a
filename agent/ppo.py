"""PPO over MixPolicyEnv: building an agent, saving it without pickle, and stopping and resuming its search."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from rlmix.agent.config import PPOConfig
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import DamagedFileError, write_atomic
from rlmix.classifier.hardware import require_memory
from rlmix.classifier.mixing.policy import require_fields
from rlmix.envs import DIMENSIONS, Menu, MixPolicyEnv, Task
from rlmix.envs.mix_policy import segment_ends
from rlmix.envs.observation import VERSION as OBSERVATION_VERSION
from rlmix.envs.observation import observation_space

FORMAT = "rl-mix agent"
VERSION = 1
MOST_UNITS = 4096  # of a hidden layer


def build_agent(config: PPOConfig, workers: VecEnv, *, segments: int, seed: int, start: Sequence[int]) -> PPO:
    """A PPO agent with new weights whose first choices lean to one action.

    Args:
        config: how it learns.
        workers: the environments.
        segments: steps of an episode.
        seed: of weights and sampling; seeds torch's and NumPy's global generators, as Stable-Baselines3 does.
        start: the action that is likely at first: an index into each dimension of the menu.

    Raises:
        ValueError: episodes do not divide among the workers, or steps among minibatches, a rollout does not fit into
            memory, or an option is out of range.
    """
    if not 0 < config.start_probability < 1:
        raise InputError(f"start_probability must be between 0 and 1, got {config.start_probability}")
    if config.episodes_per_update % workers.num_envs:
        raise InputError(
            f"episodes_per_update must be a multiple of the number of workers, got {config.episodes_per_update} "
            f"episodes for {workers.num_envs} workers"
        )
    steps = segments * config.episodes_per_update
    if steps % config.minibatches or steps // config.minibatches < 2:
        raise InputError(
            f"minibatches must divide the {steps} steps of a rollout into parts of at least 2, got {config.minibatches}"
        )
    if not 1 <= config.hidden <= MOST_UNITS:
        raise InputError(f"hidden must be from 1 to {MOST_UNITS} units, got {config.hidden}")
    shapes = [workers.observation_space.shape or (), workers.action_space.shape or ()]
    require_memory(4 * steps * sum(math.prod(shape) for shape in shapes), f"a rollout of {steps:,} steps")
    model = PPO(
        "MlpPolicy",
        workers,
        learning_rate=config.learning_rate,
        n_steps=steps // workers.num_envs,
        batch_size=steps // config.minibatches,
        n_epochs=config.epochs,
        gamma=1.0,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip,
        ent_coef=config.entropy,
        target_kl=config.target_kl,
        policy_kwargs={"net_arch": [config.hidden, config.hidden]},
        seed=seed,
        device="cpu",
    )
    assert isinstance(workers.action_space, spaces.MultiDiscrete)
    lean_towards(model.policy, start, workers.action_space.nvec.tolist(), config.start_probability)
    return model


def lean_towards(policy: ActorCriticPolicy, action: Sequence[int], sizes: Sequence[int], probability: float) -> None:
    """Set the bias of an untrained action head so that each choice of `action` has about the given probability."""
    bias = torch.cat(
        [
            torch.where(torch.arange(size) == choice, math.log(probability * (size - 1) / (1 - probability)), 0.0)
            if size > 1
            else torch.zeros(1)
            for choice, size in zip(action, sizes, strict=True)
        ]
    )
    assert isinstance(policy.action_net, torch.nn.Linear)
    with torch.no_grad():
        policy.action_net.bias.copy_(bias)


def search_state(model: PPO) -> dict[str, Any]:
    """Everything of a PPO search at the end of a rollout, random states included, as `classifier.files` saves it."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002, Stable-Baselines3 draws from it
    starts = model._last_episode_starts
    assert isinstance(starts, np.ndarray)
    return {
        "policy": dict(model.policy.state_dict()),
        "optimizer": model.policy.optimizer.state_dict(),
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "episode_starts": [bool(start) for start in starts],
        "torch_random": torch.get_rng_state(),
        "numpy_random": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
    }


def restore_search(
    model: PPO, state: dict[str, Any], observations: NDArray[np.float32] | dict[str, NDArray[np.float32]]
) -> None:
    """Go on from what `search_state` gave.

    Args:
        model: as `build_agent` built it from the same config.
        state: from `search_state`.
        observations: what the workers, moved to where they stood, see now.
    """
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps = state["timesteps"]
    model._n_updates = state["updates"]
    model._last_obs = observations
    model._last_episode_starts = np.array(state["episode_starts"])
    kind, keys, position, has_gauss, gauss = state["numpy_random"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch_random"])


@dataclass(frozen=True)
class Agent:
    """A learned agent: what it needs to choose, and nothing to unpickle.

    Attributes:
        policy: Stable-Baselines3's actor and critic.
        menu: what it chooses from.
        segments: progress at which each of its segments ends.
        provenance: how it was learned; any JSON object.
    """

    policy: ActorCriticPolicy
    menu: Menu
    segments: tuple[float, ...]
    provenance: dict[str, Any]

    def choose(self, observation: NDArray[np.float32]) -> tuple[int, ...]:
        """The most probable action at an observation."""
        action, _ = self.policy.predict(observation, deterministic=True)
        return tuple(int(index) for index in action)

    def probabilities(self, observation: NDArray[np.float32]) -> dict[str, dict[str, float]]:
        """The probability in [0, 1] that the agent gives each choice at an observation, by dimension and choice."""
        tensor, _ = self.policy.obs_to_tensor(observation)
        with torch.no_grad():
            distribution = self.policy.get_distribution(tensor)
        assert isinstance(distribution, MultiCategoricalDistribution)
        return {
            dimension: dict(zip(self.menu.names(dimension), marginal.probs[0].tolist(), strict=True))
            for dimension, marginal in zip(DIMENSIONS, distribution.distribution, strict=True)
        }

    def play(self, env: MixPolicyEnv, task: Task, seed: int) -> list[tuple[int, ...]]:
        """Train a task as the agent finds best, asked live; the environment's trainer is then at its end.

        Args:
            env: with the agent's menu and segments.
            task: what is trained.
            seed: of the training.

        Returns:
            The actions; fewer than there are segments where the training diverged.
        """
        observation, _ = env.reset(seed=seed, options={"task": task})
        actions, over = [], False
        while not over:
            actions.append(self.choose(observation))
            observation, _, over, _, _ = env.step(actions[-1])
        return actions

    def to_files(self) -> dict[str, bytes]:
        """The contents of the files that `save` writes, by name: an agent as it travels."""
        description = {
            "format": FORMAT,
            "version": VERSION,
            "observation_version": OBSERVATION_VERSION,
            "hidden": self.policy.net_arch,
            "menu": self.menu.to_json(),
            "segments": list(self.segments),
            "provenance": self.provenance,
        }
        return {
            "agent.safetensors": save(dict(self.policy.state_dict())),
            "agent.json": (json.dumps(description, indent=2) + "\n").encode(),
        }

    def save(self, folder: Path) -> None:
        """Write `agent.safetensors` and `agent.json` into `folder`."""
        for name, content in self.to_files().items():
            write_atomic(folder / name, content)

    @classmethod
    def load(cls, folder: Path) -> Agent:
        """Read an agent that `save` wrote: a new network is built and given the weights; no code is run.

        Raises:
            DamagedFileError: a file is missing, damaged, of another version, or does not fit the other.
        """
        try:
            return cls.from_files({name: (folder / name).read_bytes() for name in ("agent.json", "agent.safetensors")})
        except (OSError, ValueError) as error:
            raise DamagedFileError(
                f"{folder}: no usable agent there ({error}); it needs agent.json and "
                "agent.safetensors as train_agent.py writes them"
            ) from None

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Agent:
        """The agent that `to_files` gave; no code is run.

        Raises:
            ValueError: it is damaged, of another version, or its parts do not fit each other.
        """
        try:
            value = json.loads(files["agent.json"])
            if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
                raise ValueError(f"not an agent of version {VERSION}")
            names = ["format", "version", "observation_version", "hidden", "menu", "segments", "provenance"]
            require_fields("agent", value, names)
            if value["observation_version"] != OBSERVATION_VERSION:
                raise ValueError(f"it sees observations of version {value['observation_version']}")
            menu = Menu.from_json(value["menu"])
            hidden = [int(units) for units in value["hidden"]]
            if len(hidden) > 8 or any(not 1 <= units <= MOST_UNITS for units in hidden):
                raise ValueError(f"hidden must be up to 8 layers of 1 to {MOST_UNITS} units, got {hidden}")
            if not isinstance(value["segments"], list) or not isinstance(value["provenance"], dict):
                raise ValueError("segments must be a list and provenance an object")
            segments = segment_ends(value["segments"])
            policy = new_policy(menu, hidden)
            policy.load_state_dict(load(files["agent.safetensors"]))
            return cls(policy, menu, segments, value["provenance"])
        # ArithmeticError: JSON knows numbers that are infinite.
        except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError, SafetensorError) as error:
            raise ValueError(error) from None


def new_policy(menu: Menu, hidden: Sequence[int]) -> ActorCriticPolicy:
    """The actor and critic that PPO builds for a menu, with new weights."""
    return ActorCriticPolicy(
        observation_space(menu), spaces.MultiDiscrete(list(menu.sizes)), lambda _: 0.0, net_arch=list(hidden)
    )
