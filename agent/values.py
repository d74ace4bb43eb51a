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

from rlmix.agent.agent import Agent
from rlmix.agent.files import NAMED, AgentFormat, write_files
from rlmix.envs.effects import action_effects, combination_numbers
from rlmix.envs.menu import Menu
from rlmix.envs.observation import require_features
from rlmix.envs.segments import segment_ends

FORMAT = AgentFormat(
    name="rl-mix forecaster",
    version=1,
    title="forecaster",
    command="studies/broad/fit_forecaster.py",
    fields=("features", "hidden", "members", "menu", "segments", "noise", "provenance"),
    stem="forecaster",
)
MAX_UNITS, MAX_MEMBERS = 4096, 1000


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


def value_network(inputs: int, hidden: int, dropout: float = 0.0) -> nn.Sequential:
    """Return a network of an ensemble, with two hidden layers.

    Args:
        inputs: number of inputs: of an observation and of an action's features.
        hidden: number of units of each hidden layer.
        dropout: probability, in [0, 1), of dropping a unit in training.
    """
    return nn.Sequential(
        *(nn.Linear(inputs, hidden), nn.Tanh(), nn.Dropout(dropout)),
        *(nn.Linear(hidden, hidden), nn.Tanh(), nn.Dropout(dropout)),
        nn.Linear(hidden, 1),
    )


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
    """

    values: ActionValues
    menu: Menu
    segments: tuple[float, ...]
    features: tuple[str, ...]
    noise: tuple[float, ...]
    provenance: dict[str, Any]

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the forecasts of each network of the ensemble, in points, `[M, N, A]`, of observations `[N, O]`."""
        return self.values.of_members(torch.from_numpy(observations)).double().numpy()

    def fits(self, agent: Agent) -> bool:
        """Return whether it has an agent's menu and segments; they may see different features."""
        return (self.menu, self.segments) == (agent.menu, agent.segments)

    def save(self, folder: Path) -> None:
        """Write `forecaster.safetensors` and `forecaster.json` into `folder`."""
        networks = self.values.networks
        weights = {"mean": self.values.mean, "spread": self.values.spread}
        for number, network in enumerate(networks):
            weights |= {f"{number}.{name}": tensor.contiguous() for name, tensor in network.state_dict().items()}
        description = {
            "features": list(self.features),
            "hidden": len(weights["0.0.bias"]),
            "members": len(networks),
            "menu": self.menu.to_json(),
            "segments": list(self.segments),
            "noise": list(self.noise),
            "provenance": self.provenance,
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
        return FORMAT.load(NAMED.get(str(folder), Path(folder)), cls._build)

    @classmethod
    def _build(cls, value: dict[str, Any], weights: dict[str, Tensor]) -> Forecaster:
        menu, features = Menu.from_json(value["menu"]), require_features(value["features"])
        segments, noise = segment_ends(value["segments"]), tuple(float(number) for number in value["noise"])
        hidden, members = int(value["hidden"]), int(value["members"])
        if not (1 <= hidden <= MAX_UNITS and 1 <= members <= MAX_MEMBERS):
            raise ValueError(f"hidden and members must be in [1, {MAX_UNITS}] and [1, {MAX_MEMBERS}]")
        if len(noise) != len(segments) or not all(0 <= number < float("inf") for number in noise):
            raise ValueError(f"noise must be a number of at least 0 for each segment, got {value['noise']!r:.80}")
        values = _values(menu, features, hidden, members, weights)
        return cls(values, menu, segments, features, noise, value["provenance"])


def _values(
    menu: Menu, features: Sequence[str], hidden: int, members: int, weights: Mapping[str, Tensor]
) -> ActionValues:
    """Return the values of which `save` wrote the weights.

    Raises:
        RuntimeError: the weights do not fit.
        KeyError: one is missing.
    """
    effects = action_effects(menu)[combination_numbers(menu.actions(), menu)]
    observed = len(features) + sum(menu.sizes)
    networks = []
    for number in range(members):
        with torch.device("meta"):
            network = value_network(observed + effects.shape[1], hidden)
        start = f"{number}."
        own = {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}
        network.load_state_dict(own, assign=True)
        networks.append(network.float().requires_grad_(False).eval())
    mean, spread = weights["mean"].float(), weights["spread"].float()
    if mean.shape != (observed,) or spread.shape != (observed,):
        raise ValueError(f"mean and spread must be of {observed} numbers")
    return ActionValues(effects, mean, spread, networks)
