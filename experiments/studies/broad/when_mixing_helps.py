"""When does mixing help? What fixed policies gained in recorded trainings, by passes over the images and by labels.

    python experiments/studies/broad/when_mixing_helps.py --out experiments/results/broad/when

A gain is accuracy on development images less that of plain training of the same task. Policies of one kind are averaged
within a task first, and then over tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.mixing import MixPolicy
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.task_family import MENU, PLAIN
from rlmix.experiments.studies.broad.logs import FEATURES, RecordedTraining, read_logs

PASSES = (25, 80)  # bounds of few, some and many passes over the images
KINDS = ("label smoothing", "half", "half, smoothing", "all", "all, smoothing")
FEWEST = 3  # tasks of which an interval is shown


@dataclass(frozen=True)
class WhenConfig:
    """Show when mixing helped."""

    logs: tuple[str, ...] = ("experiments/results/broad/usual.jsonl", "experiments/results/broad/longer.jsonl")
    """Logs of studies/broad/record.py; a table for each."""
    out: str = "runs/when"
    """Folder of results.json and results.md."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/when_mixing_helps", arguments) as call:
        config = call.parse(WhenConfig, __doc__)
        result: dict[str, Any] = {"command": call.line, "logs": {}}
        for name, log in zip(config.logs, read_logs(config.logs), strict=True):
            if log.meaning is None:
                raise RunError(f"--logs: expected logs of broad tasks, got {name}, of the family")
            wrong = {number: float(drawn["label_noise"]) for number, drawn in log.drawn.items()}
            result["logs"][Path(name).stem] = table_of(log.trainings, wrong)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "results.md", markdown(result).encode())
        print(f"{markdown(result)}\nwritten: {out}/results.json, results.md")


def kind_of(policy: MixPolicy) -> str | None:
    """Return which of `KINDS` a policy is; None for plain training."""
    clean = policy.shares.get("clean", 0.0)
    if clean == 1:
        return "label smoothing" if policy.label_smoothing else None
    return ("half" if clean else "all") + (", smoothing" if policy.label_smoothing else "")


def table_of(trainings: Sequence[RecordedTraining], wrong: Mapping[int, float]) -> list[dict[str, Any]]:
    """Return the gains of each kind of fixed policy, in points, by labels and passes.

    Args:
        trainings: recorded trainings; those that change their policy do not count, nor do tasks without a plain one.
        wrong: share of wrong labels of each task.

    Returns:
        Rows with `labels`, `passes`, `tasks`, and `gains`: by kind the mean and half-width of its interval over tasks,
        and the number of tasks.
    """
    column = FEATURES.index("log_passes")
    plain: dict[int, list[float]] = {}
    gains: dict[int, dict[str, list[float]]] = {}
    passes: dict[int, float] = {}
    for training in trainings:
        number, actions = training.line["task"], set(training.actions)
        passes[number] = 10 ** (4 * float(training.rows[0, column])) - 1
        if actions == {PLAIN}:
            plain.setdefault(number, []).append(training.line["development"])
        elif len(actions) == 1 and (kind := kind_of(MENU.policy(next(iter(actions))))):
            gains.setdefault(number, {}).setdefault(kind, []).append(training.line["development"])
    bounds = (0, *PASSES, float("inf"))
    rows = []
    for labels, is_wrong in (("clean", False), ("wrong", True)):
        for low, high in pairwise(bounds):
            chosen = [
                number
                for number in sorted(gains)
                if number in plain and (wrong[number] > 0) == is_wrong and low <= passes[number] < high
            ]
            found: dict[str, Any] = {}
            for kind in KINDS:
                values = [
                    100 * float(np.mean(gains[number][kind]) - np.mean(plain[number]))
                    for number in chosen
                    if kind in gains[number]
                ]
                if len(values) >= FEWEST:
                    found[kind] = [*mean_interval(values), len(values)]
            said = (
                f"below {high:g}"
                if not low
                else f"{low:g} and more"
                if high == float("inf")
                else f"{low:g} to {high:g}"
            )
            rows.append({"labels": labels, "passes": said, "tasks": len(chosen), "gains": found})
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    """Format the tables."""
    parts = [
        "# When mixing helps",
        f"`{result['command']}`",
        "Points of accuracy on development images above plain training of the same task, means over tasks with 95 % "
        "intervals, and the number of tasks. Half: mixup, CutMix, LaMix's average or R-Mix on half of the updates; "
        "all: mixup, CutMix or R-Mix on all of them; smoothing: with label smoothing of 0.3.",
    ]
    for name, rows in result["logs"].items():
        lines = [
            [
                row["labels"],
                row["passes"],
                *(
                    f"{format_interval(*row['gains'][kind][:2], signed=True)} ({row['gains'][kind][2]})"
                    if kind in row["gains"]
                    else ""
                    for kind in KINDS
                ),
            ]
            for row in rows
        ]
        head = ["labels", "passes", *KINDS]
        parts += [f"## Tasks of `{name}`", tabulate(lines, head, tablefmt="pipe", disable_numparse=True)]
    return "\n\n".join([*parts, ""])


if __name__ == "__main__":
    main()
