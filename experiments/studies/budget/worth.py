"""Measure whether the gain that a budget's search expects of more trainings is the gain that comes.

    python experiments/studies/budget/worth.py --out experiments/results/budget

Our search is replayed on recorded trainings under fixed policies (`anytime.py`). Before every segment it expects the
best of the candidates that go on to be so many points above the first of them; what came is known. Three predictions
are compared: as the forecaster's draws give it, times a factor, and times a factor and the spread of the candidates'
validation over the typical one. A factor is fitted on the tasks of the other data sets. Then `--budget auto` is
replayed with several thresholds, beside fixed budgets.

`--store FOLDER` writes the factor of all tasks into the forecaster there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tabulate import tabulate

from rlmix.agent.agent import Agent
from rlmix.agent.budget import Outlook
from rlmix.agent.files import NAMED, SHIPPED
from rlmix.agent.plots import interval_plot, png
from rlmix.agent.values import Forecaster
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.studies.broad.record import CHOICES
from rlmix.experiments.studies.budget import rivals
from rlmix.experiments.studies.budget.anytime import read_tasks
from rlmix.experiments.studies.budget.recorded import RecordedTask
from rlmix.experiments.training.config import AUTO_TRAININGS

BUDGETS = (1, 2, 3, 4, 6, 8)
WORTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
TYPICAL = 2  # candidates that the typical spread counts for, beside those that are seen
DRAWN, FACTOR, SPREAD = "as drawn", "times a factor", "times a factor and the spread seen"


@dataclass(frozen=True)
class WorthConfig:
    """Measure whether expected gains of more trainings come, on recorded trainings."""

    log: str = "experiments/results/broad/rehearse.jsonl"
    """Log of studies/broad/record.py --group rehearse; the meaning of its numbers lies beside it, in a .json of this
    name."""
    agent: str = SHIPPED
    """Agent and forecaster: shipped, or the folder of both."""
    store: str | None = None
    """Folder of the forecaster that the factor of all tasks is written into; optional, defaults to none."""
    out: str = "runs/budget"
    """Folder of worth.json, worth.md and worth.png."""


@dataclass(frozen=True)
class Expected:
    """Gains that were expected on the tasks, before each segment, and those that came; in points, `[T, S]` each.

    Attributes:
        drawn: gain of the candidates over the first of them, by the forecaster's draws.
        scale: spread of the candidates' validation over the typical one.
        came: development accuracy of the network kept, above that of the first candidate's.
    """

    drawn: NDArray[np.float64]
    scale: NDArray[np.float64]
    came: NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/worth", arguments) as call:
        config = call.parse(WorthConfig, __doc__)
        tasks = read_tasks(config.log)
        torch.set_num_threads(1)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        agent, forecaster = Agent.load(config.agent), replace(Forecaster.load(config.agent), realised=1.0)
        expected = expectations(tasks, agent, forecaster)
        names = np.array([task.dataset for task in tasks])
        factors = left_out_factors(names, expected.drawn, expected.came)
        result = {
            "command": call.line,
            "factor": factor(expected.drawn, expected.came),
            **calibration(tasks, expected),
            "spread_told": spread_told(tasks, forecaster),
            "fixed": _curve(tasks, [(budget, None) for budget in BUDGETS], agent, forecaster, factors),
            "auto": _curve(tasks, [(AUTO_TRAININGS, worth) for worth in WORTHS], agent, forecaster, factors),
        }
        write_atomic(out / "worth.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "worth.md", markdown(result).encode())
        write_atomic(out / "worth.png", png(plot(result)))
        if config.store is not None:
            folder = NAMED.get(config.store, Path(config.store))
            replace(Forecaster.load(folder), realised=round(result["factor"], 3)).save(folder)
        print(markdown(result))
        print(f"written: {out}/worth.json, worth.md, worth.png")


def expectations(tasks: Sequence[RecordedTask], agent: Agent, forecaster: Forecaster) -> Expected:
    """Replay the search with the most trainings of `--budget auto`, and return what it expected and what came."""
    rows = []
    for task in tasks:
        search = rivals.held_search(task, AUTO_TRAININGS, agent, forecaster)
        kept = rivals.ours(search, task)
        row = []
        for outlook in search.outlooks:
            first = next(step for step in search.steps if step.segment == outlook.segment)
            came = 100 * (task.development[kept.policy] - task.development[CHOICES.index(first.action)])
            before = search.outlooks[max(outlook.segment - 1, 0)].candidates
            row.append((outlook.gain, _scale(outlook, before, forecaster.noise[outlook.segment]), came))
        rows.append(row)
    drawn, scale, came = np.moveaxis(np.array(rows), 2, 0)
    return Expected(drawn, scale, came)


def _scale(outlook: Outlook, before: int, typical: float) -> float:
    """Return the spread of the candidates before a segment over the typical one, that of results about forecasts.

    The typical one counts as much as that of two further candidates.
    """
    if outlook.spread is None or outlook.chance is None:
        return 1.0
    seen, free = max(outlook.spread**2 - outlook.chance**2, 0.0), before - 1
    return math.sqrt((TYPICAL * typical**2 + free * seen) / (TYPICAL + free)) / typical


def factor(predicted: NDArray[np.float64], came: NDArray[np.float64]) -> float:
    """Return the factor in [0, 1] by which predictions are nearest to what came, in squares."""
    return float(np.clip((predicted * came).sum() / max((predicted**2).sum(), 1e-12), 0.0, 1.0))


def left_out_factors(
    names: NDArray[np.str_], predicted: NDArray[np.float64], came: NDArray[np.float64]
) -> dict[str, float]:
    """Return the factor for each data set, from the tasks of the others, `[T, S]`; 1 where there is only one.

    Args:
        names: data set of each task, `[T]`.
        predicted: predictions, `[T, S]`.
        came: what came, `[T, S]`.
    """
    return {
        name: factor(predicted[names != name], came[names != name]) if (names != name).any() else 1.0
        for name in sorted(set(names.tolist()))
    }


def _with_factors(
    names: NDArray[np.str_], predicted: NDArray[np.float64], came: NDArray[np.float64]
) -> NDArray[np.float64]:
    factors = left_out_factors(names, predicted, came)
    return predicted * np.array([factors[name] for name in names.tolist()])[:, None]


def calibration(tasks: Sequence[RecordedTask], expected: Expected) -> dict[str, Any]:
    """Return means of predictions and of what came before each segment, and the predictions' errors."""
    names = np.array([task.dataset for task in tasks])
    predictions = {
        DRAWN: expected.drawn,
        FACTOR: _with_factors(names, expected.drawn, expected.came),
        SPREAD: _with_factors(names, expected.drawn * expected.scale, expected.came),
    }
    return {
        "tasks": len(tasks),
        "came": [mean_interval(column) for column in expected.came.T.tolist()],
        "predictions": {
            which: {
                "mean": told.mean(axis=0).tolist(),
                "error": np.sqrt(((told - expected.came) ** 2).mean(axis=0)).tolist(),
                "by_task": told.round(3).tolist(),
            }
            for which, told in predictions.items()
        },
        "by_task": expected.came.round(3).tolist(),
        "squared_error_saved_by_spread": mean_interval(
            (
                (predictions[FACTOR] - expected.came) ** 2 - (predictions[SPREAD] - expected.came) ** 2
            ).mean(axis=1).tolist()
        ),
        "squared_error_saved_by_factor": mean_interval(
            ((expected.drawn - expected.came) ** 2 - (predictions[FACTOR] - expected.came) ** 2).mean(axis=1).tolist()
        ),
    }  # fmt: skip


