"""Forecaster: what a training is expected to reach under each action of a menu; an ensemble, in torch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlmix.agent.any_agent import AnyAgent
from rlmix.agent.files import AgentFormat, place_of, write_files
from rlmix.envs.effects import action_effects, combination_numbers
from rlmix.envs.menu import Menu
from rlmix.envs.observation import require_features
from rlmix.envs.segments import segment_ends

FORMAT = AgentFormat(
    name="rl-mix forecaster",
    version=2,
    title="forecaster",
    command="studies/broad/fit_agent.py",
    fields=("features", "members", "menu", "segments", "noise", "provenance"),
    optional=("realised", "portfolio"),
    stem="forecaster",
)
MAX_MEMBERS = 1000
RANGE = 3.0  # standard deviations beyond which an observation is taken to lie there


class ActionValues:
    """Expected score of holding each of A actions to the end.

    Args:
        effects: features of each action, `[A, E]`.
        mean, spread: mean and standard deviation by which observations are standardised, `[O]`.
        networks: ensemble; each maps `[N, O + E]`, observations and action features, to scores `[N, 1]`.
    """

    def __init__(self, effects: Tensor, mean: Tensor, spread: Tensor, networks: Sequence[nn.Module]) -> None:
        self.effects, self.mean, self.spread, self.networks = effects, mean, spread, networks

    def of_members(self, observations: Tensor) -> Tensor:
        """Return the values by each network of the ensemble.

        Args:
            observations: `[N, O]`.

        Returns:
            `[M, N, A]`, actions in the order of the menu's `actions()`.
        """
        seen = (observations - self.mean) / self.spread
        count = len(self.effects)
        inputs = torch.cat((seen.repeat_interleave(count, 0), self.effects.repeat(len(seen), 1)), dim=1)
        with torch.no_grad():
            return torch.stack([network(inputs).view(-1, count) for network in self.networks])

    def __call__(self, observations: Tensor, caution: float) -> tuple[Tensor, Tensor]:
        """Return the values and their lower confidence bounds.

        Args:
            observations: `[N, O]`.
            caution: number of the ensemble's standard deviations between value and bound.

        Returns:
            Values and bounds, `[N, A]` each, in the order of the menu's `actions()`.
        """
        told = self.of_members(observations)
        mean = told.mean(dim=0)
        return mean, mean - caution * told.std(dim=0, correction=0)


class LinearValue(nn.Module):
    """Score of holding an action: the state's value and the action's advantage, both linear in what is observed.

    With f = (1, z, p, p z) of the standardised observation z and its progress p, and the action's effects e, it is
    f . state + f . advantage e. Interactions with progress let the weights change over the training.

    Args:
        state: `[F]`.
        advantage: `[F, E]`.
        progress: place of the progress in an observation.
    """

    state: Tensor
    advantage: Tensor

    def __init__(self, state: Tensor, advantage: Tensor, progress: int) -> None:
        super().__init__()
        self.progress = progress
        self.register_buffer("state", state)
        self.register_buffer("advantage", advantage)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return scores `[N, 1]` of standardised observations and effects of actions, `[N, O + E]`."""
        effects = self.advantage.shape[1]
        terms = linear_terms(inputs[:, : inputs.shape[1] - effects], self.progress)
        advantages = ((terms @ self.advantage) * inputs[:, inputs.shape[1] - effects :]).sum(dim=1)
        return (terms @ self.state + advantages)[:, None]

    def without_state(self) -> LinearValue:
        """Return the advantage alone."""
        return LinearValue(torch.zeros_like(self.state), self.advantage, self.progress)


def linear_terms(observations: Tensor, progress: int) -> Tensor:
    """Return the terms (1, z, p, p z) of standardised observations, `[N, 2 O + 2]`; beyond `RANGE` they are cut off.

    Args:
        observations: `[N, O]`.
        progress: place of the progress in them.
    """
    seen = observations.clamp(-RANGE, RANGE)
    terms = torch.cat((torch.ones_like(seen[:, :1]), seen), dim=1)
    return torch.cat((terms, terms * seen[:, progress : progress + 1]), dim=1)


def relative_effects(menu: Menu) -> Tensor:
    """Return the effects of a menu's `actions()` less those of the first one, `[A, E]`.

    There is one more for each method, 1 where half of the updates are the method's and 0 where all or none are: its
    best share may lie between.
    """
    actions, methods = menu.actions(), dict.fromkeys(method for _, shares in menu.sources for method in shares)
    shares = torch.tensor([[menu.policy(action).shares.get(method, 0.0) for method in methods] for action in actions])
    effects = torch.cat((action_effects(menu)[combination_numbers(actions, menu)], 4 * shares * (1 - shares)), dim=1)
    return effects - effects[:1]


