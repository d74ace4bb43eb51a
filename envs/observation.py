"""Observations of a training: features by name, which carry over between data sets and networks.

A new feature is an entry of `FEATURES`. An agent's file names the features that it sees, so that an added one changes
nothing for agents learned before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rlmix.classifier.errors import InputError
from rlmix.envs.features import FIRST_FEATURES, Feature
from rlmix.envs.menu import Menu
from rlmix.envs.training_state import Setting, TrainingState
from rlmix.envs.transfer_features import (
    KNOWN_FEATURES,
    LABEL_FEATURES,
    OBSERVATION_V2,
    RECORDED_FEATURES,
    TRAINING_FEATURES,
    TRANSFER_FEATURES,
    VALIDATION_FEATURES,
)

if TYPE_CHECKING:
    from gymnasium import spaces

__all__ = [
    "DEFAULT_FEATURES",
    "FEATURES",
    "KNOWN_FEATURES",
    "OBSERVATION_V2",
    "RECORDED_FEATURES",
    "Feature",
    "Setting",
    "TrainingState",
    "checks_labels",
    "observation_bounds",
    "observation_space",
    "observe",
    "one_hot",
    "reads_training",
    "reads_validation",
    "require_features",
]

FEATURES = FIRST_FEATURES | TRANSFER_FEATURES
DEFAULT_FEATURES = tuple(FIRST_FEATURES)  # what the agents see whose file names no features


def require_features(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of features, in their order.

    Raises:
        ValueError: one is unknown or given twice.
    """
    unknown = [name for name in names if name not in FEATURES]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"features must be different ones of {', '.join(FEATURES)}, got {', '.join(map(str, names))}")
    return tuple(names)


def checks_labels(names: Sequence[str]) -> bool:
    """Return whether one of these features is measured by checking the training labels, which takes time."""
    return not LABEL_FEATURES.isdisjoint(names)


def reads_training(names: Sequence[str]) -> bool:
    """Return whether one of these features is measured on the batches of training."""
    return not TRAINING_FEATURES.isdisjoint(names)


def reads_validation(names: Sequence[str]) -> bool:
    """Return whether one of these features is measured on validation images."""
    return not VALIDATION_FEATURES.isdisjoint(names)


def observation_bounds(
    menu: Menu, features: Sequence[str] = DEFAULT_FEATURES
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the lowest and highest values of the features, then of the last action one-hot, `[O]` each."""
    seen, choices = [FEATURES[name] for name in features], sum(menu.sizes)
    low = np.array([feature.low for feature in seen] + [0.0] * choices, dtype=np.float32)
    return low, np.array([feature.high for feature in seen] + [1.0] * choices, dtype=np.float32)


def observation_space(menu: Menu, features: Sequence[str] = DEFAULT_FEATURES) -> spaces.Box:
    """Return the box of the features, then the last action one-hot in each dimension of the menu."""
    from gymnasium import spaces  # an agent that only chooses does without

    low, high = observation_bounds(menu, features)
    return spaces.Box(low=low, high=high)


def one_hot(action: tuple[int, ...] | None, menu: Menu) -> list[float]:
    """Return an action one-hot in each dimension of the menu, as in observations; all 0 for None."""
    return [
        float(action is not None and action[dimension] == choice)
        for dimension, size in enumerate(menu.sizes)
        for choice in range(size)
    ]


def observe(state: TrainingState, menu: Menu, features: Sequence[str] = DEFAULT_FEATURES) -> NDArray[np.float32]:
    """Return the observation of a training's state: finite, and inside `observation_space(menu, features)`."""
    low, high = observation_bounds(menu, features)
    values = [FEATURES[name].value(state) for name in features]
    raw = np.array([*values, *one_hot(state.action, menu)], dtype=np.float32)
    # A diverged training reports numbers that are not finite: they stand at the worst end of their range.
    return np.clip(np.nan_to_num(raw, nan=4.0, posinf=4.0, neginf=-1.0), low, high)
