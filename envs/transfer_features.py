"""Features that carry over between data sets and networks: observation v2.

Beside what is known beforehand there are, for each of the last three segments, what the network makes of its training
and validation images, on scales that do not depend on the number of classes, and signs of wrong labels. Each group of
measurements has a flag, which is 0 where it was not taken; the others are then as at the start of a training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from rlmix.classifier.evaluation.label_check import DECILES, LabelStats
from rlmix.classifier.training.stats import UpdateStats
from rlmix.envs.features import FIRST_FEATURES, Feature, trained
from rlmix.envs.training_state import Setting, TrainingState

LAGS = {1: "one segment earlier", 2: "two segments earlier"}


def _way(accuracy: float, state: TrainingState) -> float:
    """Return an accuracy as share of the way from chance to 1."""
    chance = 1 / state.num_classes
    return (accuracy - chance) / (1 - chance)


def _known(value: Callable[[Setting], float]) -> Callable[[TrainingState], float]:
    """Return a feature of the training's setting.

    Raises:
        ValueError: when it is computed, the state has no setting.
    """

    def feature(state: TrainingState) -> float:
        if state.setting is None:
            raise ValueError("these features need the training's setting: give the state Setting.of(trainer)")
        return value(state.setting)

    return feature


def _trained_way(stats: UpdateStats, state: TrainingState) -> float:
    return _way(stats.accuracy, state)


def _validation_way(state: TrainingState) -> float:
    return 0.0 if state.evaluation is None else _way(state.evaluation.accuracy, state)


def _checked(value: Callable[[LabelStats, TrainingState], float]) -> Callable[[TrainingState], float]:
    """Return a feature of the check of the training labels; 0 where there was none."""
    return lambda state: 0.0 if state.labels is None else value(state.labels, state)


def _decile(index: int) -> Callable[[TrainingState], float]:
    return _checked(lambda labels, state: labels.loss_deciles[index] / math.log(state.num_classes))


_KNOWN = {
    "log_images_per_class": Feature(
        "log10(training images / classes) / 4",
        0.0,
        2.0,
        lambda state: math.log10(max(state.task.train_size / state.num_classes, 1)) / 4,
    ),
    "log_parameters": Feature(
        "log10(parameters of the network) / 8", 0.0, 2.0, _known(lambda setting: math.log10(setting.parameters) / 8)
    ),
    "image_side": Feature("log2(side of the images in pixels) / 8", 0.0, 2.0, _known(lambda s: math.log2(s.side) / 8)),
    "colour": Feature("1 if the images have more than one channel", 0.0, 1.0, _known(lambda s: float(s.channels > 1))),
    "log_batch_size": Feature("log2(images per update) / 10", 0.0, 2.0, lambda state: math.log2(state.batch_size) / 10),
    "normalised": Feature(
        "1 if the network has normalisation layers", 0.0, 1.0, _known(lambda setting: float(setting.normalised))
    ),
    "log_imbalance": Feature(
        "log10(images of the most frequent label over those of the rarest) / 2",
        0.0,
        2.0,
        _known(lambda setting: math.log10(setting.imbalance) / 2),
    ),
}
_LABELS = {
    "labels_seen": Feature("1 if the training labels were checked", 0.0, 1.0, _checked(lambda *_: 1.0)),
    "train_way": Feature(
        "accuracy on plain training images, with the labels as they are, as share of the way from chance to 1",
        -1.0,
        1.0,
        _checked(lambda labels, state: _way(labels.accuracy, state)),
    ),
    **{
        f"train_loss_{round(100 * share)}": Feature(
            f"{share:g} quantile of the loss on them, over log K", 0.0, 4.0, _decile(index)
        )
        for index, share in enumerate(DECILES)
    },
    "contradicted": Feature(
        "share of them that the network confidently puts into another class (confident learning)",
        0.0,
        1.0,
        _checked(lambda labels, _: labels.contradicted),
    ),
    "hump_share": Feature(
        "share of them in the upper of two humps of the loss", 0.0, 1.0, _checked(lambda labels, _: labels.hump_share)
    ),
    "hump_gap": Feature(
        "distance of the two humps in standard deviations, over 10",
        0.0,
        1.0,
        _checked(lambda labels, _: labels.hump_gap / 10),
    ),
    "neighbours_differ": Feature(
        "share of them whose label is not the most frequent one of their 10 nearest neighbours",
        0.0,
        1.0,
        _checked(lambda labels, _: labels.neighbours_differ),
    ),
}
_MEASURED = {
    "validated": Feature(
        "1 if a segment was trained and validated", 0.0, 1.0, lambda state: float(state.evaluation is not None)
    ),
    "clean_way": Feature(
        "accuracy of clean updates, as share of the way from chance to 1", -1.0, 1.0, trained("clean", _trained_way)
    ),
    "mixed_way": Feature(
        "share of mixed images whose largest target is found, likewise", -1.0, 1.0, trained("mixed", _trained_way)
    ),
    "validation_way": Feature("validation accuracy, likewise", -1.0, 1.0, _validation_way),
    "gap": Feature(
        "`clean_way` less `validation_way`; 0 without clean updates",
        -1.0,
        1.0,
        trained("clean", lambda stats, state: _trained_way(stats, state) - _validation_way(state)),
    ),
    **_LABELS,
}
_REUSED = (  # of the first observation; they carry over as they are
    "clean_seen",
    "clean_excess_loss",
    "mixed_seen",
    "mixed_excess_loss",
    "validation_loss",
    "confidence",
    "calibration_error",
    "probes_seen",
    "saliency_entropy",
    "log_gradient_norm",
)


def _lagged(feature: Feature, segments: int) -> Feature:
    return replace(
        feature,
        meaning=f"{feature.meaning}, {LAGS[segments]}",
        value=lambda state: feature.value(state.earlier(segments)),
    )


_OF_A_SEGMENT = {name: FIRST_FEATURES[name] for name in _REUSED} | _MEASURED
_EARLIER = {
    f"{name}_{segments}": _lagged(feature, segments) for segments in LAGS for name, feature in _OF_A_SEGMENT.items()
}
TRANSFER_FEATURES = _KNOWN | _MEASURED | _EARLIER
_BEFOREHAND = ("log_updates", "log_passes", "log_classes", *_KNOWN)
RECORDED_FEATURES = (*_BEFOREHAND, "progress", "relative_lr", *_OF_A_SEGMENT)  # earlier ones are in earlier rows
OBSERVATION_V2 = (*RECORDED_FEATURES, *_EARLIER)
SETTING_FEATURES = frozenset({"log_parameters", "image_side", "colour", "normalised", "log_imbalance"})
LABEL_FEATURES = {
    *_LABELS,
    *(f"{name}_{segments}" for name in _LABELS for segments in LAGS),
}
_ON_VALIDATION = ("validated", "validation_way", "gap", "validation_loss", "confidence", "calibration_error")
KNOWN_FEATURES = frozenset({"log_train_size", *_BEFOREHAND})  # they never change within a training
VALIDATION_FEATURES = {
    *_ON_VALIDATION,
    *(f"{name}_{segments}" for name in _ON_VALIDATION for segments in LAGS),
    *("validation_accuracy", "validation_change", "accuracy_gap"),  # of the first observation alone
}
_OF_UPDATES = ("seen", "excess_loss", "accuracy", "way")
TRAINING_FEATURES = {
    name + lag
    for name in (*(f"{kind}_{measure}" for kind in ("clean", "mixed") for measure in _OF_UPDATES), "gap")
    for lag in ("", *(f"_{segments}" for segments in LAGS))
} | {"accuracy_gap"}
# Observation v2 without signs of wrong labels, without earlier segments and without the network: nothing has to be
# measured for it, and any loop shows it.
UNMEASURED_FEATURES = tuple(name for name in RECORDED_FEATURES if name not in LABEL_FEATURES | SETTING_FEATURES)
