"""Fit a SurrogateModel to recorded trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from rlmix.classifier.errors import InputError, require_at_least
from rlmix.envs.effects import action_effects, combination_numbers
from rlmix.envs.menu import Menu
from rlmix.envs.surrogate_model import (
    LAYERS,
    MAX_LOG_STD,
    MIN_LOG_STD,
    Ensemble,
    SurrogateModel,
    count_inputs,
)
from rlmix.envs.surrogate_tasks import FIRST_VIEW, RecordedTask, Recording, TaskTable, View, split_of

MAX_OFF = 3.0  # standard deviations from which on an outcome that is off counts less
MIN_SPREAD = 1e-3  # that an input or a change is divided by at least; one that never changes says nothing


@dataclass(frozen=True)
class SurrogateConfig:
    """Hyperparameters of the surrogate's ensemble.

    Attributes:
        members: networks, each from tasks drawn with replacement.
        hidden: units of each of their two layers.
        steps: steps of AdamW.
        batch_size: recorded segments of each step, for each member.
        learning_rate: highest learning rate.
        weight_decay: of AdamW.
        ridge: penalty of the linear maps' coefficients of standardised inputs, in recorded segments.
    """

    members: int = 5
    hidden: int = 64
    steps: int = 3000
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    ridge: float = 10.0

    def __post_init__(self) -> None:
        require_at_least(self, members=1, hidden=1, steps=1, batch_size=2)
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate must be in (0, 1), got {self.learning_rate}")
        if not self.ridge > 0:
            raise InputError(f"ridge must be above 0, got {self.ridge}")


@dataclass(frozen=True)
class RecordedSegments:
    """Recorded segments as an ensemble learns from them; N of them.

    Attributes:
        inputs: `[N, I]`, as `SurrogateModel.inputs` gives them.
        changes: change of each predicted feature, `[N, P]`.
        measured: whether it was measured, `[N, P]`.
        tasks: number of each one's task, `[N]`.
        segments: number of the segment, from 0, `[N]`.
    """

    inputs: Tensor
    changes: Tensor
    measured: Tensor
    tasks: Tensor
    segments: Tensor


def recorded_segments(model: SurrogateModel, recordings: Sequence[Recording]) -> RecordedSegments:
    """Return the segments of recorded trainings, each from the state that the surrogate would have there.

    Args:
        model: model with the menu, the segments and the tasks of the recordings; its ensemble is not asked.
        recordings: whole trainings, at least one.
    """
    seen = torch.from_numpy(np.stack([recording.observations for recording in recordings])).float()
    values = seen[:, :, model.view.columns(tuple(model.view.predicted))]
    actions = combination_numbers([recording.actions for recording in recordings], model.menu)
    trainings = model.start(torch.tensor([model.tasks.row(recording.task) for recording in recordings]))
    rows = []
    for segment in range(len(model.segments)):
        action = actions[:, segment]
        rows.append(
            RecordedSegments(
                model.inputs(trainings, action),
                values[:, segment + 1] - trainings.values,
                model.measured[action],
                model.tasks.numbers[trainings.task],
                trainings.segment,
            )
        )
        model.advance(trainings, action, values[:, segment + 1])
    names = [field.name for field in fields(RecordedSegments)]
    return RecordedSegments(**{name: torch.cat([getattr(row, name) for row in rows]) for name in names})


def fit_surrogate(
    recordings: Sequence[Recording],
    tasks: Sequence[RecordedTask],
    *,
    menu: Menu,
    segments: Sequence[float],
    config: SurrogateConfig,
    seed: int,
    provenance: Mapping[str, Any],
    view: View = FIRST_VIEW,
) -> SurrogateModel:
    """Return a model of recorded trainings; the same seed gives the same model on one machine.

    Networks learn from tasks of split `train`; how their deviations correlate is measured on those of `validation`,
    if there are any. Tasks of split `test` are listed in the model, and not learned from.

    Args:
        recordings: whole trainings, some of split `train`.
        tasks: every task that is to be played; those of the recordings are among them.
        menu: menu of the recorded actions.
        segments: progress at which each of their segments ends.
        config: hyperparameters.
        seed: RNG seed for weights, tasks drawn and the order of segments.
        provenance: facts about the recordings; any JSON object.
        view: features of the recordings.

    Raises:
        InputError: there is no recording of split `train`.
    """
    model = SurrogateModel(
        menu,
        segments,
        TaskTable.from_tasks(tasks, view),
        [dict(task.description) for task in tasks],
        _new_ensemble(config, count_inputs(view, action_effects(menu).shape[1]), view, len(segments), seed),
        provenance,
        view,
    )
    parts = {
        split: [recording for recording in recordings if split_of(recording.task) == split]
        for split in ("train", "validation")
    }
    if not parts["train"]:
        raise InputError("a surrogate learns from recorded trainings of split train, got none")
    learned = recorded_segments(model, parts["train"])
    model.ensemble = _fitted(model.ensemble, learned, config, seed)
    held_out = recorded_segments(model, parts["validation"]) if parts["validation"] else learned
    model.ensemble = _calibrated(model.ensemble, held_out)
    return model


def _new_ensemble(config: SurrogateConfig, inputs: int, view: View, segments: int, seed: int) -> Ensemble:
    """Return an ensemble that predicts no change, with random hidden layers."""
    features, members = len(view.predicted), config.members
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for low, high in ((inputs, config.hidden), (config.hidden, config.hidden)):
        layers.append(torch.randn(members, low, high, generator=generator) * (2 / low) ** 0.5)
        layers.append(torch.zeros(members, 1, high))
    layers += [torch.zeros(members, config.hidden, 2 * features), torch.zeros(members, 1, 2 * features)]
    return Ensemble(
        linear=torch.zeros(members, segments, inputs + 1, features),
        input_mean=torch.zeros(inputs),
        input_spread=torch.ones(inputs),
        spread=torch.ones(segments, features),
        correlate=torch.eye(features),
        **dict(zip(LAYERS, layers, strict=True)),
    )


def _fitted(start: Ensemble, learned: RecordedSegments, config: SurrogateConfig, seed: int) -> Ensemble:
    """Return the ensemble, fitted to recorded segments: linear maps by least squares, networks by their likelihood."""
    mean, spread = learned.inputs.mean(dim=0), learned.inputs.std(dim=0).clamp(min=MIN_SPREAD)
    inputs = (learned.inputs - mean) / spread
    often = _drawn_tasks(learned.tasks, config.members, seed)
    linear = _linear_maps(inputs, learned, often, config.ridge)
    left = torch.empty(config.members, *learned.changes.shape)
    unit = torch.empty_like(start.spread)
    for segment in range(linear.shape[1]):
        rows = learned.segments == segment
        left[:, rows] = learned.changes[rows] - (inputs[rows] @ linear[:, segment, :-1] + linear[:, segment, -1:])
        there = learned.measured[rows]
        squares = (left[:, rows].square().mean(dim=0) * there).sum(dim=0) / there.sum(dim=0).clamp(min=1)
        unit[segment] = squares.sqrt().clamp(min=MIN_SPREAD)
    wanted = left / unit[learned.segments]
    parameters = [nn.Parameter(getattr(start, name).clone()) for name in LAYERS]
    optimizer = torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    generator = torch.Generator().manual_seed(seed)
    members = torch.arange(config.members)[:, None]
    for _ in range(config.steps):
        batch = torch.multinomial(often, config.batch_size, replacement=True, generator=generator)
        hidden = torch.baddbmm(parameters[1], inputs[batch], parameters[0]).relu()
        hidden = torch.baddbmm(parameters[3], hidden, parameters[2]).relu()
        told, log_std = torch.baddbmm(parameters[5], hidden, parameters[4]).chunk(2, dim=2)
        log_std = log_std.clamp(MIN_LOG_STD, MAX_LOG_STD)
        off = (wanted[members, batch] - told) * torch.exp(-log_std)
        # Huber's loss: a few outcomes far off must not decide what is learned of all others.
        loss = huber_loss(off, torch.zeros_like(off), reduction="none", delta=MAX_OFF) + log_std
        optimizer.zero_grad()
        (loss * learned.measured[batch]).mean(dim=(1, 2)).sum().backward()
        optimizer.step()
        schedule.step()
    # Half precision is what is kept: what is measured of the model is measured of what is shipped.
    halved = [parameter.detach().half().float() for parameter in parameters]
    return replace(
        start,
        linear=linear,
        input_mean=mean,
        input_spread=spread,
        spread=unit,
        **dict(zip(LAYERS, halved, strict=True)),
    )


def _linear_maps(inputs: Tensor, learned: RecordedSegments, often: Tensor, ridge: float) -> Tensor:
    """Return the linear map of each member and segment to each feature's change, `[M, S, I + 1, P]`."""
    count, features = int(learned.segments.max()) + 1, learned.changes.shape[1]
    maps = torch.zeros(len(often), count, inputs.shape[1] + 1, features)
    penalty = ridge * torch.eye(inputs.shape[1] + 1, dtype=torch.float64)
    penalty[-1, -1] = 1e-6
    ones = torch.ones(len(inputs), 1)
    for segment in range(count):
        for measured in learned.measured.unique(dim=1).T:  # features that are measured together share their equations
            rows = (learned.segments == segment) & measured
            together = (learned.measured == measured[:, None]).all(dim=0)
            known, changes = (
                torch.cat((inputs, ones), dim=1)[rows].double(),
                learned.changes[rows][:, together].double(),
            )
            for member, weights in enumerate(often[:, rows].double()):
                weighted = known * weights[:, None]
                maps[member, segment][:, together] = torch.linalg.solve(
                    known.T @ weighted + penalty, weighted.T @ changes
                ).float()
    return maps


