"""What an agent sees of a training: features that carry over between data sets and networks as far as they can."""

import math
from dataclasses import dataclass

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlmix.classifier.training.stats import EvalStats, TrainStats
from rlmix.envs.menu import Menu
from rlmix.envs.tasks import Task

VERSION = 1

# name, low, high; MixPolicyEnv's docstring says what each means
FEATURES = (
    ("log_train_size", 0.0, 2.0),
    ("log_updates", 0.0, 2.0),
    ("log_passes", 0.0, 2.0),
    ("log_classes", 0.0, 2.0),
    ("progress", 0.0, 1.0),
    ("relative_lr", 0.0, 1.0),
    ("clean_seen", 0.0, 1.0),
    ("clean_excess_loss", 0.0, 4.0),
    ("clean_accuracy", 0.0, 1.0),
    ("mixed_seen", 0.0, 1.0),
    ("mixed_excess_loss", 0.0, 4.0),
    ("mixed_accuracy", 0.0, 1.0),
    ("validation_loss", 0.0, 4.0),
    ("validation_accuracy", 0.0, 1.0),
    ("validation_change", -1.0, 1.0),
    ("accuracy_gap", -1.0, 1.0),
    ("confidence", 0.0, 1.0),
    ("calibration_error", 0.0, 1.0),
    ("probes_seen", 0.0, 1.0),
    ("saliency_entropy", 0.0, 1.0),
    ("log_gradient_norm", -1.0, 1.0),
)


def observation_space(menu: Menu) -> spaces.Box:
    """The box of `FEATURES`, then the last choice one-hot in each dimension of the menu."""
    choices = sum(menu.sizes)
    return spaces.Box(
        low=np.array([low for _, low, _ in FEATURES] + [0.0] * choices, dtype=np.float32),
        high=np.array([high for _, _, high in FEATURES] + [1.0] * choices, dtype=np.float32),
    )


def one_hot(action: tuple[int, ...] | None, menu: Menu) -> list[float]:
    """An action as an observation has it, one-hot in each dimension of the menu; all 0 for none."""
    return [
        float(action is not None and action[dimension] == choice)
        for dimension, size in enumerate(menu.sizes)
        for choice in range(size)
    ]


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands, as an agent is told.

    Attributes:
        task: the training.
        num_classes: of the data set.
        batch_size: images per update.
        progress: share of the training that is done, in [0, 1].
        relative_lr: learning rate of the next update over the highest one.
        segment: statistics of the last segment; none at the start.
        evaluation: validation after it; none at the start, which stands for a classifier at chance.
        accuracy_before: validation accuracy before it.
        action: the last choice; none at the start.
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


def observe(state: TrainingState, menu: Menu) -> NDArray[np.float32]:
    """The observation of a training's state: finite, and inside `observation_space(menu)`."""
    task, log_classes, chance = state.task, math.log(state.num_classes), 1 / state.num_classes
    values = dict.fromkeys((name for name, _, _ in FEATURES), 0.0)
    values.update(
        log_train_size=math.log10(task.train_size) / 5,
        log_updates=math.log10(task.updates) / 5,
        log_passes=math.log10(1 + task.updates * state.batch_size / task.train_size) / 4,
        log_classes=math.log10(state.num_classes) / 3,
        progress=state.progress,
        relative_lr=state.relative_lr,
        validation_loss=1.0,
        validation_accuracy=chance,
        confidence=chance,
    )
    if state.evaluation is not None:
        values.update(
            validation_loss=state.evaluation.loss / log_classes,
            validation_accuracy=state.evaluation.accuracy,
            validation_change=state.evaluation.accuracy - state.accuracy_before,
            confidence=state.evaluation.confidence,
            calibration_error=state.evaluation.calibration_error,
        )
    if state.segment is not None:
        for kind, stats in (("clean", state.segment.clean), ("mixed", state.segment.mixed)):
            if stats is not None:
                values[f"{kind}_seen"] = 1.0
                values[f"{kind}_excess_loss"] = (stats.loss - stats.target_entropy) / log_classes
                values[f"{kind}_accuracy"] = stats.accuracy
        if state.segment.clean is not None:
            values["accuracy_gap"] = state.segment.clean.accuracy - values["validation_accuracy"]
        if state.segment.saliency_entropy is not None and state.segment.gradient_norm is not None:
            values["probes_seen"] = 1.0
            values["saliency_entropy"] = state.segment.saliency_entropy
            values["log_gradient_norm"] = math.log10(max(state.segment.gradient_norm, 1e-12)) / 5
    space = observation_space(menu)
    raw = np.array([*values.values(), *one_hot(state.action, menu)], dtype=np.float32)
    # A diverged training reports numbers that are not finite: they stand at the worst end of their range.
    return np.clip(np.nan_to_num(raw, nan=4.0, posinf=4.0, neginf=-1.0), space.low, space.high)
