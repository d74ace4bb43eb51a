"""Features of the first observation, which agents see whose file names no others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rlmix.classifier.training.stats import EvalStats, UpdateStats
from rlmix.envs.training_state import TrainingState


@dataclass(frozen=True)
class Feature:
    """One number of an observation.

    Attributes:
        meaning: description, for docstrings and tables.
        low: lowest value; lower ones are clipped.
        high: highest value; higher ones are clipped, and values that are not a number become this one.
        value: function from a training's state to the feature.
        plainly: a value of the feature in words, with its unit; optional, where the value itself says little.
    """

    meaning: str
    low: float
    high: float
    value: Callable[[TrainingState], float]
    plainly: Callable[[float], str] | None = None


def _passes(state: TrainingState) -> float:
    return state.task.updates * state.batch_size / state.task.train_size


def _chance(state: TrainingState) -> float:
    return EvalStats.at_chance(state.num_classes).accuracy


def evaluated(
    value: Callable[[EvalStats, TrainingState], float], at_start: Callable[[TrainingState], float] = lambda _: 0.0
) -> Callable[[TrainingState], float]:
    """Return a feature of the validation after the last segment, which is `at_start` before the first one."""
    return lambda state: at_start(state) if state.evaluation is None else value(state.evaluation, state)


def trained(kind: str, value: Callable[[UpdateStats, TrainingState], float]) -> Callable[[TrainingState], float]:
    """Return a feature of the last segment's `clean` or `mixed` updates; 0 where there were none."""

    def feature(state: TrainingState) -> float:
        stats = getattr(state.segment, kind, None)
        return 0.0 if stats is None else value(stats, state)

    return feature


def probed(value: Callable[[float, float], float]) -> Callable[[TrainingState], float]:
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


def _of_guessing(value: float) -> str:
    return f"{100 * value:.1f} % of guessing's loss"


FIRST_FEATURES = {
    "log_train_size": Feature(
        "log10(training images) / 5",
        0.0,
        2.0,
        lambda state: math.log10(state.task.train_size) / 5,
        lambda value: f"{10 ** (5 * value):.0f} images",
    ),
    "log_updates": Feature(
        "log10(updates of the whole training) / 5",
        0.0,
        2.0,
        lambda state: math.log10(state.task.updates) / 5,
        lambda value: f"{10 ** (5 * value):.0f} updates",
    ),
    "log_passes": Feature(
        "log10(1 + passes over the training images) / 4",
        0.0,
        2.0,
        lambda state: math.log10(1 + _passes(state)) / 4,
        lambda value: f"{10 ** (4 * value) - 1:.1f} passes",
    ),
    "log_classes": Feature("log10(classes K) / 3", 0.0, 2.0, lambda state: math.log10(state.num_classes) / 3),
    "progress": Feature("progress of the training", 0.0, 1.0, lambda state: state.progress),
    "relative_lr": Feature(
        "learning rate of the next update over the highest one", 0.0, 1.0, lambda state: state.relative_lr
    ),
    "clean_seen": Feature(
        "1 if the last segment had clean updates, else what is measured on them is 0",
        0.0,
        1.0,
        trained("clean", lambda *_: 1.0),
    ),
    "clean_excess_loss": Feature(
        "their loss less the targets' own entropy, over log K",
        0.0,
        4.0,
        trained("clean", _excess_loss),
        _of_guessing,
    ),
    "clean_accuracy": Feature(
        "their accuracy on the (augmented, perhaps wrongly labelled) training images",
        0.0,
        1.0,
        trained("clean", lambda stats, _: stats.accuracy),
    ),
    "mixed_seen": Feature(
        "1 if the last segment had mixed updates, else what is measured on them is 0",
        0.0,
        1.0,
        trained("mixed", lambda *_: 1.0),
    ),
    "mixed_excess_loss": Feature(
        "their loss less the targets' own entropy, over log K",
        0.0,
        4.0,
        trained("mixed", _excess_loss),
        _of_guessing,
    ),
    "mixed_accuracy": Feature(
        "share of mixed images whose largest target is found",
        0.0,
        1.0,
        trained("mixed", lambda stats, _: stats.accuracy),
    ),
    "validation_loss": Feature(
        "validation loss over log K",
        0.0,
        4.0,
        evaluated(lambda stats, state: stats.loss / math.log(state.num_classes), lambda _: 1.0),
    ),
    "validation_accuracy": Feature("validation accuracy", 0.0, 1.0, _accuracy),
    "validation_change": Feature(
        "its change over the last segment",
        -1.0,
        1.0,
        evaluated(lambda stats, state: stats.accuracy - state.accuracy_before),
    ),
    "accuracy_gap": Feature(
        "accuracy of clean updates less validation accuracy",
        -1.0,
        1.0,
        trained("clean", lambda stats, state: stats.accuracy - _accuracy(state)),
    ),
    "confidence": Feature(
        "mean confidence on validation images", 0.0, 1.0, evaluated(lambda stats, _: stats.confidence, _chance)
    ),
    "calibration_error": Feature(
        "expected calibration error on validation images",
        0.0,
        1.0,
        evaluated(lambda stats, _: stats.calibration_error),
    ),
    "probes_seen": Feature(
        "1 if saliency and gradient were measured (on clean updates), else both are 0",
        0.0,
        1.0,
        probed(lambda *_: 1.0),
    ),
    "saliency_entropy": Feature(
        "entropy of the patch saliency over its highest value", 0.0, 1.0, probed(lambda entropy, _: entropy)
    ),
    "log_gradient_norm": Feature(
        "log10(norm of the gradient over norm of the parameters) / 5",
        -1.0,
        1.0,
        probed(lambda _, norm: math.log10(max(norm, 1e-12)) / 5),
    ),
}
