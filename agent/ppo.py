"""PPO over `MixPolicyEnv`: building an agent, saving it without pickle, and resuming its search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from rlmix.agent.config import PPOConfig
from rlmix.agent.files import SHIPPED, SHIPPED_FOLDER, AgentFormat, NoOptimizer, files_checksum, write_files
from rlmix.classifier.errors import InputError
from rlmix.classifier.hardware import require_memory
from rlmix.envs import DIMENSIONS, Menu, MixPolicyEnv, Task, TaskDistribution, TaskTrainer
from rlmix.envs.mix_policy import segment_ends
from rlmix.envs.observation import DEFAULT_FEATURES, observation_space, require_features

FORMAT = AgentFormat(
    name="rl-mix agent",
    version=1,
    title="agent",
    command="train_agent.py",
    fields=("observation_version", "hidden", "menu", "segments", "provenance"),
)
OBSERVATION_VERSION = 1  # the default features; an agent that sees others names them in its place
MAX_UNITS, MAX_LAYERS = 4096, 8  # units of a hidden layer, and number of such layers


def build_agent(
    config: PPOConfig, workers: VecEnv, *, segments: int, seed: int, start: Sequence[int] | None = None
) -> PPO:
    """Return a PPO agent with new weights.

    Args:
        config: hyperparameters.
        workers: environments to learn from.
        segments: number of steps of an episode.
        seed: RNG seed for weights and sampling; seeds torch's and NumPy's global generators, as Stable-Baselines3 does.
        start: action that is likely at first, as an index into each dimension of the menu; optional, defaults to all
            being about equally likely.

    Raises:
        InputError: the episodes are not divisible among the workers or the steps among the minibatches, a rollout does
            not fit into memory, or an option is out of range.
    """
    if not 0 < config.start_probability < 1:
        raise InputError(f"start_probability must be between 0 and 1, got {config.start_probability}")
    if config.episodes_per_update % workers.num_envs:
        raise InputError(
            "episodes_per_update must be divisible by the number of parallel environments, got "
            f"{config.episodes_per_update} episodes for {workers.num_envs} environments"
        )
    steps = segments * config.episodes_per_update
    if config.minibatches < 1 or steps % config.minibatches or steps // config.minibatches < 2:
        raise InputError(
            f"the {steps} steps of a rollout must be divisible by minibatches, with at least 2 steps in each, "
            f"got {config.minibatches} minibatches"
        )
    if not 1 <= config.hidden <= MAX_UNITS:
        raise InputError(f"hidden must be from 1 to {MAX_UNITS} units, got {config.hidden}")
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
    if start is not None:
        bias_action_head(model.policy, start, workers.action_space.nvec.tolist(), config.start_probability)
    return model


def bias_action_head(
    policy: ActorCriticPolicy, action: Sequence[int], sizes: Sequence[int], probability: float
) -> None:
    """Set the bias of an untrained action head so that it prefers an action.

    Each choice of `action` has about the given probability, and never less than the others of its dimension.
    """
    bias = torch.zeros(sum(sizes))
    for first, choice, size in zip(itertools.accumulate(sizes, initial=0), action, sizes, strict=False):
        if size > 1:
            bias[first + choice] = max(math.log(probability * (size - 1) / (1 - probability)), 0.0)
    assert isinstance(policy.action_net, torch.nn.Linear)
    with torch.no_grad():
        policy.action_net.bias.copy_(bias)


def search_state(model: PPO) -> dict[str, Any]:
    """Return the state of a PPO search at the end of a rollout, random states included, for `classifier.files`."""
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


def start_search(model: PPO, observations: NDArray[np.float32], state: dict[str, Any] | None = None) -> None:
    """Prepare a model for `learn(..., reset_num_timesteps=False)`, at the start of a search or from a saved state.

    Args:
        model: model from `build_agent`.
        observations: first observation of each environment, `[N, O]`.
        state: state from `search_state` to resume from; optional, defaults to a new search.
    """
    if state is not None:
        restore_search(model, state, observations)
    else:
        model._last_obs = observations
        model._last_episode_starts = np.ones(len(observations), dtype=bool)


def restore_search(
    model: PPO, state: dict[str, Any], observations: NDArray[np.float32] | dict[str, NDArray[np.float32]]
) -> None:
    """Resume from a state of `search_state`.

    Args:
        model: new model of the same configuration.
        state: state from `search_state`.
        observations: current observations of the environments, which have been brought to where they were.
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
    """A learned agent: what it needs to choose, without anything to unpickle.

    Attributes:
        policy: Stable-Baselines3's actor and critic.
        menu: menu of choices.
        segments: progress at which each of its segments ends.
        provenance: how it was learned; any JSON object.
        features: names of the features that it sees, in order.
    """

    policy: ActorCriticPolicy
    menu: Menu
    segments: tuple[float, ...]
    provenance: dict[str, Any]
    features: tuple[str, ...] = DEFAULT_FEATURES

    def choose(self, observation: NDArray[np.float32]) -> tuple[int, ...]:
        """Return the most probable action at an observation."""
        action, _ = self.policy.predict(observation, deterministic=True)
        return tuple(int(index) for index in action)

    def probabilities(self, observation: NDArray[np.float32]) -> dict[str, dict[str, float]]:
        """Return the probability in [0, 1] of each choice at an observation, by dimension and choice."""
        tensor, _ = self.policy.obs_to_tensor(observation)
        with torch.no_grad():
            distribution = self.policy.get_distribution(tensor)
        assert isinstance(distribution, MultiCategoricalDistribution)
        return {
            dimension: dict(zip(self.menu.names(dimension), marginal.probs[0].tolist(), strict=True))
            for dimension, marginal in zip(DIMENSIONS, distribution.distribution, strict=True)
        }

    def environment(self, trainer: TaskTrainer, task: Task) -> MixPolicyEnv:
        """Return the environment in which the agent can play `task`; the reward is that of the end, `final`."""
        tasks = TaskDistribution(updates=(task.updates, task.updates))
        return MixPolicyEnv(
            task_trainer=trainer,
            tasks=tasks,
            segments=self.segments,
            reward="final",
            menu=self.menu,
            features=self.features,
        )

    def play(self, env: MixPolicyEnv, task: Task, seed: int) -> list[tuple[int, ...]]:
        """Train a task with the agent's most probable actions; the environment's trainer is then at its end.

        Args:
            env: environment with the agent's menu and segments.
            task: task to train.
            seed: RNG seed for the training.

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
        """Return the contents of the files that `save` writes, by name, as an agent is sent to a worker."""
        description = {
            "observation_version": OBSERVATION_VERSION if self.features == DEFAULT_FEATURES else list(self.features),
            "hidden": self.policy.net_arch,
            "menu": self.menu.to_json(),
            "segments": list(self.segments),
            "provenance": self.provenance,
        }
        return FORMAT.to_files(description, dict(self.policy.state_dict()))

    @property
    def checksum(self) -> str:
        """SHA-256 of the agent's files, by which logs and protocols name it."""
        return files_checksum(self.to_files())

    def save(self, folder: Path) -> None:
        """Write `agent.safetensors` and `agent.json` into `folder`."""
        write_files(folder, self.to_files())

    @classmethod
    def load(cls, folder: Path | str) -> Agent:
        """Read an agent that `save` wrote; no code is run.

        Args:
            folder: folder of the agent, or `"shipped"` for the one that comes with the program.

        Raises:
            DamagedFileError: a file is missing, damaged, of another version, or does not fit the other.
        """
        return FORMAT.load(SHIPPED_FOLDER if folder == SHIPPED else Path(folder), cls._build)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Agent:
        """Return the agent of which `to_files` gave the files; no code is run.

        Raises:
            ValueError: the files are damaged, of another version, or do not fit each other.
        """
        return FORMAT.from_files(files, cls._build)

    @classmethod
    def _build(cls, value: dict[str, Any], weights: dict[str, torch.Tensor]) -> Agent:
        seen, features = value["observation_version"], DEFAULT_FEATURES
        if isinstance(seen, list):
            features = require_features(seen)
        elif seen != OBSERVATION_VERSION:
            raise ValueError(f"expected observations of version {OBSERVATION_VERSION} or features by name, got {seen}")
        menu = Menu.from_json(value["menu"])
        hidden = [int(units) for units in value["hidden"]]
        if len(hidden) > MAX_LAYERS or any(not 1 <= units <= MAX_UNITS for units in hidden):
            raise ValueError(f"hidden must be at most {MAX_LAYERS} layers of 1 to {MAX_UNITS} units, got {hidden}")
        if not isinstance(value["segments"], list):
            raise ValueError(f"segments must be a list, got {value['segments']!r:.80}")
        segments = segment_ends(value["segments"])
        policy = new_policy(menu, hidden, features)
        policy.load_state_dict(weights)
        return cls(policy, menu, segments, value["provenance"], features)


def new_policy(menu: Menu, hidden: Sequence[int], features: Sequence[str] = DEFAULT_FEATURES) -> ActorCriticPolicy:
    """Return the actor and critic that PPO builds for a menu, with new weights and without an optimiser.

    Args:
        menu: menu of choices.
        hidden: number of units of each hidden layer.
        features: names of the features that it sees.
    """
    return ActorCriticPolicy(
        observation_space(menu, features),
        spaces.MultiDiscrete(list(menu.sizes)),
        lambda _: 0.0,
        net_arch=list(hidden),
        optimizer_class=NoOptimizer,
    )
