"""Measure whether a user's earlier trainings would help to spend the budget of the next one.

    python experiments/studies/budget/remember.py --out experiments/results/budget

On recorded trainings, other tasks of the same data set stand for what a user has trained before. For each policy, the
mean of how much better it came there than was forecast is added to its forecast, shrunk towards none. Remembered are
either all 16 policies of each earlier task, which is more than a user has, or those that a budget of 4 trains to the
end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.agent import Agent
from rlmix.agent.budget import search_budget
from rlmix.agent.files import SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.studies.broad.record import CHOICES
from rlmix.experiments.studies.budget import rivals
from rlmix.experiments.studies.budget.anytime import read_tasks
from rlmix.experiments.studies.budget.recorded import POLICIES, RecordedTask

EARLIER = (1, 2, 4)  # tasks that are remembered
SPENT = 4  # trainings, on each earlier task and on the next one
ALL, TRAINED = "all policies", "what a budget of 4 trained"


@dataclass(frozen=True)
class RememberConfig:
    """Measure whether earlier trainings of a user would help, on recorded trainings."""

    log: str = "experiments/results/broad/rehearse.jsonl"
    """Log of studies/broad/record.py --group rehearse; the meaning of its numbers lies beside it, in a .json of this
    name."""
    agent: str = SHIPPED
    """Agent and forecaster: shipped, or the folder of both."""
    draws: int = 3
    """Number of draws of the earlier tasks, for each task."""
    shrink: float = 2.0
    """Number of earlier tasks that the forecast alone counts for."""
    out: str = "runs/budget"
    """Folder of remember.json and remember.md."""

    def __post_init__(self) -> None:
        require_at_least(self, draws=1, shrink=0)


@dataclass(frozen=True)
class Remembering(Forecaster):
    """A forecaster with something added to its forecast of each policy.

    Attributes:
        added: points, `[A]`.
    """

    added: NDArray[np.float64] | None = None

    def __call__(self, observations: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the forecasts, `[M, N, A]`."""
        told = super().__call__(observations)
        return told if self.added is None else told + self.added


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/remember", arguments) as call:
        config = call.parse(RememberConfig, __doc__)
        tasks = read_tasks(config.log)
        torch.set_num_threads(1)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        result = {
            "command": call.line,
            **measured(tasks, Agent.load(config.agent), Forecaster.load(config.agent), config),
        }
        write_atomic(out / "remember.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "remember.md", markdown(result).encode())
        print(markdown(result))
        print(f"written: {out}/remember.json, remember.md")


def surprise(
    task: RecordedTask, forecaster: Forecaster, policies: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return how much better policies came than was forecast at the start, beside each other, and which were trained.

    Args:
        task: an earlier task.
        forecaster: the forecaster.
        policies: policies that were trained to the end there; a user knows their validation accuracy.
    """
    chosen = sorted(policies)
    told = forecaster(task.observations[:1, 0])[:, 0].mean(axis=0)[chosen]
    apart = 100 * task.final[chosen] - told
    better, trained = np.zeros(POLICIES), np.zeros(POLICIES, dtype=bool)
    better[chosen], trained[chosen] = apart - apart.mean(), True
    return better, trained


def added(earlier: Sequence[tuple[NDArray[np.float64], NDArray[np.bool_]]], shrink: float) -> NDArray[np.float64]:
    """Return what is added to each policy's forecast: the mean of its surprises, shrunk, `[P]`."""
    better = np.sum([one for one, _ in earlier], axis=0)
    often = np.sum([trained for _, trained in earlier], axis=0)
    shrunk: NDArray[np.float64] = better / np.maximum(often + shrink, 1e-9)
    return shrunk


def measured(
    tasks: Sequence[RecordedTask], agent: Agent, forecaster: Forecaster, config: RememberConfig
) -> dict[str, Any]:
    """Return what remembering gains on each task, paired with the same without it."""
    plain = {field.name: getattr(forecaster, field.name) for field in fields(Forecaster)}
    remembered: dict[str, dict[int, tuple[NDArray[np.float64], NDArray[np.bool_]]]] = {ALL: {}, TRAINED: {}}
    without: dict[str, list[float]] = {"one": [], "several": []}
    for task in tasks:
        search = rivals.held_search(task, SPENT, agent, forecaster)
        last, _ = search_budget(search, lambda step, _, task=task: (None, task.result(step)))  # type: ignore[misc]
        final = [CHOICES.index(step.action) for step in search.steps if step.segment == last.segment]
        remembered[ALL][task.number] = surprise(task, forecaster, range(POLICIES))
        remembered[TRAINED][task.number] = surprise(task, forecaster, final)
        without["one"].append(_first(task, forecaster))
        without["several"].append(100 * task.development[CHOICES.index(last.action)])
    rows = []
    for kind, known in remembered.items():
        for count in EARLIER:
            one, several, places = [], [], []
            for place, task in enumerate(tasks):
                others = [other for other in tasks if other.dataset == task.dataset and other is not task]
                if len(others) < count:
                    continue
                gains = []
                for draw in range(config.draws):
                    random = np.random.default_rng([task.number, count, draw])
                    drawn = random.choice(len(others), count, replace=False)
                    shift = added([known[others[other].number] for other in drawn], config.shrink)
                    recalling = Remembering(**plain, added=shift)
                    kept = rivals.ours(rivals.held_search(task, SPENT, agent, recalling), task)
                    gains.append((_first(task, recalling), 100 * task.development[kept.policy]))
                one.append(float(np.mean([gain for gain, _ in gains])))
                several.append(float(np.mean([gain for _, gain in gains])))
                places.append(place)
            if len(places) < 2:
                continue
            rows.append(
                {
                    "remembered": kind,
                    "earlier": count,
                    "tasks": len(places),
                    "one": mean_interval((np.array(one) - np.array(without["one"])[places]).tolist()),
                    "several": mean_interval((np.array(several) - np.array(without["several"])[places]).tolist()),
                }
            )
    return {"tasks": len(tasks), "shrink": config.shrink, "draws": config.draws, "rows": rows}


def _first(task: RecordedTask, forecaster: Forecaster) -> float:
    """Return the development accuracy, in points, of the policy with the highest forecast at the start."""
    told = forecaster(task.observations[:1, 0])[:, 0].mean(axis=0)
    return float(100 * task.development[told.argmax()])


def markdown(result: Mapping[str, Any]) -> str:
    """Format the gains of remembering as a table."""
    rows = [
        [
            row["remembered"],
            row["earlier"],
            row["tasks"],
            format_interval(*row["one"], signed=True),
            format_interval(*row["several"], signed=True),
        ]
        for row in result["rows"]
    ]
    head = ["remembered of each", "earlier tasks", "measured on", "one training", f"a budget of {SPENT}"]
    return "\n\n".join(
        [
            "# Earlier trainings of a user",
            f"`{result['command']}`",
            f"Points of development accuracy that remembering earlier tasks of the same data set adds, over "
            f"{result['tasks']} recorded tasks, {result['draws']} draws of the earlier ones for each, fixed policies; "
            "95 % intervals, paired by task. One training: that with the highest forecast.",
            tabulate(rows, head, tablefmt="pipe", disable_numparse=True),
            "",
        ]
    )


if __name__ == "__main__":
    main()