@dataclass(frozen=True)
class Forecaster:
    """Forecasts of the accuracy at the end of a training, to compare trainings of one task with.

    Attributes:
        values: points of accuracy of holding each action to the end, up to a constant of the task.
        menu: menu of the actions.
        segments: progress at which each segment ends.
        features: names of the features that it sees, in order.
        noise: standard deviation of a training's result about its forecast, in points, before each segment.
        provenance: how it was learned; any JSON object.
        realised: share of what one more training is expected to add, by how far those before it are apart, that came on
            tasks that it had not learned from.
        portfolio: actions in the order in which trainings that hold them begin; those that are missing follow by their
            forecasts.
    """

    values: ActionValues
    menu: Menu
    segments: tuple[float, ...]
    features: tuple[str, ...]
    noise: tuple[float, ...]
    provenance: dict[str, Any]
    realised: float = 1.0
    portfolio: tuple[tuple[int, ...], ...] = ()

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the forecasts of each network of the ensemble, in points, `[M, N, A]`, of observations `[N, O]`."""
        return self.values.of_members(torch.from_numpy(observations)).double().numpy()

    def fits(self, agent: AnyAgent) -> bool:
        """Return whether it has an agent's or a rule's menu and segments; they may see different features."""
        return (self.menu, self.segments) == (agent.menu, agent.segments)

    def save(self, folder: Path) -> None:
        """Write `forecaster.safetensors` and `forecaster.json` into `folder`."""
        weights = {"mean": self.values.mean, "spread": self.values.spread}
        for number, network in enumerate(self.values.networks):
            weights |= {f"{number}.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
        description = {
            "features": list(self.features),
            "members": len(self.values.networks),
            "menu": self.menu.to_json(),
            "segments": list(self.segments),
            "noise": list(self.noise),
            "provenance": self.provenance,
            "realised": self.realised,
            "portfolio": [list(action) for action in self.portfolio],
        }
        write_files(folder, FORMAT.to_files(description, weights))

    @classmethod
    def load(cls, folder: Path | str) -> Forecaster:
        """Read a forecaster that `save` wrote; no code is run.

        Args:
            folder: folder of the forecaster, or the name of an agent that comes with the program.

        Raises:
            DamagedFileError: a file is missing, damaged, of another version, or does not fit the other.
        """
        return FORMAT.load(place_of(folder), cls._build)

    @classmethod
    def _build(cls, value: dict[str, Any], weights: dict[str, Tensor]) -> Forecaster:
        menu, features = Menu.from_json(value["menu"]), require_features(value["features"])
        segments, noise = segment_ends(value["segments"]), tuple(float(number) for number in value["noise"])
        members = int(value["members"])
        if not 1 <= members <= MAX_MEMBERS:
            raise ValueError(f"members must be in [1, {MAX_MEMBERS}], got {members}")
        if len(noise) != len(segments) or not all(0 <= number < float("inf") for number in noise):
            raise ValueError(f"noise must be a number of at least 0 for each segment, got {value['noise']!r:.80}")
        realised = float(value.get("realised", 1.0))
        if not 0 <= realised <= 1:
            raise ValueError(f"realised must be in [0, 1], got {realised:g}")
        portfolio = tuple(tuple(int(choice) for choice in action) for action in value.get("portfolio", ()))
        if unknown := set(portfolio) - set(menu.actions()):
            raise ValueError(f"portfolio must have actions of the menu, got {sorted(unknown)}")
        values = _values(menu, features, members, weights)
        return cls(values, menu, segments, features, noise, value["provenance"], realised, portfolio)


def _values(menu: Menu, features: Sequence[str], members: int, weights: Mapping[str, Tensor]) -> ActionValues:
    """Return the values of which `save` wrote the weights.

    Raises:
        ValueError: the weights have other shapes.
        KeyError: one is missing.
    """
    effects, observed = relative_effects(menu), len(features) + sum(menu.sizes)
    terms = 2 * observed + 2
    expected = {"mean": [observed], "spread": [observed]}
    for number in range(members):
        expected |= {f"{number}.state": [terms], f"{number}.advantage": [terms, effects.shape[1]]}
    for name, shape in expected.items():
        if list(weights[name].shape) != shape:
            raise ValueError(f"{name} must be of {shape}, got {list(weights[name].shape)}")
    progress = features.index("progress")
    networks = [
        LinearValue(weights[f"{number}.state"].float(), weights[f"{number}.advantage"].float(), progress)
        for number in range(members)
    ]
    return ActionValues(effects, weights["mean"].float(), weights["spread"].float(), networks)
