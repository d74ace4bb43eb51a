"""Logs of recorded trainings as episodes that see the same features: those of broad tasks, and those of the family."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.regression import Episode
from rlmix.classifier.files import LineLog
from rlmix.envs.observation import DEFAULT_FEATURES, one_hot
from rlmix.envs.transfer_features import UNMEASURED_FEATURES
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import DATA, MENU

CHOICES = MENU.actions()
FEATURES = UNMEASURED_FEATURES  # what an agent sees
TASKS_OF_A_LOG = 10_000_000  # between the numbers of the tasks of two logs


@dataclass(frozen=True)
class RecordedTraining:
    """A recorded training.

    Attributes:
        line: its line in the log.
        rows: `FEATURES` at the start and after each segment, `[S + 1, F]`; fewer of one that diverged.
        actions: action of each segment.
    """

    line: Mapping[str, Any]
    rows: NDArray[np.float32]
    actions: list[tuple[int, ...]]


@dataclass(frozen=True)
class RecordedLog:
    """Trainings of one log.

    Attributes:
        trainings: the trainings.
        drawn: what each task is, as its first training says.
        data_sets: data set of each task.
        meaning: names of the numbers of a log of broad tasks; None of the family's log.
    """

    trainings: list[RecordedTraining]
    drawn: dict[int, Mapping[str, Any]]
    data_sets: dict[int, str]
    meaning: Mapping[str, Any] | None


def read_logs(files: Sequence[str]) -> list[RecordedLog]:
    """Return the trainings of logs, of which the tasks are numbered anew so that no two have the same number.

    Args:
        files: logs of studies/broad/record.py, each with the meaning of its numbers in a .json beside it, or of
            studies/task_family/collect.py, without.

    Raises:
        RunError: a file is missing or damaged.
    """
    found = []
    for number, name in enumerate(files):
        log, first = Path(name), number * TASKS_OF_A_LOG
        if not log.is_file():
            raise RunError(
                f"--logs: there is no file {log}; studies/broad/record.py and studies/task_family/collect.py write logs"
            )
        with reject_incompatible(log):
            lines = [{**line, "task": first + line["task"]} for line in LineLog(log).read()]
            if not lines:
                raise RunError(f"--logs: {log} has no trainings")
            meaning = None if "actions" in lines[0] else json.loads(log.with_suffix(".json").read_bytes())
            trainings = family_trainings(lines) if meaning is None else broad_trainings(lines, meaning)
            drawn = {line["task"]: line["task_drawn"] for line in lines if "task_drawn" in line}
            sets = {task: str(DATA.dataset if meaning is None else values["dataset"]) for task, values in drawn.items()}
            known = [training for training in trainings if training.line["task"] in drawn]
            found.append(RecordedLog(known, drawn, sets, meaning))
    return found


def broad_trainings(lines: Sequence[Mapping[str, Any]], meaning: Mapping[str, Any]) -> list[RecordedTraining]:
    """Return recorded trainings of broad tasks.

    Args:
        lines: lines of the log.
        meaning: names of their numbers.
    """
    names = [*meaning["known"], *meaning["rows"]]
    places = [names.index(name) for name in FEATURES]
    found = []
    for line in lines:
        rows = np.array([[*line["known"], *row] for row in line["rows"]], dtype=np.float32)[:, places]
        found.append(RecordedTraining(line, rows, [CHOICES[choice] for choice in line["policies"]]))
    return found


def family_trainings(lines: Sequence[Mapping[str, Any]]) -> list[RecordedTraining]:
    """Return recorded trainings of the family, whose first observation says all that `FEATURES` ask for."""
    found = []
    for line in lines:
        rows = np.array([_from_first_observation(row) for row in line["observations"]], dtype=np.float32)
        found.append(RecordedTraining(line, rows, [tuple(action) for action in line["actions"]]))
    return found


def episode_of(training: RecordedTraining) -> Episode:
    """Return a recorded training as an agent sees it, scored by accuracy on development images, in points."""
    actions = training.actions[: max(len(training.rows) - 1, 1)]  # a diverged training has fewer segments
    before = [None, *actions[:-1]]
    seen = [[*row, *one_hot(action, MENU)] for row, action in zip(training.rows, before, strict=False)]
    line = training.line
    return Episode(line["task"], np.array(seen, dtype=np.float32), actions, 100 * line["development"])


def _from_first_observation(row: Sequence[float]) -> list[float]:
    seen = dict(zip(DEFAULT_FEATURES, row, strict=True))
    images, classes = 10 ** (5 * seen["log_train_size"]), round(10 ** (3 * seen["log_classes"]))
    batch = (10 ** (4 * seen["log_passes"]) - 1) * images / 10 ** (5 * seen["log_updates"])
    chance, validated = 1 / classes, float(seen["progress"] > 0)

    def way(kind: str, seen_at_all: float) -> float:
        return (seen[f"{kind}_accuracy"] - chance) / (1 - chance) if seen_at_all else 0.0

    clean, validation = way("clean", seen["clean_seen"]), way("validation", validated)
    known = {
        "log_images_per_class": float(np.log10(max(images / classes, 1))) / 4,
        "log_batch_size": float(np.log2(max(round(batch), 1))) / 10,
        "validated": validated,
        "clean_way": clean,
        "mixed_way": way("mixed", seen["mixed_seen"]),
        "validation_way": validation,
        "gap": clean - validation if seen["clean_seen"] else 0.0,
    }
    return [{**seen, **known}[name] for name in FEATURES]
