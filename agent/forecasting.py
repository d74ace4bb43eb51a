"""Learning a forecaster from logged trainings, to compare trainings of one task with each other.

It learns differences within a task alone: what all trainings of a task have in common at the start of a segment, such
as how hard the task is, is taken out of scores and terms. What is left is fitted by ridge regression, whose few weights
carry over to data sets that were not recorded better than networks do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlmix.agent.regression import MIN_SPREAD, Decisions
from rlmix.agent.values import ActionValues, Forecaster, LinearValue, linear_terms, relative_effects
from rlmix.classifier.errors import InputError, require_at_least
from rlmix.envs import Menu

FOLDS = 5
MOST = 15.0  # points from a task's median beyond which a result is taken to lie there: a training that failed


@dataclass(frozen=True)
class RidgeConfig:
    """Hyperparameters of the ridge regression.

    Attributes:
        members: number of fits in the ensemble, each to tasks drawn with replacement.
        state_penalty: penalty of the weights of the state's value, and of an action's mean advantage.
        advantage_penalty: penalty of the other weights of the advantage.

    Raises:
        InputError: a value is out of range.
    """

    members: int = 8
    state_penalty: float = 5.0
    advantage_penalty: float = 100.0

    def __post_init__(self) -> None:
        require_at_least(self, members=1)
        for name in ("state_penalty", "advantage_penalty"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")


def fit_forecaster(
    decisions: Decisions,
    menu: Menu,
    segments: Sequence[float],
    features: Sequence[str],
    config: RidgeConfig,
    *,
    seed: int,
    facts: Mapping[str, Any],
) -> Forecaster:
    """Fit a forecaster, and measure how results scatter about its forecasts on tasks that it has not learned from.

    Args:
        decisions: decisions among the menu's actions, scored in points.
        menu: menu of choices.
        segments: progress at which each segment ends.
        features: names of the observations' features, progress among them.
        config: hyperparameters.
        seed: RNG seed for folds and bootstrap samples.
        facts: how the decisions were made, for the provenance.

    Raises:
        InputError: there are too few tasks.
    """
    told = held_out_forecasts(decisions, menu, features, config, seed=seed)
    errors = [_errors(decisions, told, segment) for segment in range(len(segments))]
    measured = [{name: round(value, 3) for name, value in error.items()} for error in errors]
    return Forecaster(
        fit_within_tasks(decisions, menu, features, config, seed=seed),
        menu,
        tuple(segments),
        tuple(features),
        # The members' disagreement is known of each forecast; the rest is the same for all.
        tuple(round(math.sqrt(max(e["error"] ** 2 - e["disagreement"] ** 2, 0.0)), 4) for e in errors),
        {**facts, "held_out_tasks": measured},
    )


def held_out_forecasts(
    decisions: Decisions, menu: Menu, features: Sequence[str], config: RidgeConfig, *, seed: int
) -> Tensor:
    """Return each member's forecast of each decision, learned on other tasks, `[M, N]`.

    Args:
        decisions: decisions among the menu's actions, scored in points.
        menu: menu of choices.
        features: names of the observations' features.
        config: hyperparameters.
        seed: RNG seed for folds and bootstrap samples.

    Raises:
        InputError: there are too few tasks.
    """
    tasks = np.random.default_rng(seed).permutation(np.unique(decisions.tasks))
    if len(tasks) < FOLDS:
        raise InputError(f"a forecaster needs trainings of at least {FOLDS} tasks, got {len(tasks)}")
    told = torch.zeros(config.members, len(decisions.scores))
    for fold in range(FOLDS):
        held = tasks[fold::FOLDS].tolist()
        values = fit_within_tasks(
            decisions.among([task for task in tasks.tolist() if task not in set(held)]),
            menu,
            features,
            config,
            seed=seed,
        )
        places = torch.from_numpy(np.flatnonzero(np.isin(decisions.tasks, held)))
        actions = decisions.actions[places].expand(config.members, -1)[..., None]
        told[:, places] = values.of_members(decisions.observations[places]).gather(2, actions)[..., 0]
    return told


def fit_within_tasks(
    decisions: Decisions, menu: Menu, features: Sequence[str], config: RidgeConfig, *, seed: int
) -> ActionValues:
    """Fit an ensemble to the differences between the trainings of each task, at the start of each segment.

    Args:
        decisions: decisions among the menu's actions, scored in points.
        menu: menu of choices.
        features: names of the observations' features, progress among them.
        config: hyperparameters.
        seed: RNG seed for bootstrap samples; the same one gives the same values.

    Returns:
        Values in points, up to a constant of each task.

    Raises:
        InputError: no task has several trainings.
    """
    groups = groups_of(decisions)
    if all(len(members) < 2 for members in groups):
        raise InputError("a forecaster needs several trainings of one task, got one of each")
    mean = decisions.observations.mean(dim=0)
    spread = decisions.observations.std(dim=0).clamp(min=MIN_SPREAD)
    effects, progress = relative_effects(menu), list(features).index("progress")
    terms = linear_terms(((decisions.observations - mean) / spread).double(), progress)
    advantages = terms[:, :, None] * effects.double()[decisions.actions][:, None, :]
    group_of = torch.empty(len(terms), dtype=torch.long)
    for number, members in enumerate(groups):
        group_of[torch.from_numpy(members)] = number
    inputs = _centred(torch.cat((terms, advantages.flatten(1)), dim=1), group_of)
    targets = _centred(torch.from_numpy(within_reach(decisions, groups))[:, None], group_of)[:, 0]
    penalties = torch.full((inputs.shape[1],), config.advantage_penalty, dtype=torch.float64)
    penalties[: terms.shape[1] + effects.shape[1]] = config.state_penalty
    tasks, task_of = np.unique(decisions.tasks, return_inverse=True)
    networks = []
    for member in range(config.members):
        drawn = np.random.default_rng([seed, member]).integers(len(tasks), size=len(tasks))
        often = torch.from_numpy(np.bincount(drawn, minlength=len(tasks))[task_of.reshape(-1)])
        weighted = inputs * (often * decisions.weights.double())[:, None]
        weights = torch.linalg.solve(inputs.T @ weighted + torch.diag(penalties), weighted.T @ targets).float()
        state, advantage = weights.split((terms.shape[1], advantages[0].numel()))
        networks.append(LinearValue(state.clone(), advantage.reshape(-1, effects.shape[1]).clone(), progress))
    return ActionValues(effects, mean, spread, networks)


def groups_of(decisions: Decisions) -> list[np.ndarray]:
    """Return the places of the decisions that belong to the same task and segment, group by group."""
    pairs = np.stack([decisions.tasks, decisions.segments], axis=1)
    _, group_of = np.unique(pairs, axis=0, return_inverse=True)
    order = np.argsort(group_of.reshape(-1), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_of.reshape(-1)[order])) + 1)


def within_reach(decisions: Decisions, groups: Sequence[np.ndarray]) -> NDArray[np.float64]:
    """Return the scores `[N]`; those more than `MOST` points from their group's median are moved there."""
    scores = decisions.scores.double().numpy().copy()
    for members in groups:
        middle = np.median(scores[members])
        scores[members] = scores[members].clip(middle - MOST, middle + MOST)
    return scores


