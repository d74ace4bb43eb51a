"""PPO over `MixPolicyEnv`: building a learner, resuming its search, and the agent that it has become."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv

from rlmix.agent.agent import MAX_UNITS, ActorCritic, Agent
from rlmix.agent.config import PPOConfig
from rlmix.agent.files import NoOptimizer
from rlmix.classifier.errors import InputError
from rlmix.classifier.limits import require_memory
from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES, observation_space


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
        **({"device_random": torch.cuda.get_rng_state(model.device)} if model.device.type == "cuda" else {}),
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
    if model.device.type == "cuda" and "device_random" in state:  # a state from a CPU does not have it
        torch.cuda.set_rng_state(state["device_random"], model.device)


def to_agent(
    policy: ActorCriticPolicy,
    menu: Menu,
    segments: tuple[float, ...],
    provenance: dict[str, Any],
    features: tuple[str, ...] = DEFAULT_FEATURES,
) -> Agent:
    """Return the agent that has learned a policy, with a copy of its weights; see `Agent` for the arguments."""
    weights = {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()}
    hidden = [int(units) for units in policy.net_arch]
    return Agent(ActorCritic.from_weights(menu, hidden, features, weights), menu, segments, provenance, features)


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
