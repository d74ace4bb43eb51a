"""Learning a forecaster from logged trainings, to compare trainings of one task with each other.

Its networks learn differences within a task alone: what all trainings of a task have in common at the start of a
segment, such as how hard the task is, is taken out of targets and predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlmix.agent.regression import MIN_SPREAD, Decisions, RegressionConfig
from rlmix.agent.values import ActionValues, Forecaster, value_network
from rlmix.classifier.errors import InputError
from rlmix.envs import Menu
from rlmix.envs.effects import action_effects, combination_numbers

FOLDS = 5
BATCH = 32  # groups of trainings
SCALE = 3.0  # points in a unit of the networks while they learn
MOST = 15.0  # points from a task's mean beyond which a result is taken to lie there: a training that failed


def fit_forecaster(
    decisions: Decisions,
    menu: Menu,
    segments: Sequence[float],
    features: Sequence[str],
    config: RegressionConfig,
    *,
    seed: int,
    facts: Mapping[str, Any],
) -> Forecaster:
    """Fit a forecaster, and measure how results scatter about its forecasts on tasks that it has not learned from.

    Args:
        decisions: decisions among the menu's actions, scored in points.
        menu: menu of choices.
        segments: progress at which each segment ends.
        features: names of the observations' features.
        config: hyperparameters; caution and temperature are not used.
        seed: RNG seed for folds, weights, bootstrap samples, minibatches and dropout.
        facts: how the decisions were made, for the provenance.

    Raises:
        InputError: there are too few tasks.
    """
    told = held_out_forecasts(decisions, menu, config, seed=seed)
    errors = [_errors(decisions, told, segment) for segment in range(len(segments))]
    measured = [{name: round(value, 3) for name, value in error.items()} for error in errors]
    return Forecaster(
        fit_within_tasks(decisions, menu, config, seed=seed),
        menu,
        tuple(segments),
        tuple(features),
        # The networks' disagreement is known of each forecast; the rest is the same for all.
        tuple(round(math.sqrt(max(e["error"] ** 2 - e["disagreement"] ** 2, 0.0)), 4) for e in errors),
        {**facts, "held_out_tasks": measured},
    )


def held_out_forecasts(decisions: Decisions, menu: Menu, config: RegressionConfig, *, seed: int) -> Tensor:
    """Return each network's forecast of each decision, learned on other tasks, `[M, N]`.

    Args:
        decisions: decisions among the menu's actions, scored in points.
        menu: menu of choices.
        config: hyperparameters.
        seed: RNG seed for folds and networks.

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
            decisions.among([task for task in tasks.tolist() if task not in set(held)]), menu, config, seed=seed
        )
        places = torch.from_numpy(np.flatnonzero(np.isin(decisions.tasks, held)))
        actions = decisions.actions[places].expand(config.members, -1)[..., None]
        told[:, places] = values.of_members(decisions.observations[places]).gather(2, actions)[..., 0]
    return told


def fit_within_tasks(decisions: Decisions, menu: Menu, config: RegressionConfig, *, seed: int) -> ActionValues:
    """Fit an ensemble to the differences between the trainings of each task, at the start of each segment.

    Args:
        decisions: decisions among the menu's actions, scored in points.
        menu: menu of choices.
        config: hyperparameters.
        seed: RNG seed for weights, bootstrap samples, minibatches and dropout; the same one gives the same values.

    Returns:
        Values in points, up to a constant of each task.

    Raises:
        InputError: no task has several trainings.
    """
    mean = decisions.observations.mean(dim=0)
    spread = decisions.observations.std(dim=0).clamp(min=MIN_SPREAD)
    effects = action_effects(menu)[combination_numbers(menu.actions(), menu)]
    inputs = torch.cat(((decisions.observations - mean) / spread, effects[decisions.actions]), dim=1)
    groups = [members for members in _groups(decisions) if len(members) > 1]
    if not groups:
        raise InputError("a forecaster needs several trainings of one task, got one of each")
    rows = nn.utils.rnn.pad_sequence([torch.from_numpy(members) for members in groups], batch_first=True)
    lengths = torch.tensor([len(members) for members in groups])
    real = (torch.arange(rows.shape[1]) < lengths[:, None]).float()
    targets = _centred(decisions.scores[rows], real).clamp(-MOST, MOST) / SCALE
    tasks = np.unique(decisions.tasks)
    networks = []
    for member in range(config.members):
        drawn = np.random.default_rng([seed, member]).choice(tasks, len(tasks))
        often = torch.tensor([float(np.sum(drawn == decisions.tasks[members[0]])) for members in groups])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed * config.members + member)
            networks.append(_fit_network(inputs, rows, real, targets, often, config))
    return ActionValues(effects, mean, spread, networks)


def _fit_network(
    inputs: Tensor, rows: Tensor, real: Tensor, targets: Tensor, often: Tensor, config: RegressionConfig
) -> nn.Module:
    """Fit one network.

    Args:
        inputs: `[N, I]`, observations and features of the actions.
        rows: places in `inputs` of each group's decisions, `[G, L]`.
        real: 1 where there is a decision, else 0, `[G, L]`.
        targets: their scores less the group's mean, `[G, L]`.
        often: how often each group is drawn, relative to others, `[G]`.
        config: hyperparameters.
    """
    network = value_network(inputs.shape[1], config.hidden, config.dropout)
    optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    for _ in range(config.steps):
        batch = torch.multinomial(often, BATCH, replacement=True)
        predicted = _centred(network(inputs[rows[batch]])[..., 0], real[batch])
        loss = ((predicted - targets[batch]).square() * real[batch]).sum() / real[batch].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        for parameter in network[-1].parameters():
            parameter.mul_(SCALE)
    return network.requires_grad_(False).eval()


def _groups(decisions: Decisions) -> list[np.ndarray]:
    """Return the places of the decisions that belong to the same task and segment, group by group."""
    pairs = np.stack([decisions.tasks, decisions.segments], axis=1)
    _, group_of = np.unique(pairs, axis=0, return_inverse=True)
    order = np.argsort(group_of.reshape(-1), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group_of.reshape(-1)[order])) + 1)


def _centred(values: Tensor, real: Tensor) -> Tensor:
    """Return values less the mean of their row, `[G, L]`, over those that are real."""
    return values - (values * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)


def _errors(decisions: Decisions, told: Tensor, segment: int) -> dict[str, float]:
    """Return how forecasts and results of one task differ within a segment, in points.

    Returns:
        error: standard deviation of the results about their forecasts.
        disagreement: that of the networks about their mean.
        spread: that of the results about their mean.
    """
    sums, freedom = np.zeros(3), 0
    for members in _groups(decisions):
        if decisions.segments[members[0]] == segment and len(members) > 1:
            places = torch.from_numpy(members)
            scores = (decisions.scores[places] - decisions.scores[places].mean()).clamp(-MOST, MOST)
            each = told[:, places] - told[:, places].mean(dim=1, keepdim=True)
            mean = each.mean(dim=0)
            variance = each.var(dim=0, correction=0)
            sums += [float(part.sum()) for part in ((scores - mean).square(), variance, scores.square())]
            freedom += len(members) - 1
    return dict(zip(("error", "disagreement", "spread"), np.sqrt(sums / max(freedom, 1)).tolist(), strict=True))
