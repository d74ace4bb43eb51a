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
from rlmix.envs.observation import DEFAULT_FEATURES, RECORDED_FEATURES, one_hot
from rlmix.envs.transfer_features import LABEL_FEATURES, SETTING_FEATURES
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import DATA, MENU

CHOICES = MENU.actions()
# Observation v2 without signs of wrong labels, without earlier segments and without the network: nothing has to be
# measured for it, and any loop shows it.
FEATURES = tuple(name for name in RECORDED_FEATURES if name not in LABEL_FEATURES | SETTING_FEATURES)
TASKS_OF_A_LOG = 10_000_000  # between the numbers of the tasks of two logs


@dataclass(frozen=True)
class Recorded:
    """Trainings of one log.

    Attributes:
        episodes: the trainings, scored by accuracy on development images, in points.
        data_sets: data set of each task.
    """

    episodes: list[Episode]
    data_sets: dict[int, str]


def read_logs(files: Sequence[str]) -> list[Recorded]:
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
            meaning = log.with_suffix(".json")
            family = "actions" in lines[0]
            episodes = family_episodes(lines) if family else broad_episodes(lines, json.loads(meaning.read_bytes()))
            drawn = {line["task"]: line["task_drawn"] for line in lines if "task_drawn" in line}
            sets = {task: str(DATA.dataset if family else values["dataset"]) for task, values in drawn.items()}
            found.append(Recorded([one for one in episodes if one.task in sets], sets))
    return found


def broad_episodes(lines: Sequence[Mapping[str, Any]], meaning: Mapping[str, Any]) -> list[Episode]:
    """Return recorded trainings of broad tasks.

    Args:
        lines: lines of the log.
        meaning: names of their numbers.
    """
    names = [*meaning["known"], *meaning["rows"]]
    places = [names.index(name) for name in FEATURES]
    return [
        _episode(
            line,
            [np.array([*line["known"], *row], dtype=np.float32)[places] for row in line["rows"]],
            [CHOICES[choice] for choice in line["policies"]],
        )
        for line in lines
    ]


def family_episodes(lines: Sequence[Mapping[str, Any]]) -> list[Episode]:
    """Return recorded trainings of the family, whose first observation says all that `FEATURES` ask for."""
    return [
        _episode(
            line,
            [_from_first_observation(row) for row in line["observations"]],
            [tuple(action) for action in line["actions"]],
        )
        for line in lines
    ]


def _episode(
    line: Mapping[str, Any], rows: Sequence[Sequence[float] | NDArray[np.float32]], actions: list[tuple[int, ...]]
) -> Episode:
    actions = actions[: max(len(rows) - 1, 1)]  # a diverged training has fewer segments
    before = [None, *actions[:-1]]
    seen = [[*row, *one_hot(action, MENU)] for row, action in zip(rows, before, strict=False)]
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
