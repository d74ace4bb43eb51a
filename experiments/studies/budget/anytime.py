"""Compare methods that spend a budget of trainings, on recorded trainings: accuracy against cost.

    python experiments/studies/budget/anytime.py --out experiments/results/budget

Each task of the log was trained once under every fixed policy of the menu, and once led by the agent, so that what a
method would have found is known, as far as it starts such trainings, continues or drops them. Nothing is trained. Ours
is the search of `replay_policy.py --budget` without its branches, with a forecaster that learned from other data sets
and a portfolio that was chosen on the tasks of other data sets. Validation decides, development images judge. Needs
Optuna, which is among the packages of `rl-mix[dev]`.

Branches and Population Based Training cannot be compared: they continue a network under another policy, which no log of
fixed policies has. `real.py` trains them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tabulate import tabulate

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.plots import interval_plot, png
from rlmix.agent.values import Forecaster
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.experiments.comparison.intervals import format_interval, interval_by_unit, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.studies.broad.record import CHOICES, GROUPS
from rlmix.experiments.studies.budget import rivals
from rlmix.experiments.studies.budget.recorded import LED, POLICIES, Ends, RecordedTask, recorded_tasks, rehearsed_tasks
from rlmix.experiments.studies.budget.rivals import Kept

LOG = "experiments/results/budget/rehearse-usual.jsonl"
FURTHER = "experiments/results/broad/standing/runs.jsonl"
BUDGETS = (1, 2, 4, 8, 16)
UNBRANCHED, BEST_FIXED, ORACLE = "ours, without branches", "best fixed policy", "oracle: all 16, validation decides"
STOPPED = "ours, but more begin and a fifth ends after each segment"
LOOKED_UP = 10  # times as many repetitions of what is only looked up
SHARE, BEHIND = 0.9, 0.2  # aims: of the way to the oracle at 2 trainings, points behind it at 4

Curve = Sequence[Mapping[float, Kept]]  # of one task: repetitions, and in each what is kept at each budget


@dataclass(frozen=True)
class AnytimeConfig:
    """Compare methods that spend a budget of trainings, on recorded trainings."""

    log: str = LOG
    """Log of studies/broad/record.py --group rehearse-usual --agents AGENT; the meaning of its numbers lies beside it,
    in a .json of this name."""
    agent: str = SHIPPED
    """Agent that led trainings of the log, and its forecaster: shipped, or the folder of both."""
    further: str | None = FURTHER
    """Log of studies/broad/rehearse.py --every-policy --agents AGENT, of tasks that portfolios are chosen on too;
    optional, None leaves it out."""
    repeats: int = 10
    """Number of repetitions of methods that draw, from different seeds; Optuna's need a second each."""
    reduction: int = 2
    """Reduction factor of Optuna's pruners: one training in so many goes on. Their own defaults are 3 and 4."""
    out: str = "runs/budget"
    """Folder of results.json, results.md and results.png."""

    def __post_init__(self) -> None:
        require_at_least(self, repeats=1, reduction=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/anytime", arguments) as call:
        config = call.parse(AnytimeConfig, __doc__)
        require_optuna()
        agent = Agent.load(config.agent)
        tasks, further = read_tasks(config.log, agent), read_further(config.further, agent)
        torch.set_num_threads(1)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        curves = play(tasks, Forecaster.load(config.agent), further, config)
        result = {"command": call.line, **summarise(tasks, curves)}
        write_atomic(out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "results.md", markdown(result).encode())
        write_atomic(out / "results.png", png(plot(result)))
        print(markdown(result))
        print(f"written: {out}/results.json, results.md, results.png")


def require_optuna() -> None:
    """Refuse to compare without Optuna.

    Raises:
        RunError: it is not installed.
    """
    if find_spec("optuna") is None:
        raise RunError("optuna is not installed, and two of the methods are its own: pip install optuna")


def read_tasks(log: str, agent: Agent) -> list[RecordedTask]:
    """Return the tasks of a log that an agent led, of which the forecaster has seen none.

    Raises:
        RunError: there is no such log, or nothing in it that this agent led, or it is of one data set, or of some that
            forecasters learn from.
    """
    path, meaning = Path(log), Path(log).with_suffix(".json")
    if not (path.is_file() and meaning.is_file()):
        raise RunError(f"--log: expected {path} and {meaning.name}; studies/broad/record.py writes both")
    with reject_incompatible(path):
        tasks = recorded_tasks(LineLog(path).read(), json.loads(meaning.read_bytes()), agent.checksum)
    sets = {task.dataset for task in tasks}
    if seen := sets & set(GROUPS["learn"]):
        raise RunError(f"--log: expected data sets that no forecaster learns from, got {', '.join(sorted(seen))}")
    if len(sets) < 2:
        raise RunError(f"--log: expected tasks of at least 2 data sets, got {len(tasks)} of {', '.join(sets)} alone")
    return tasks


def read_further(log: str | None, agent: Agent) -> list[Ends]:
    """Return further tasks that portfolios are chosen on.

    Args:
        log: log of studies/broad/rehearse.py; None for no further tasks.
        agent: the agent.

    Raises:
        RunError: there is no such log, or it is of another agent.
    """
    if log is None:
        return []
    if not Path(log).is_file():
        raise RunError(f"--further: expected {log}; studies/broad/rehearse.py --every-policy writes it")
    with reject_incompatible(Path(log)):
        return rehearsed_tasks(LineLog(Path(log)).read(), agent.checksum)


def play(
    tasks: Sequence[RecordedTask], forecaster: Forecaster, further: Sequence[Ends], config: AnytimeConfig
) -> dict[str, list[Curve]]:
    """Return what each method keeps on each task, by its name."""
    beside = rivals.left_out(tasks, POLICIES, whole_data_set=True, led=True, further=further)
    return {
        UNBRANCHED: play_ours(tasks, forecaster, further),
        STOPPED: _once(tasks, lambda task, budget: rivals.by_validation(task, budget, [LED, *beside[task.number]])),
        **play_rivals(tasks, further, repeats=config.repeats, reduction=config.reduction),
    }


def play_ours(tasks: Sequence[RecordedTask], forecaster: Forecaster, further: Sequence[Ends]) -> list[Curve]:
    """Return what our search keeps on each task, with a portfolio chosen on the tasks of other data sets."""
    beside = rivals.left_out(tasks, POLICIES, whole_data_set=True, led=True, further=further)

    def ours(task: RecordedTask, budget: float) -> Kept:
        return rivals.ours(rivals.search_of(task, budget, with_portfolio(forecaster, beside[task.number])), task)

    return _once(tasks, ours)


def with_portfolio(forecaster: Forecaster, policies: Sequence[int]) -> Forecaster:
    """Return a forecaster with a portfolio of policies."""
    return replace(forecaster, portfolio=tuple(CHOICES[policy] for policy in policies))


def play_rivals(
    tasks: Sequence[RecordedTask], further: Sequence[Ends], *, repeats: int, reduction: int
) -> dict[str, list[Curve]]:
    """Return what each method that needs no agent keeps on each task, by its name.

    Args:
        tasks: the tasks.
        further: further tasks that portfolios are chosen on.
        repeats: number of repetitions of methods that draw.
        reduction: reduction factor of Optuna's pruners.
    """
    others = rivals.left_out(tasks, POLICIES, whole_data_set=False, further=further)
    elsewhere = rivals.left_out(tasks, POLICIES, whole_data_set=True, further=further)

    def in_order(policies: Sequence[int], task: RecordedTask, budget: float) -> Kept:
        return Kept(rivals.best_of(task, policies[: int(budget)]), budget)

    def optunas(parts: Any) -> list[Curve]:
        return [[rivals.by_optuna(task, BUDGETS, seed, reduction, parts) for seed in range(repeats)] for task in tasks]

    return {
        "greedy portfolio": _once(tasks, lambda task, budget: in_order(others[task.number], task, budget)),
        "greedy portfolio of other data sets": _once(
            tasks, lambda task, budget: in_order(elsewhere[task.number], task, budget)
        ),
        "random search": _drawn(tasks, rivals.at_random, LOOKED_UP * repeats),
        "TPE with Hyperband (Optuna)": optunas(rivals.tpe_with_hyperband),
        "ASHA (Optuna)": optunas(rivals.random_with_asha),
        BEST_FIXED: _once(tasks, lambda task, _: in_order(others[task.number], task, 1)),
        ORACLE: _once(tasks, lambda task, _: rivals.everything(task)),
    }


def _once(tasks: Sequence[RecordedTask], keep: Callable[[RecordedTask, float], Kept]) -> list[Curve]:
    """Return what a method that draws nothing keeps."""
    return [[{budget: keep(task, budget) for budget in BUDGETS}] for task in tasks]


def _drawn(
    tasks: Sequence[RecordedTask], keep: Callable[[RecordedTask, float, np.random.Generator], Kept], often: int
) -> list[Curve]:
    """Return what a method that draws keeps, so often."""
    return [
        [
            {budget: keep(task, budget, np.random.default_rng([task.number, repeat])) for budget in BUDGETS}
            for repeat in range(often)
        ]
        for task in tasks
    ]


def summarise(tasks: Sequence[RecordedTask], curves: Mapping[str, Sequence[Curve]]) -> dict[str, Any]:
    """Return accuracies, costs and paired differences of all methods, in points.

    Intervals are Student's, over tasks and over the means of the data sets; repetitions are averaged before.
    """
    methods = {
        name: {
            "accuracy": _by_task(tasks, curve, lambda task, kept: 100 * task.development[kept.policy]),
            "cost": _by_task(tasks, curve, lambda _, kept: kept.cost),
            # Alike for all that choose from the same trainings, unless their choice leans on luck.
            "optimism": _by_task(tasks, curve, _optimism),
        }
        for name, curve in curves.items()
    }
    datasets = [task.dataset for task in tasks]
    comparisons = {
        name: {
            str(budget): {
                "less_best_fixed": _difference(methods[name], methods[BEST_FIXED], place, datasets),
                "ours_less_this": _difference(methods[UNBRANCHED], methods[name], place, datasets),
                "cost": float(np.mean(methods[name]["cost"][place])),
                "optimism": mean_interval(methods[name]["optimism"][place]),
            }
            for place, budget in enumerate(BUDGETS)
        }
        for name in methods
    }
    accuracies = np.array([100 * task.development[:POLICIES] for task in tasks])
    return {
        "tasks": len(tasks),
        "data_sets": {name: datasets.count(name) for name in sorted(set(datasets))},
        "policies": accuracies.mean(axis=0).round(3).tolist(),
        "best_in_hindsight": float(accuracies.max(axis=1).mean()),
        "comparisons": comparisons,
        "aims": _aims(comparisons),
        "numbers": [task.number for task in tasks],
        "methods": {
            name: {key: np.round(values, 3).tolist() for key, values in method.items()}
            for name, method in methods.items()
        },
    }


def _by_task(
    tasks: Sequence[RecordedTask], curve: Sequence[Curve], value: Callable[[RecordedTask, Kept], float]
) -> list[list[float]]:
    """Return the mean of a value over repetitions, `[budgets, tasks]`."""
    return [
        [
            float(np.mean([value(task, repeat[budget]) for repeat in repeats]))
            for task, repeats in zip(tasks, curve, strict=True)
        ]
        for budget in BUDGETS
    ]


def _optimism(task: RecordedTask, kept: Kept) -> float:
    """Return by how much validation speaks better of the training that is kept than of all trainings of the task."""
    apart = 100 * (task.final - task.development)
    return float(apart[kept.policy] - apart.mean())


def _difference(
    ours: Mapping[str, Any], theirs: Mapping[str, Any], place: int, datasets: Sequence[str]
) -> dict[str, tuple[float, float]]:
    apart = np.array(ours["accuracy"][place]) - np.array(theirs["accuracy"][place])
    return interval_by_unit(apart.tolist(), datasets)


def _aims(comparisons: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is aimed at, what came, and whether it was reached."""

    def over(name: str, budget: int, which: str = "less_best_fixed") -> tuple[float, float]:
        interval: tuple[float, float] = comparisons[name][str(budget)][which]["tasks"]
        return interval

    way, whole = over(UNBRANCHED, 2)[0], over(ORACLE, 2)[0]
    behind, width = over(ORACLE, 4, "ours_less_this")
    rivals_at_4 = {name: over(name, 4, "ours_less_this") for name in comparisons if name not in (UNBRANCHED, ORACLE)}
    return {
        "share of the way from the best fixed policy to the oracle at 2": {
            "aim": SHARE, "came": way / whole if whole > 0 else 1.0, "reached": way >= SHARE * whole
        },
        "lower end of ours less the oracle at 4": {
            "aim": -BEHIND, "came": behind - width, "reached": behind - width > -BEHIND
        },
        "ahead of every rival at 4, interval without zero": {
            "aim": 0, "came": min(mean - width for mean, width in rivals_at_4.values()),
            "reached": all(mean > width for mean, width in rivals_at_4.values()),
        },
    }  # fmt: skip


def aims_in_words(aims: Mapping[str, Any]) -> str:
    """Return a line for each aim: what it was, what came, and whether that is enough."""
    return "\n".join(
        f"- {name}: aim {aim['aim']:g}, came {aim['came']:.2f}, {'reached' if aim['reached'] else '**not reached**'}"
        for name, aim in aims.items()
    )


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results: a table against the best fixed policy, one against ours, luck, and the aims."""
    comparisons = result["comparisons"]
    head = ["", *map(str, BUDGETS)]

    def table(which: str, unit: str, leave: str) -> str:
        rows = [
            [name, *(format_interval(*row[str(budget)][which][unit], signed=True) for budget in BUDGETS)]
            for name, row in comparisons.items()
            if name != leave
        ]
        return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)

    def plain(which: str, *, leave: Sequence[str] = ()) -> str:
        rows = [
            [name, *(format_interval(*row[str(budget)][which], signed=True) for budget in BUDGETS)]
            for name, row in comparisons.items()
            if name not in leave
        ]
        return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)

    costs = [
        [name, *(f"{row[str(budget)]['cost']:.2f}" for budget in BUDGETS)]
        for name, row in comparisons.items()
        if name not in (BEST_FIXED, ORACLE)
    ]
    sets = ", ".join(f"{name} ({count})" for name, count in result["data_sets"].items())
    return "\n\n".join(
        [
            "# Accuracy for a budget, on recorded trainings",
            f"`{result['command']}`",
            f"{result['tasks']} tasks of {len(result['data_sets'])} data sets: {sets}. Each was trained once under "
            f"each of {POLICIES} fixed policies and once led by the agent, all from one seed. Development accuracy in "
            f"points, for budgets of {', '.join(map(str, BUDGETS))} trainings; 95 % intervals over tasks. Ours begins "
            "with the agent's training. Its portfolio is chosen on the tasks of other data sets; the best fixed policy "
            "and the portfolios are chosen without the task, or without its data set. Agent and forecaster know none "
            "of the data sets. Population Based Training cannot take part, which goes on under other policies.",
            "## Above the best fixed policy",
            table("less_best_fixed", "tasks", BEST_FIXED),
            "## Ours less each",
            table("ours_less_this", "tasks", UNBRANCHED),
            "With data sets as units:",
            table("ours_less_this", "data_sets", UNBRANCHED),
            "## Spent, in trainings",
            tabulate(costs, head, tablefmt="pipe", disable_numparse=True),
            "## Luck",
            "Luck of validation images is not in the accuracies: development images judge. By so many points more "
            "than of an average training of the task does validation promise too much of the one that is kept:",
            plain("optimism", leave=[BEST_FIXED]),
            "Luck of a training cannot be told apart, for there is one seed of each; `real.py` has others.",
            "## Aims",
            aims_in_words(result["aims"]),
            "",
        ]
    )


