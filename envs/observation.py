"""Observations of a training: features by name, which carry over between data sets and networks.

A new feature is an entry at the end of `FEATURES`, and a row of `MixPolicyEnv`'s docstring. An agent's file names the
features that it sees, so that an added one changes nothing for agents learned before.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlmix.classifier.errors import InputError
from rlmix.classifier.training.stats import EvalStats, TrainStats, UpdateStats
from rlmix.envs.menu import Menu
from rlmix.envs.tasks import Task


@dataclass(frozen=True)
class TrainingState:
    """State of a training, from which observations are computed.

    Attributes:
        task: the training.
        num_classes: number of classes of the data set.
        batch_size: number of images per update.
        progress: share of the training that is done, in [0, 1].
        relative_lr: learning rate of the next update over the highest one.
        segment: statistics of the last segment; None at the start.
        evaluation: validation after it; None at the start, where accuracy is assumed to be at chance.
        accuracy_before: validation accuracy before it.
        action: the last action; None at the start.
    """

    task: Task
    num_classes: int
    batch_size: int
    progress: float
    relative_lr: float
    segment: TrainStats | None = None
    evaluation: EvalStats | None = None
    accuracy_before: float = 0.0
    action: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Feature:
    """One number of an observation.

    Attributes:
        meaning: description, for docstrings and tables.
        low: lowest value; lower ones are clipped.
        high: highest value; higher ones are clipped, and values that are not a number become this one.
        value: function from a training's state to the feature.
    """

    meaning: str
    low: float
    high: float
    value: Callable[[TrainingState], float]


def _passes(state: TrainingState) -> float:
    return state.task.updates * state.batch_size / state.task.train_size


def _chance(state: TrainingState) -> float:
    return EvalStats.at_chance(state.num_classes).accuracy


def _evaluated(
    value: Callable[[EvalStats, TrainingState], float], at_start: Callable[[TrainingState], float] = lambda _: 0.0
) -> Callable[[TrainingState], float]:
    """Return a feature of the validation after the last segment, which is `at_start` before the first one."""
    return lambda state: at_start(state) if state.evaluation is None else value(state.evaluation, state)


def _trained(kind: str, value: Callable[[UpdateStats, TrainingState], float]) -> Callable[[TrainingState], float]:
    """Return a feature of the last segment's `clean` or `mixed` updates; 0 where there were none."""

    def feature(state: TrainingState) -> float:
        stats = getattr(state.segment, kind, None)
        return 0.0 if stats is None else value(stats, state)

    return feature


def _probed(value: Callable[[float, float], float]) -> Callable[[TrainingState], float]:
    """Return a feature of saliency entropy and gradient norm; 0 where they were not measured."""

    def feature(state: TrainingState) -> float:
        stats = state.segment
        if stats is None or stats.saliency_entropy is None or stats.gradient_norm is None:
            return 0.0
        return value(stats.saliency_entropy, stats.gradient_norm)

    return feature


def _accuracy(state: TrainingState) -> float:
    return _chance(state) if state.evaluation is None else state.evaluation.accuracy


def _excess_loss(stats: UpdateStats, state: TrainingState) -> float:
    return (stats.loss - stats.target_entropy) / math.log(state.num_classes)


