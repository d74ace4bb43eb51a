"""Trainings in the family's log as the surrogate learns from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlmix.classifier.files import LineLog
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.reference import ReferenceCurve
from rlmix.envs.surrogate_tasks import SPLITS, RecordedTask, Recording
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import DATA, SEGMENTS, part_of

LOG = "experiments/results/family/episodes.jsonl"
VALIDATION_LIMIT = 1000  # images that the family's trainings are validated on before their end
GROUPS = {  # of the tasks; the first whose test holds
    "bare network": lambda task: _part(task) == "bare",
    "slow": lambda task: _part(task) == "slow",
    "wrong labels": lambda task: task["label_noise"] > 0,
    "few images": lambda task: task["train_size"] < 1000,
    "clean labels": lambda task: True,
}


def _part(task: Mapping[str, Any]) -> str:
    return task["part"] if "part" in task else part_of(task["number"])


def read_log(path: Path | str) -> list[dict[str, Any]]:
    """Return the whole trainings of a log.

    Raises:
        RunError: there is no such file.
        DamagedFileError: the file is damaged.
    """
    if not Path(path).is_file():
        raise RunError(f"--log: there is no file {path}; task_family/collect.py writes one")
    with reject_incompatible(path):
        lines = LineLog(Path(path)).read()
        return [line for line in lines if not line["diverged"] and len(line["observations"]) == len(SEGMENTS) + 1]


def recordings(lines: Sequence[Mapping[str, Any]]) -> list[Recording]:
    """Return the trainings of a log, in its order."""
    return [
        Recording(
            line["task"],
            np.array(line["observations"], dtype=np.float32)[:, : len(DEFAULT_FEATURES)],
            [tuple(action) for action in line["actions"]],
        )
        for line in lines
    ]


def recorded_tasks(lines: Sequence[Mapping[str, Any]]) -> list[RecordedTask]:
    """Return the tasks of a log whose reference was trained, by number; the reference is the mean over its seeds."""
    references: dict[int, list[list[float]]] = {}
    first: dict[int, Mapping[str, Any]] = {}
    for line in lines:
        first.setdefault(line["task"], line)
        if line["kind"] == "reference":
            references.setdefault(line["task"], []).append(line["validation"])
    images = [VALIDATION_LIMIT] * (len(SEGMENTS) - 1) + [DATA.validation_size or 0]
    tasks = []
    for number in sorted(references):
        line, curve = first[number], ReferenceCurve.from_trainings(references[number], images)
        drawn = line["task_drawn"]
        description = {"number": number, "part": part_of(number), **drawn}
        context = (
            drawn["label_noise"],
            math.log10(drawn.get("lr_scale", 1.0)),
            float(part_of(number) == "bare"),
        )
        seen = np.array(line["observations"], dtype=np.float32)[:, : len(DEFAULT_FEATURES)]
        tasks.append(RecordedTask(number, context, seen, list(curve.accuracies), list(curve.scales), description))
    return tasks


def provenance_of(
    files: Sequence[str], tasks: Sequence[RecordedTask], trainings: Sequence[Recording], made_by: str
) -> dict[str, Any]:
    """Return what a surrogate's file says of how it was learned: command, checksums of the logs, and counts."""
    return {
        "command": made_by,
        "logs": {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files},
        "trainings": len(trainings),
        "tasks": len(tasks),
        "splits": SPLITS,
    }


def group_of(description: Mapping[str, Any]) -> str:
    """Return the group, one of `GROUPS`, of a task by its description."""
    return next(name for name, holds in GROUPS.items() if holds(description))
