"""Measure whether the gain that a budget's search expects of more trainings is the gain that comes.

    python experiments/studies/budget/worth.py --out experiments/results/budget

Our search is replayed on recorded trainings (`anytime.py`). After three, four, ... trainings it expects one more to add
so many points; what came is known. The expectation is that of a further draw from a normal distribution as wide as the
validation accuracies so far, times a factor, fitted on the tasks of the other data sets. Then `--budget auto` is
replayed with several thresholds, beside fixed budgets.

`--store FOLDER` writes the factor of all tasks into the forecaster there, and the portfolio that is chosen on all.
"""

from __future__ import annotations

import json
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
from rlmix.agent.budget import FIRST
from rlmix.agent.files import SHIPPED, place_of
from rlmix.agent.plots import interval_plot, png
from rlmix.agent.values import Forecaster
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.studies.budget import rivals
from rlmix.experiments.studies.budget.anytime import FURTHER, LOG, read_further, read_tasks, with_portfolio
from rlmix.experiments.studies.budget.recorded import LED, POLICIES, RecordedTask
from rlmix.experiments.training.config import AUTO_TRAININGS

BUDGETS = (1, 2, 3, 4, 6, 8)
WORTHS = (0.1, 0.2, 0.4, 0.8, 1.6)
ENDED = range(FIRST, int(AUTO_TRAININGS))  # trainings after which one more is weighed


@dataclass(frozen=True)
class WorthConfig:
    """Measure whether expected gains of more trainings come, on recorded trainings."""

    log: str = LOG
    """Log of studies/broad/record.py --group rehearse-usual --agents AGENT; the meaning of its numbers lies beside it,
    in a .json of this name."""
    agent: str = SHIPPED
    """Agent that led trainings of the log, and its forecaster: shipped, or the folder of both."""
    further: str | None = FURTHER
    """Log of studies/broad/rehearse.py --every-policy --agents AGENT, of tasks that portfolios are chosen on too;
    optional, None leaves it out."""
    store: str | None = None
    """Folder of the forecaster that factor and portfolio of all tasks are written into; optional, defaults to none."""
    out: str = "runs/budget"
    """Folder of worth.json, worth.md and worth.png."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/worth", arguments) as call:
        config = call.parse(WorthConfig, __doc__)
        agent = Agent.load(config.agent)
        tasks, further = read_tasks(config.log, agent), read_further(config.further, agent)
        torch.set_num_threads(1)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        forecaster = replace(Forecaster.load(config.agent), realised=1.0)
        beside = rivals.left_out(tasks, POLICIES, whole_data_set=True, led=True, further=further)
        own = {task.number: with_portfolio(forecaster, beside[task.number]) for task in tasks}
        drawn, came = expectations(tasks, own)
        names = np.array([task.dataset for task in tasks])
        factors = left_out_factors(names, drawn, came)
        result = {
            "command": call.line,
            "factor": factor(drawn, came),
            **calibration(names, drawn, came, factors),
            "fixed": _curve(tasks, [(budget, None) for budget in BUDGETS], own, factors),
            "auto": _curve(tasks, [(AUTO_TRAININGS, worth) for worth in WORTHS], own, factors),
        }
        write_atomic(out / "worth.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "worth.md", markdown(result).encode())
        write_atomic(out / "worth.png", png(plot(result)))
        if config.store is not None:
            folder = place_of(config.store)
            whole = with_portfolio(Forecaster.load(folder), rivals.portfolio([*tasks, *further], POLICIES, led=True))
            replace(whole, realised=round(result["factor"], 3)).save(folder)
        print(markdown(result))
        print(f"written: {out}/worth.json, worth.md, worth.png")


def expectations(
    tasks: Sequence[RecordedTask], forecasters: Mapping[int, Forecaster]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Replay the search after each number of trainings in `ENDED`; return what it expected of one more, and what came.

    Args:
        tasks: the tasks.
        forecasters: the forecaster with a portfolio of other data sets, by the number of the task; its share is 1.

    Returns:
        Points, `[T, E]` each: expected, and development accuracy of the network kept of one training more, less that
        of the network kept.
    """
    expected, came = [], []
    for task in tasks:
        looks, kept = [], []
        for ended in (*ENDED, ENDED[-1] + 1):
            search = rivals.search_of(task, ended, forecasters[task.number])
            kept.append(100 * float(task.development[rivals.ours(search, task).policy]))
            looks.append(search.outlooks[-1].further)
        expected.append(looks[:-1])
        came.append(np.diff(kept).tolist())
    return np.array(expected), np.array(came)


def factor(predicted: NDArray[np.float64], came: NDArray[np.float64]) -> float:
    """Return the factor in [0, 1] by which predictions are right on average."""
    return float(np.clip(came.sum() / max(predicted.sum(), 1e-12), 0.0, 1.0))