def _centred(values: Tensor, group_of: Tensor) -> Tensor:
    """Return values `[N, F]` less the mean of their group."""
    count = int(group_of.max()) + 1
    sums = torch.zeros(count, values.shape[1], dtype=values.dtype).index_add_(0, group_of, values)
    return values - (sums / group_of.bincount(minlength=count)[:, None])[group_of]


def _errors(decisions: Decisions, told: Tensor, segment: int) -> dict[str, float]:
    """Return how forecasts and results of one task differ within a segment, in points.

    Returns:
        error: standard deviation of the results about their forecasts.
        disagreement: that of the members about their mean.
        spread: that of the results about their mean.
    """
    sums, freedom, groups = np.zeros(3), 0, groups_of(decisions)
    reached = torch.from_numpy(within_reach(decisions, groups))
    for members in groups:
        if decisions.segments[members[0]] == segment and len(members) > 1:
            places = torch.from_numpy(members)
            scores = reached[places] - reached[places].mean()
            each = told[:, places] - told[:, places].mean(dim=1, keepdim=True)
            mean = each.mean(dim=0)
            variance = each.var(dim=0, correction=0)
            sums += [float(part.sum()) for part in ((scores - mean).square(), variance, scores.square())]
            freedom += len(members) - 1
    return dict(zip(("error", "disagreement", "spread"), np.sqrt(sums / max(freedom, 1)).tolist(), strict=True))
