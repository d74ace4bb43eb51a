"""Agent: a learned policy that chooses a mixing policy at every segment; a small torch module and what it needs to ask.

Only torch and safetensors are needed to load an agent and to let it choose: neither Stable-Baselines3, Gymnasium, SciPy
nor Ray is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Categorical

from rlmix.agent.files import AgentFormat, files_checksum, place_of, write_files
from rlmix.classifier.errors import InputError
from rlmix.envs.menu import DIMENSIONS, Menu
from rlmix.envs.observation import DEFAULT_FEATURES, require_features
from rlmix.envs.segments import segment_ends

if TYPE_CHECKING:
    from rlmix.envs import MixPolicyEnv, Task, TaskTrainer

FORMAT = AgentFormat(
    name="rl-mix agent",
    version=1,
    title="agent",
    command="train_agent.py",
    fields=("observation_version", "hidden", "menu", "segments", "provenance"),
)
Allowed = Sequence[Sequence[int]]  # for each dimension of the menu the indices of choices that can be had
OBSERVATION_VERSION = 1  # the default features; an agent that sees others names them in its place
MAX_UNITS, MAX_LAYERS = 4096, 8  # units of a hidden layer, and number of such layers


class ActorCritic(nn.Module):
    """Actor and critic of an agent, with Stable-Baselines3's names of the weights and its arithmetic.

    Args:
        inputs: length O of an observation.
        hidden: number of units of each hidden layer.
        choices: number of choices in all dimensions of the menu together.
    """

    def __init__(self, inputs: int, hidden: Sequence[int], choices: int) -> None:
        super().__init__()
        self.hidden = list(hidden)
        last = hidden[-1] if hidden else inputs
        self.mlp_extractor = nn.ModuleDict({name: _layers([inputs, *hidden]) for name in ("policy_net", "value_net")})
        self.action_net = nn.Linear(last, choices)
        self.value_net = nn.Linear(last, 1)

    @classmethod
    def from_weights(
        cls, menu: Menu, hidden: Sequence[int], features: Sequence[str], weights: Mapping[str, Tensor]
    ) -> ActorCritic:
        """Return the network of a menu and of features with given weights, which it keeps; draws no random number.

        Raises:
            RuntimeError: the weights do not fit.
        """
        with torch.device("meta"):  # without memory or random numbers, until the weights are there
            network = cls(len(features) + sum(menu.sizes), hidden, sum(menu.sizes))
        network.load_state_dict(weights, assign=True)
        return network.float().requires_grad_(False).eval()

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of all choices, `[N, choices]`, and values `[N, 1]`, of observations `[N, O]`."""
        actor, critic = self.mlp_extractor["policy_net"], self.mlp_extractor["value_net"]
        return self.action_net(actor(observations)), self.value_net(critic(observations))


def _layers(sizes: Sequence[int]) -> nn.Sequential:
    return nn.Sequential(*(layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.Tanh())))


def playing_environment(
    trainer: TaskTrainer, task: Task, menu: Menu, segments: Sequence[float], features: Sequence[str]
) -> MixPolicyEnv:
    """Return an environment for one training of `task`; the reward is that of the end, `final`.

    Args:
        trainer: trains the task.
        task: the task.
        menu: choices of whoever plays.
        segments: progress at which each segment ends.
        features: names of the features that are observed.
    """
    from rlmix.envs import MixPolicyEnv, TaskDistribution

    tasks = TaskDistribution(updates=(task.updates, task.updates))
    return MixPolicyEnv(
        task_trainer=trainer, tasks=tasks, segments=segments, reward="final", menu=menu, features=features
    )