def left_out_factors(
    names: NDArray[np.str_], predicted: NDArray[np.float64], came: NDArray[np.float64]
) -> dict[str, float]:
    """Return the factor for each data set, from the tasks of the others; 1 where there is only one.

    Args:
        names: data set of each task, `[T]`.
        predicted: expectations, `[T, E]`.
        came: what came, `[T, E]`.
    """
    return {
        name: factor(predicted[names != name], came[names != name]) if (names != name).any() else 1.0
        for name in sorted(set(names.tolist()))
    }


def calibration(
    names: NDArray[np.str_], drawn: NDArray[np.float64], came: NDArray[np.float64], factors: Mapping[str, float]
) -> dict[str, Any]:
    """Return what was expected after each number of trainings and what came, and how well the one tells the other.

    Args:
        names: data set of each task, `[T]`.
        drawn: expectations, `[T, E]`.
        came: what came, `[T, E]`.
        factors: factor of each data set, fitted on the others.
    """
    told = drawn * np.array([factors[name] for name in names.tolist()])[:, None]
    total, whole = told.sum(axis=1), came.sum(axis=1)
    return {
        "tasks": len(names),
        "came": [mean_interval(column) for column in came.T.tolist()],
        "expected": told.mean(axis=0).tolist(),
        "expected_as_drawn": drawn.mean(axis=0).tolist(),
        "error": np.sqrt(((told - came) ** 2).mean(axis=0)).tolist(),
        "error_of_the_mean": np.sqrt(((came.mean(axis=0) - came) ** 2).mean(axis=0)).tolist(),
        "rank_correlation": 0.0 if min(np.ptp(total), np.ptp(whole)) == 0 else float(spearmanr(total, whole).statistic),
        "told": told.round(3).tolist(),
        "by_task": came.round(3).tolist(),
    }


def _curve(
    tasks: Sequence[RecordedTask],
    settings: Sequence[tuple[float, float | None]],
    forecasters: Mapping[int, Forecaster],
    factors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """Return cost and accuracy of a budget or threshold, above the agent alone; the factor is of other data sets."""
    points = []
    for budget, worth in settings:
        kept = [
            rivals.ours(
                rivals.search_of(
                    task, budget, replace(forecasters[task.number], realised=factors[task.dataset]), worth
                ),
                task,
            )
            for task in tasks
        ]  # fmt: skip
        gains = [
            100 * (task.development[one.policy] - task.development[LED]) for task, one in zip(tasks, kept, strict=True)
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
    """Format the results: expected gain and what came, by number of trainings, then `--budget auto`."""
    rows = [
        ["came", *(format_interval(*interval, signed=True) for interval in result["came"])],
        ["expected (error)", *_pairs(result["expected"], result["error"])],
        ["expected, without the factor", *(f"{value:.2f}" for value in result["expected_as_drawn"])],
        ["error of the mean of what came", *(f"{value:.2f}" for value in result["error_of_the_mean"])],
    ]
    spent = [
        [
            f"--budget {point['budget']:g}" if point["worth"] is None else f"--budget auto --worth {point['worth']:g}",
            f"{point['cost']:.2f} ({point['lowest']:.2f} to {point['highest']:.2f})",
            format_interval(*point["gain"], signed=True),
        ]
        for point in (*result["fixed"], *result["auto"])
    ]
    return "\n\n".join(
        [
            "# Gain to expect from more trainings",
            f"`{result['command']}`",
            f"Our search on {result['tasks']} recorded tasks. Points that one more training adds to the best of those "
            "before it; in brackets the root mean square of what came less what was expected. Expected values have a "
            f"factor that was fitted on the tasks of the other data sets; on all it is {result['factor']:.3f}.",
            tabulate(rows, ["trainings so far", *map(str, ENDED)], tablefmt="pipe", disable_numparse=True),
            "Rank correlation, over the tasks, of what was expected of all further trainings together and what came: "
            f"{result['rank_correlation']:.2f}.",
            "Spent on average, and points above the agent alone:",
            tabulate(spent, ["", "trainings", "gain"], tablefmt="pipe", disable_numparse=True),
            "",
        ]
    )


def _pairs(values: Sequence[float], errors: Sequence[float]) -> list[str]:
    return [f"{value:.2f} ({error:.2f})" for value, error in zip(values, errors, strict=True)]


def plot(result: Mapping[str, Any]) -> Figure:
    """Plot what came against what was expected, and gain against cost."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    told, came = (np.array(result[name]).ravel() for name in ("told", "by_task"))
    left.plot(told, came, ".", color="#999999", markersize=4, label="a task after so many trainings")
    for fifth in np.array_split(np.argsort(told, kind="stable"), 5):
        mean, width = mean_interval(came[fifth].tolist())
        interval_plot(left, [told[fifth].mean()], [mean], [width], vertical=True, color="#d55e00")
    left.axline((0, 0), slope=1, color="black", linewidth=0.8)
    left.set_xlabel("expected gain of one more, points")
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
