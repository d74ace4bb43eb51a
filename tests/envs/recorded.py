"""Recordings of a process in closed form, and a surrogate that was fitted to them: what both must agree on is known."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.surrogate_fit import SurrogateConfig, fit_surrogate
from rlmix.envs.surrogate_model import SurrogateModel
from rlmix.envs.surrogate_tasks import RecordedTask, Recording

MENU = Menu(
    sources=(
        ("clean", {"clean": 1.0}),
        ("cutmix half", {"clean": 0.5, "cutmix": 0.5}),
        ("cutmix all", {"cutmix": 1.0}),
    ),
    thresholds=(None,),
    labels=((1.0, 0.0), (1.0, 0.2)),
    lams=("beta(1)",),
)
SEGMENTS = (0.25, 0.5, 1.0)
STD = 0.02  # of a segment's accuracy
TASKS = 40
FAST = SurrogateConfig(members=3, hidden=32, steps=400, batch_size=256, weight_decay=0.01, ridge=0.1)


def label_noise(task: int) -> float:
    """Share of wrong labels of a task."""
    return (task * 7 % TASKS) / (2 * TASKS)


def gain(task: int, action: Sequence[int], segment: int) -> float:
    """Mean change of validation accuracy over a segment: mixing helps where labels are wrong."""
    share = (0.0, 0.5, 1.0)[action[0]]
    length = SEGMENTS[segment] - (0.0, *SEGMENTS)[segment]
    return length * (0.4 + 0.8 * share * (label_noise(task) - 0.25) + 0.1 * action[2])


def observation(accuracy: float, before: float, segment: int, action: Sequence[int] | None) -> list[float]:
    """The features of a training of the process after so many segments."""
    clean = action is not None and action[0] != 2
    mixed = action is not None and action[0] != 0
    values = dict.fromkeys(DEFAULT_FEATURES, 0.0) | {
        "log_train_size": 0.6,
        "log_updates": 0.5,
        "log_passes": 0.3,
        "log_classes": 1 / 3,
        "progress": (0.0, *SEGMENTS)[segment],
        "relative_lr": 1 - (0.0, *SEGMENTS)[segment],
        "clean_seen": float(clean),
        "clean_excess_loss": clean * (1 - accuracy),
        "clean_accuracy": clean * accuracy / 2,
        "mixed_seen": float(mixed),
        "mixed_excess_loss": mixed * (1 - accuracy / 2),
        "mixed_accuracy": mixed * accuracy / 4,
        "validation_loss": 1 - accuracy,
        "validation_accuracy": accuracy,
        "validation_change": accuracy - before,
        "accuracy_gap": clean * (accuracy / 2 - accuracy),
        "confidence": accuracy,
        "calibration_error": 0.1 * accuracy,
        "probes_seen": float(clean),
        "saliency_entropy": clean * 0.9,
        "log_gradient_norm": clean * -0.3,
    }
    return [values[name] for name in DEFAULT_FEATURES]


def recording(task: int, actions: Sequence[tuple[int, ...]], random: np.random.Generator) -> Recording:
    """One training of the process."""
    accuracy = before = 0.1
    rows = [observation(accuracy, before, 0, None)]
    for segment, action in enumerate(actions):
        before, accuracy = accuracy, accuracy + gain(task, action, segment) + random.normal(0, STD)
        rows.append(observation(accuracy, before, segment + 1, action))
    return Recording(task, np.array(rows, dtype=np.float32), list(actions))


@functools.cache
def recordings() -> tuple[Recording, ...]:
    """Twelve trainings of each task under actions drawn for each segment."""
    random = np.random.default_rng(0)
    choices = MENU.actions()
    return tuple(
        recording(task, [choices[random.integers(len(choices))] for _ in SEGMENTS], random)
        for task in range(TASKS)
        for _ in range(12)
    )


def recorded_tasks() -> list[RecordedTask]:
    """The tasks of the process; the reference is CutMix on half of the updates."""
    tasks = []
    for number in range(TASKS):
        reference = np.cumsum([gain(number, (1, 0, 0, 0), segment) for segment in range(len(SEGMENTS))]) + 0.1
        seen = np.array([observation(0.1, 0.1, segment, None) for segment in range(len(SEGMENTS) + 1)])
        context = (label_noise(number), math.log10(1.0), 0.0)
        scale = [0.05] * len(SEGMENTS)
        tasks.append(RecordedTask(number, context, seen, reference.tolist(), scale, {"number": number}))
    return tasks


def fit(config: SurrogateConfig = FAST, seed: int = 0) -> SurrogateModel:
    """A surrogate of the process."""
    return fit_surrogate(
        recordings(),
        recorded_tasks(),
        menu=MENU,
        segments=SEGMENTS,
        config=config,
        seed=seed,
        provenance={"process": "closed form"},
    )


@functools.cache
def model() -> SurrogateModel:
    """The same surrogate for every test; not to be changed."""
    return fit()
