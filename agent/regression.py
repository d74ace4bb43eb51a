"""Start of an agent from logged trainings: values by a bootstrapped ensemble, distilled into an actor and a critic.

An episode gives the value of an action in every segment from which on it was held to the end: all of them if it never
changed, else those from its last change on. An ensemble of networks regresses that value on observation and action,
each on tasks drawn with replacement. The ensemble's mean is the value; the actor follows a lower confidence bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from rlmix.agent.values import ActionValues
from rlmix.classifier.errors import InputError, require_at_least
from rlmix.envs import Menu
from rlmix.envs.effects import action_effects, combination_numbers

MIN_SPREAD = 1e-3  # least standard deviation that an input is divided by, for inputs that never change
BATCH = 256
RANGES = {"temperature": (1e-3, 1e3), "learning_rate": (1e-9, 1.0), "dropout": (0.0, 0.9), "caution": (0.0, 1e3)}


@dataclass(frozen=True)
class RegressionConfig:
    """Hyperparameters of the value networks, and of the agent that follows them.

    Attributes:
        members: number of value networks in the ensemble.
        hidden: number of units of each of their two hidden layers.
        steps: number of Adam's steps, for each network and for the agent.
        learning_rate: highest learning rate, of the networks and of the agent.
        dropout: dropout probability of the value networks, in [0, 1).
        weight_decay: weight decay of the value networks.
        caution: number of the ensemble's standard deviations by which the lower confidence bound is below the mean.
        temperature: temperature of the softmax over these bounds that the actor follows, in units of the score.

    Raises:
        InputError: a value is out of range.
    """

    members: int = 8
    hidden: int = 128
    steps: int = 3000
    learning_rate: float = 3e-3
    dropout: float = 0.1
    weight_decay: float = 0.1
    caution: float = 1.0
    temperature: float = 0.3

    def __post_init__(self) -> None:
        require_at_least(self, members=1, hidden=1, steps=1)
        for name, (low, high) in RANGES.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} must be from {low:g} to {high:g}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Episode:
    """A logged training.

    Attributes:
        task: number of its task.
        observations: observation before each choice, `[S, O]`.
        actions: action of each of the S segments.
        score: score at its end.
    """

    task: int
    observations: NDArray[np.float32]
    actions: Sequence[tuple[int, ...]]
    score: float


@dataclass(frozen=True)
class Decisions:
    """Dataset of N segments whose action was held to the end of the training.

    Attributes:
        observations: `[N, O]`.
        actions: index into the menu's `actions()`, `[N]`.
        scores: score at the end of the training, `[N]`.
        weights: weight in the loss, `[N]`; those of one training sum to 1.
        tasks: number of the task, `[N]`.
        segments: number of the segment, `[N]`, from 0.
    """

    observations: Tensor
    actions: Tensor
    scores: Tensor
    weights: Tensor
    tasks: NDArray[np.int64]
    segments: NDArray[np.int64]

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode], menu: Menu) -> Decisions:
        """Return the decisions of at least one logged training.

        Raises:
            ValueError: an action is not one of the menu's `actions()`.
        """
        index = {action: number for number, action in enumerate(menu.actions())}
        rows: list[tuple[NDArray[np.float32], int, float, float, int, int]] = []
        for episode in episodes:
            actions = [tuple(action) for action in episode.actions]
            if not set(actions) <= set(index):
                raise ValueError(f"actions must be among the menu's {len(index)} distinct ones, got {actions}")
            first = max((place for place in range(1, len(actions)) if actions[place] != actions[place - 1]), default=0)
            weight = 1 / (len(actions) - first)
            rows += [
                (episode.observations[place], index[actions[place]], episode.score, weight, episode.task, place)
                for place in range(first, len(actions))
            ]
        observations, numbers, scores, weights, tasks, places = zip(*rows, strict=True)
        return cls(
            torch.from_numpy(np.stack(observations)),
            torch.tensor(numbers),
            torch.tensor(scores, dtype=torch.float32),
            torch.tensor(weights, dtype=torch.float32),
            np.array(tasks),
            np.array(places),
        )

    def among(self, tasks: Sequence[int]) -> Decisions:
        """Return the decisions of the given tasks."""
        kept = np.flatnonzero(np.isin(self.tasks, list(tasks)))
        chosen = torch.from_numpy(kept)
        return Decisions(
            self.observations[chosen],
            self.actions[chosen],
            self.scores[chosen],
            self.weights[chosen],
            self.tasks[kept],
            self.segments[kept],
        )


def fit_values(decisions: Decisions, menu: Menu, config: RegressionConfig, *, seed: int) -> ActionValues:
    """Fit the ensemble to decisions; the same seed gives the same values.

    Args:
        decisions: decisions among the menu's actions.
        menu: menu of choices.
        config: hyperparameters.
        seed: RNG seed for weights, bootstrap samples, minibatches and dropout.
    """
    mean = decisions.observations.mean(dim=0)
    spread = decisions.observations.std(dim=0).clamp(min=MIN_SPREAD)
    effects = action_effects(menu)[combination_numbers(menu.actions(), menu)]
    inputs = torch.cat(((decisions.observations - mean) / spread, effects[decisions.actions]), dim=1)
    tasks = np.unique(decisions.tasks)
    networks = []
    for member in range(config.members):
        drawn = np.random.default_rng([seed, member]).choice(tasks, len(tasks))
        often = torch.from_numpy(np.array([np.sum(drawn == task) for task in decisions.tasks], dtype=np.float32))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed * config.members + member)
            networks.append(_fit_network(inputs, decisions.scores, often * decisions.weights, config))
    return ActionValues(effects, mean, spread, networks)


def follow_values(
    policy: ActorCriticPolicy,
    values: ActionValues,
    observations: Tensor,
    menu: Menu,
    config: RegressionConfig,
    *,
    seed: int,
) -> float:
    """Distil values into an agent: the actor follows a softmax over the bounds, the critic that softmax's value.

    Args:
        policy: actor and critic of an agent with the same menu; changed in place.
        values: values of every action.
        observations: observations to learn on, `[N, O]`.
        menu: menu of choices.
        config: hyperparameters.
        seed: RNG seed for the minibatches.

    Returns:
        Mean, over the observations, of the bound of the agent's most probable action less the highest bound; at most 0.
    """
    expected, cautious = values(observations, config.caution)
    wanted = torch.softmax(cautious / config.temperature, dim=1)
    worth = (wanted * expected).sum(dim=1)
    choices = torch.tensor(menu.actions())
    # Marginal probability of each choice, `[N, choices]` for each dimension.
    marginals = [
        torch.stack([wanted[:, choices[:, dimension] == choice].sum(dim=1) for choice in range(size)], dim=1)
        for dimension, size in enumerate(menu.sizes)
    ]
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), config.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    for _ in range(config.steps):
        batch = torch.randint(len(observations), (BATCH,), generator=generator)
        distribution, value = policy.get_distribution(observations[batch]), policy.predict_values(observations[batch])
        assert isinstance(distribution, MultiCategoricalDistribution)
        loss = mse_loss(value[:, 0], worth[batch])
        for share, head in zip(marginals, distribution.distribution, strict=True):
            loss = loss - (share[batch] * torch.log_softmax(head.logits, dim=1)).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        chosen = policy.get_distribution(observations).mode()
    index = {menu.policy(action): number for number, action in enumerate(menu.actions())}
    taken = torch.tensor([index[menu.policy(action)] for action in chosen.tolist()])
    return float((cautious.gather(1, taken[:, None])[:, 0] - cautious.max(dim=1).values).mean())


def _fit_network(inputs: Tensor, scores: Tensor, weights: Tensor, config: RegressionConfig) -> nn.Module:
    network = nn.Sequential(
        *(nn.Linear(inputs.shape[1], config.hidden), nn.Tanh(), nn.Dropout(config.dropout)),
        *(nn.Linear(config.hidden, config.hidden), nn.Tanh(), nn.Dropout(config.dropout)),
        nn.Linear(config.hidden, 1),
    )
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    for _ in range(config.steps):
        batch = torch.multinomial(weights, BATCH, replacement=True)
        # Squares, not Huber's loss: a policy that rarely fails, but then badly, must be worth its mean.
        loss = mse_loss(network(inputs[batch])[:, 0], scores[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()
