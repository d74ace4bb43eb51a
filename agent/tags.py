"""Names of everything that a run writes to TensorBoard, in one table.

Who writes a value and who reads it back (reports, tests) take its name from here. A new value is one line in `Tag` and
its place in `WRITTEN_BY`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

from rlmix.envs import DIMENSIONS

Layout = Mapping[str, Mapping[str, Sequence[str | Sequence[str]]]]


class Tag(StrEnum):
    """Tags of scalars, images, histograms and texts; those of texts are shown with `/text_summary` behind them."""

    # A search. Shares of choices are a run below the search's own for each choice.
    RETURN_MEAN = "learning_curve/return_mean"
    RETURN_LOWER = "learning_curve/return_lower"
    RETURN_UPPER = "learning_curve/return_upper"
    ACCURACY_MEAN = "validation/accuracy_mean"
    ACCURACY_MAX = "validation/accuracy_max"
    DIVERGED = "search/diverged"
    EPISODES = "search/episodes"
    SOURCE = "policy/source"
    THRESHOLD = "policy/threshold"
    LABEL = "policy/label"
    LAM = "policy/lam"
    CHOICES_OVER_SEARCH = "policy/over_the_search"
    CHOICES_OVER_PROGRESS = "policy/over_training_progress"
    MIXED_IMAGES_POLICY = "mixed_images_policy"
    COMPARISON = "comparison"
    LEARNED_POLICY = "learned_policy"

    # A final training. Shares of the updates are a run for each method.
    POLICY = "policy"
    METHOD_SHARE = "policy/share"
    LABEL_BETA = "policy/label_beta"
    LABEL_SMOOTHING = "policy/label_smoothing"
    CLEAN_LOSS = "train/clean_loss"
    CLEAN_ACCURACY = "train/clean_accuracy"
    MIXED_LOSS = "train/mixed_loss"
    MIXED_ACCURACY = "train/mixed_accuracy"
    LEARNING_RATE = "train/learning_rate"
    IMAGES_PER_SECOND = "train/images_per_second"
    ACCURACY = "validation/accuracy"
    VALIDATION_LOSS = "validation/loss"
    CALIBRATION_ERROR = "validation/calibration_error"
    MIXED_IMAGES = "mixed_images"
    CONFUSION = "test/confusion"

    # A training under RL-Mix's agent. Shares of the images are a run for each threshold.
    REWARD_MEAN = "reward/mean"
    SHARE_LOW = "policy/share_low"
    SHARE_HIGH = "policy/share_high"
    THRESHOLD_MEAN = "policy/threshold_mean"
    THRESHOLD_LOWER_QUARTILE = "policy/threshold_lower_quartile"
    THRESHOLD_UPPER_QUARTILE = "policy/threshold_upper_quartile"
    THRESHOLDS = "policy/thresholds"
    THRESHOLDS_OVER_TRAINING = "policy/over_the_training"

    # Stable-Baselines3's PPO, which also writes LEARNING_RATE: its own, not the classifier's.
    PPO_LOSS = "train/loss"
    PPO_POLICY_LOSS = "train/policy_gradient_loss"
    PPO_VALUE_LOSS = "train/value_loss"
    PPO_ENTROPY_LOSS = "train/entropy_loss"
    PPO_EXPLAINED_VARIANCE = "train/explained_variance"
    PPO_KL = "train/approx_kl"
    PPO_CLIP_FRACTION = "train/clip_fraction"
    PPO_CLIP_RANGE = "train/clip_range"
    FPS = "time/fps"


def choice_tag(dimension: str) -> Tag:
    """Return the tag of a dimension's shares of choices."""
    return Tag(f"policy/{dimension}")


def multiline(*tags: Tag) -> list[str | Sequence[str]]:
    """Return a chart of TensorBoard's custom scalars that shows the lines of some tags."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def margin(middle: Tag, lower: Tag, upper: Tag) -> list[str | Sequence[str]]:
    """Return a chart of TensorBoard's custom scalars that shows a line between two others."""
    return ["Margin", [middle, lower, upper]]


_PPO = {tag for tag in Tag if tag.name.startswith("PPO_")} | {Tag.LEARNING_RATE}

WRITTEN_BY: Mapping[str, frozenset[Tag]] = MappingProxyType(
    {
        "search": frozenset(
            {
                Tag.RETURN_MEAN,
                Tag.RETURN_LOWER,
                Tag.RETURN_UPPER,
                Tag.ACCURACY_MEAN,
                Tag.ACCURACY_MAX,
                Tag.DIVERGED,
                Tag.EPISODES,
                *map(choice_tag, DIMENSIONS),
                Tag.CHOICES_OVER_SEARCH,
                Tag.CHOICES_OVER_PROGRESS,
                Tag.MIXED_IMAGES,
                Tag.MIXED_IMAGES_POLICY,
                Tag.COMPARISON,
                Tag.LEARNED_POLICY,
                Tag.FPS,
                *_PPO,
            }
        ),
        "training": frozenset(
            {
                Tag.POLICY,
                Tag.METHOD_SHARE,
                Tag.LABEL_BETA,
                Tag.LABEL_SMOOTHING,
                Tag.CLEAN_LOSS,
                Tag.CLEAN_ACCURACY,
                Tag.MIXED_LOSS,
                Tag.MIXED_ACCURACY,
                Tag.LEARNING_RATE,
                Tag.IMAGES_PER_SECOND,
                Tag.ACCURACY,
                Tag.VALIDATION_LOSS,
                Tag.CALIBRATION_ERROR,
                Tag.MIXED_IMAGES,
                Tag.CONFUSION,
            }
        ),
        "rl_mix": frozenset(
            {
                Tag.REWARD_MEAN,
                Tag.MIXED_LOSS,
                Tag.ACCURACY,
                Tag.SHARE_LOW,
                Tag.SHARE_HIGH,
                Tag.THRESHOLD_MEAN,
                Tag.THRESHOLD_LOWER_QUARTILE,
                Tag.THRESHOLD_UPPER_QUARTILE,
                Tag.THRESHOLDS,
                Tag.THRESHOLDS_OVER_TRAINING,
                *_PPO,
            }
        ),
    }
)
"""Tags by kind of run. Hyperparameters and layouts have names of TensorBoard's own."""