@dataclass(frozen=True)
class Agent:
    """A learned agent: what it needs to choose, without anything to unpickle.

    Attributes:
        policy: actor and critic.
        menu: menu of choices.
        segments: progress at which each of its segments ends.
        provenance: how it was learned; any JSON object.
        features: names of the features that it sees, in order.
    """

    policy: ActorCritic
    menu: Menu
    segments: tuple[float, ...]
    provenance: dict[str, Any]
    features: tuple[str, ...] = DEFAULT_FEATURES

    def choose(self, observation: NDArray[np.float32], allowed: Allowed | None = None) -> tuple[int, ...]:
        """Return the most probable action at an observation.

        Args:
            observation: `[O]`.
            allowed: for each dimension the choices that can be had, at least one; optional, defaults to all.

        Raises:
            InputError: the observation is not one of this agent's features and menu.
        """
        shares = self._shares(observation)
        if allowed is None:
            return tuple(int(one.argmax()) for one in shares)
        return tuple(max(among, key=one.tolist().__getitem__) for one, among in zip(shares, allowed, strict=True))

    def probabilities(self, observation: NDArray[np.float32]) -> dict[str, dict[str, float]]:
        """Return the probability in [0, 1] of each choice at an observation, by dimension and choice.

        Raises:
            InputError: the observation is not one of this agent's features and menu.
        """
        return {
            dimension: dict(zip(self.menu.names(dimension), shares.tolist(), strict=True))
            for dimension, shares in zip(DIMENSIONS, self._shares(observation), strict=True)
        }

    def _shares(self, observation: NDArray[np.float32]) -> list[Tensor]:
        """Return the probabilities of the choices of each dimension."""
        seen = torch.as_tensor(observation)[None].float()
        if seen.shape != (1, len(self.features) + sum(self.menu.sizes)):
            raise InputError(
                f"expected an observation of {len(self.features)} features and {sum(self.menu.sizes)} choices of the "
                f"menu, got shape {tuple(seen.shape[1:])}; make the environment with features=agent.features and "
                "menu=agent.menu, or by agent.environment(trainer, task)"
            )
        with torch.no_grad():
            logits, _ = self.policy(seen)
        # Categorical's own rounding: logits are normalised before the softmax.
        return [Categorical(logits=part, validate_args=False).probs[0] for part in logits.split(self.menu.sizes, dim=1)]

    def environment(self, trainer: TaskTrainer, task: Task) -> MixPolicyEnv:
        """Return the environment in which the agent can play `task`; the reward is that of the end, `final`."""
        return playing_environment(trainer, task, self.menu, self.segments, self.features)

    def play(self, env: MixPolicyEnv, task: Task, seed: int, *, looks: int | None = None) -> list[tuple[int, ...]]:
        """Train a task with the agent's most probable actions; the environment's trainer is then at its end.

        Args:
            env: environment with the agent's menu and segments.
            task: task to train.
            seed: RNG seed for the training.
            looks: number of choices, at least 1, of which the last one is held to the end; optional, defaults to one in
                each segment.

        Returns:
            The actions; fewer than there are segments where the training diverged.
        """
        observation, _ = env.reset(seed=seed, options={"task": task})
        actions: list[tuple[int, ...]] = []
        over = False
        while not over:
            actions.append(self.choose(observation) if looks is None or len(actions) < looks else actions[-1])
            observation, _, over, _, _ = env.step(actions[-1])
        return actions

    def to_files(self) -> dict[str, bytes]:
        """Return the contents of the files that `save` writes, by name, as an agent is sent to a worker."""
        description = {
            "observation_version": OBSERVATION_VERSION if self.features == DEFAULT_FEATURES else list(self.features),
            "hidden": self.policy.hidden,
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
        return FORMAT.load(place_of(folder), cls._build)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Agent:
        """Return the agent of which `to_files` gave the files; no code is run.

        Raises:
            ValueError: the files are damaged, of another version, or do not fit each other.
        """
        return FORMAT.from_files(files, cls._build)

    @classmethod
    def _build(cls, value: dict[str, Any], weights: dict[str, Tensor]) -> Agent:
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
        policy = ActorCritic.from_weights(menu, hidden, features, weights)
        return cls(policy, menu, segments, value["provenance"], features)