def spread_told(tasks: Sequence[RecordedTask], forecaster: Forecaster) -> dict[str, float]:
    """Return how well the spread between policies on a task is known early: rank correlations over the tasks.

    Returns:
        That of the forecasts at the start, and of all policies' validation after each segment, with the standard
        deviation of development accuracy at the end.
    """
    came = [float(task.development.std()) for task in tasks]
    told = {"start": [float(forecaster(task.observations[:1, 0])[:, 0].mean(axis=0).std()) for task in tasks]}
    for segment in range(len(forecaster.segments)):
        told[str(segment + 1)] = [float(task.validation[:, segment].std()) for task in tasks]
    return {
        when: 0.0 if min(np.ptp(spreads), np.ptp(came)) == 0 else round(float(spearmanr(spreads, came).statistic), 3)
        for when, spreads in told.items()
    }


def _curve(
    tasks: Sequence[RecordedTask],
    settings: Sequence[tuple[float, float | None]],
    agent: Agent,
    forecaster: Forecaster,
    factors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return cost and accuracy of a budget or threshold, above the agent alone; the factor is of other data sets."""
    points = []
    for budget, worth in settings:
        kept = [
            rivals.ours(
                rivals.held_search(
                    task, budget, agent, replace(forecaster, realised=factors[task.dataset]), worth
                ),
                task,
            )
            for task in tasks
        ]  # fmt: skip
        gains = [
            100 * (task.development[one.policy] - task.development[CHOICES.index(task.own_choice(agent))])
            for task, one in zip(tasks, kept, strict=True)
        ]
        costs = [one.cost for one in kept]
        points.append(
            {
                "budget": budget,
                "worth": worth,
                "cost": float(np.mean(costs)),
                "lowest": float(np.min(costs)),
                "highest": float(np.max(costs)),
                "gain": mean_interval(gains),
            }
        )
    return points


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results: expected gain and what came, segment by segment, then `--budget auto`."""
    segments = [str(segment + 1) for segment in range(len(result["came"]))]
    rows = [["came", *(format_interval(*interval) for interval in result["came"])]]
    for which, told in result["predictions"].items():
        pairs = zip(told["mean"], told["error"], strict=True)
        rows.append([f"expected, {which} (error)", *(f"{mean:.2f} ({error:.2f})" for mean, error in pairs)])
    spent = [
        [
            f"--budget {point['budget']:g}" if point["worth"] is None else f"--budget auto --worth {point['worth']:g}",
            f"{point['cost']:.2f} ({point['lowest']:.2f} to {point['highest']:.2f})",
            format_interval(*point["gain"], signed=True),
        ]
        for point in (*result["fixed"], *result["auto"])
    ]
    by_factor, by_spread = (
        format_interval(*result[f"squared_error_saved_by_{name}"], signed=True) for name in ("factor", "spread")
    )
    return "\n\n".join(
        [
            "# Gain to expect from more trainings",
            f"`{result['command']}`",
            f"Our search on {result['tasks']} recorded tasks, {AUTO_TRAININGS:g} trainings at most, fixed policies. "
            "Points by which the best of the candidates is above the first choice, before each segment; in brackets "
            "the root mean square of what came less what was expected. Factors are of the other data sets.",
            tabulate(rows, ["before segment", *segments], tablefmt="pipe", disable_numparse=True),
            f"The mean squared error is lower by {by_factor} with the factor, and by {by_spread} more with "
            f"the spread. The factor of all tasks, without the spread, is {result['factor']:.3f}.",
            "How far policies will be apart on a task is told by (rank correlation over the tasks): "
            + ", ".join(
                f"{value:.2f} {'the forecasts at the start' if when == 'start' else 'validation after segment ' + when}"
                for when, value in result["spread_told"].items()
            )
            + ".",
            "Spent on average, and points above the agent alone:",
            tabulate(spent, ["", "trainings", "gain"], tablefmt="pipe", disable_numparse=True),
            "",
        ]
    )


def plot(result: Mapping[str, Any]) -> Figure:
    """Plot what came against what was expected, and gain against cost."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    told = np.array(result["predictions"][FACTOR]["by_task"]).ravel()
    came = np.array(result["by_task"]).ravel()
    left.plot(told, came, ".", color="#999999", markersize=4, label="a task before a segment")
    for quarter in np.array_split(np.argsort(told, kind="stable"), 5):
        mean, width = mean_interval(came[quarter].tolist())
        interval_plot(left, [told[quarter].mean()], [mean], [width], vertical=True, color="#d55e00")
    left.axline((0, 0), slope=1, color="black", linewidth=0.8)
    left.set_xlabel("expected gain, points")
    left.set_ylabel("gain that came, points; in fifths")
    for name, colour, label in (("fixed", "#0072b2", "fixed --budget"), ("auto", "#d55e00", "--budget auto")):
        costs = [point["cost"] for point in result[name]]
        means, widths = np.array([point["gain"] for point in result[name]]).T
        interval_plot(right, costs, means, widths, vertical=True, color=colour, line="-", label=label)
    right.set_xlabel("trainings spent, on average")
    right.set_ylabel("points above the agent alone")
    right.legend(fontsize=8)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