FEATURES = {
    "log_train_size": Feature(
        "log10(training images) / 5", 0.0, 2.0, lambda state: math.log10(state.task.train_size) / 5
    ),
    "log_updates": Feature(
        "log10(updates of the whole training) / 5", 0.0, 2.0, lambda state: math.log10(state.task.updates) / 5
    ),
    "log_passes": Feature(
        "log10(1 + passes over the training images) / 4", 0.0, 2.0, lambda state: math.log10(1 + _passes(state)) / 4
    ),
    "log_classes": Feature("log10(classes K) / 3", 0.0, 2.0, lambda state: math.log10(state.num_classes) / 3),
    "progress": Feature("progress of the training", 0.0, 1.0, lambda state: state.progress),
    "relative_lr": Feature(
        "learning rate of the next update over the highest one", 0.0, 1.0, lambda state: state.relative_lr
    ),
    "clean_seen": Feature(
        "1 if the last segment had clean updates, else 7, 8 and 15 are 0", 0.0, 1.0, _trained("clean", lambda *_: 1.0)
    ),
    "clean_excess_loss": Feature(
        "their loss less the targets' own entropy, over log K", 0.0, 4.0, _trained("clean", _excess_loss)
    ),
    "clean_accuracy": Feature(
        "their accuracy on the (augmented, perhaps wrongly labelled) training images",
        0.0,
        1.0,
        _trained("clean", lambda stats, _: stats.accuracy),
    ),
    "mixed_seen": Feature(
        "1 if the last segment had mixed updates, else 10 and 11 are 0", 0.0, 1.0, _trained("mixed", lambda *_: 1.0)
    ),
    "mixed_excess_loss": Feature(
        "their loss less the targets' own entropy, over log K", 0.0, 4.0, _trained("mixed", _excess_loss)
    ),
    "mixed_accuracy": Feature(
        "share of mixed images whose largest target is found",
        0.0,
        1.0,
        _trained("mixed", lambda stats, _: stats.accuracy),
    ),
    "validation_loss": Feature(
        "validation loss over log K",
        0.0,
        4.0,
        _evaluated(lambda stats, state: stats.loss / math.log(state.num_classes), lambda _: 1.0),
    ),
    "validation_accuracy": Feature("validation accuracy", 0.0, 1.0, _accuracy),
    "validation_change": Feature(
        "its change over the last segment",
        -1.0,
        1.0,
        _evaluated(lambda stats, state: stats.accuracy - state.accuracy_before),
    ),
    "accuracy_gap": Feature(
        "accuracy of clean updates less validation accuracy",
        -1.0,
        1.0,
        _trained("clean", lambda stats, state: stats.accuracy - _accuracy(state)),
    ),
    "confidence": Feature(
        "mean confidence on validation images", 0.0, 1.0, _evaluated(lambda stats, _: stats.confidence, _chance)
    ),
    "calibration_error": Feature(
        "expected calibration error on validation images",
        0.0,
        1.0,
        _evaluated(lambda stats, _: stats.calibration_error),
    ),
    "probes_seen": Feature(
        "1 if saliency and gradient were measured (on clean updates), else 19, 20 are 0",
        0.0,
        1.0,
        _probed(lambda *_: 1.0),
    ),
    "saliency_entropy": Feature(
        "entropy of the patch saliency over its highest value", 0.0, 1.0, _probed(lambda entropy, _: entropy)
    ),
    "log_gradient_norm": Feature(
        "log10(norm of the gradient over norm of the parameters) / 5",
        -1.0,
        1.0,
        _probed(lambda _, norm: math.log10(max(norm, 1e-12)) / 5),
    ),
}
DEFAULT_FEATURES = tuple(FEATURES)[:21]  # what the agents see whose file names no features


def require_features(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of features, in their order.

    Raises:
        ValueError: one is unknown or given twice.
    """
    unknown = [name for name in names if name not in FEATURES]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"features must be different ones of {', '.join(FEATURES)}, got {', '.join(map(str, names))}")
    return tuple(names)


def observation_space(menu: Menu, features: Sequence[str] = DEFAULT_FEATURES) -> spaces.Box:
    """Return the box of the features, then the last action one-hot in each dimension of the menu."""
    seen, choices = [FEATURES[name] for name in features], sum(menu.sizes)
    return spaces.Box(
        low=np.array([feature.low for feature in seen] + [0.0] * choices, dtype=np.float32),
        high=np.array([feature.high for feature in seen] + [1.0] * choices, dtype=np.float32),
    )


def one_hot(action: tuple[int, ...] | None, menu: Menu) -> list[float]:
    """Return an action one-hot in each dimension of the menu, as in observations; all 0 for None."""
    return [
        float(action is not None and action[dimension] == choice)
        for dimension, size in enumerate(menu.sizes)
        for choice in range(size)
    ]


def observe(state: TrainingState, menu: Menu, features: Sequence[str] = DEFAULT_FEATURES) -> NDArray[np.float32]:
    """Return the observation of a training's state: finite, and inside `observation_space(menu, features)`."""
    space = observation_space(menu, features)
    values = [FEATURES[name].value(state) for name in features]
    raw = np.array([*values, *one_hot(state.action, menu)], dtype=np.float32)
    # A diverged training reports numbers that are not finite: they stand at the worst end of their range.
    return np.clip(np.nan_to_num(raw, nan=4.0, posinf=4.0, neginf=-1.0), space.low, space.high)