def plot(result: Mapping[str, Any]) -> Figure:
    """Plot accuracy above the best fixed policy against the budget, a curve for each method."""
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    panel = figure.subplots()
    comparisons = result["comparisons"]
    shown = [name for name in comparisons if name not in (BEST_FIXED, ORACLE)]
    colours = ("#d55e00", "#e69f00", "#009e73", "#7fcdbb", "#56b4e9", "#0072b2", "#cc79a7")
    for number, (name, colour) in enumerate(zip(shown, colours, strict=True)):
        means, widths = np.array(
            [comparisons[name][str(budget)]["less_best_fixed"]["tasks"] for budget in BUDGETS]
        ).T  # fmt: skip
        places = np.array(BUDGETS) * 1.03 ** (number - len(shown) / 2)
        interval_plot(panel, places, means, widths, vertical=True, color=colour, line="-", label=name, linewidth=1.2)
    oracle = comparisons[ORACLE]["1"]["less_best_fixed"]["tasks"][0]
    panel.axhline(oracle, color="black", linewidth=0.8, linestyle="--", label=ORACLE)
    panel.axhline(0, color="grey", linewidth=0.8, label=BEST_FIXED)
    panel.set_xscale("log", base=2)
    panel.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
    panel.set_xlabel("budget, in trainings")
    panel.set_ylabel("accuracy above the best fixed policy, points")
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, loc="lower right")
    return figure


if __name__ == "__main__":
    main()