def _drawn_tasks(tasks: Tensor, members: int, seed: int) -> Tensor:
    """Return how often each segment counts for each member, `[M, N]`: by how often its task was drawn."""
    numbers = np.unique(tasks.numpy())
    place = np.searchsorted(numbers, tasks.numpy())
    rows = []
    for member in range(members):
        drawn = np.random.default_rng([seed, member]).integers(len(numbers), size=len(numbers))
        rows.append(np.bincount(drawn, minlength=len(numbers))[place])
    return torch.from_numpy(np.stack(rows)).float()


def _calibrated(ensemble: Ensemble, held_out: RecordedSegments) -> Ensemble:
    """Return the ensemble with the correlations of its deviations on segments it has not seen."""
    off = torch.full((len(ensemble), *held_out.changes.shape), torch.nan)
    for segment in range(ensemble.spread.shape[0]):
        rows = held_out.segments == segment
        for member in range(len(ensemble)):
            mean, std = ensemble.predict(held_out.inputs[rows], member=member, segment=segment)
            there = held_out.measured[rows]
            off[member, rows] = torch.where(there, (held_out.changes[rows] - mean) / std, torch.nan)
    there = ~off.isnan()
    values = off.nan_to_num(0.0).clamp(-MAX_OFF, MAX_OFF)
    both = there.flatten(0, 1).float().T @ there.flatten(0, 1).float()
    covariance = values.flatten(0, 1).T @ values.flatten(0, 1) / both.clamp(min=1)
    diagonal = covariance.diagonal().clamp(min=MIN_SPREAD**2).sqrt()
    # Features that were never measured together are taken as independent.
    correlation = torch.where(both > 0, covariance / diagonal[:, None] / diagonal, 0.0)
    correlation.fill_diagonal_(1.0)
    roots, axes = torch.linalg.eigh(correlation.double())
    possible = axes @ torch.diag(roots.clamp(min=1e-3)) @ axes.T
    diagonal = possible.diagonal().sqrt()
    correlate = torch.linalg.cholesky(possible / diagonal[:, None] / diagonal).float().contiguous()
    return replace(ensemble, correlate=correlate)
