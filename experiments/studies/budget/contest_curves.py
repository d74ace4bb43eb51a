"""Compare ways to spend a budget on the third contest's tasks: test accuracy against cost, nothing trained anew.

    python experiments/studies/budget/contest_curves.py --out experiments/results/budget

The contest has trained some of its tasks under all sixteen fixed policies and led by the agent, from one seed, and by
Population Based Training with sixteen members. So it is known what a budget of whole trainings finds there: the agent's
and the first ones of a portfolio, as `replay_policy.py --budget` trains them; the same with the rule in the agent's
place; a portfolio of fixed policies alone; policies in random order. Validation decides, test images judge. Both
portfolios were chosen on recorded tasks, and no task of the contest had a part in anything. As measures of luck stand
beside them: the best of sixteen trainings of CutMix on half, and the oracle's policy trained again from another seed.

In a real search every candidate has a seed of its own, and a forecast is weighed in (`agent/budget.py`); here all are
from one seed, and validation alone decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.experiments.comparison.intervals import format_interval, interval_by_unit
from rlmix.experiments.comparison.runner import Line
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.studies.broad.contest import COPIES, POPULATION
from rlmix.experiments.studies.broad.contest_results import BEST_FIXED, MENU_16, NOISE, VIT, key_of
from rlmix.experiments.studies.broad.record import CHOICES
from rlmix.experiments.studies.budget.anytime import BUDGETS, FURTHER, LOG, read_further, read_tasks
from rlmix.experiments.studies.budget.recorded import POLICIES, Ends, RecordedTask
from rlmix.experiments.studies.budget.rivals import portfolio

OURS, BY_RULE = "ours, without branches", "ours, without branches, led by the rule"
PORTFOLIO, RANDOM = "greedy portfolio", "random search"
ORACLE, ORACLE_AGAIN = "oracle: all 16, validation decides", "its policy, trained again"
RULE = "rule"
REPEATS = 200  # random orders of the policies
AT_16 = (COPIES, POPULATION)  # that spend sixteen trainings, and no fewer
NEEDED = (RULE, BEST_FIXED, MENU_16, *AT_16)  # contestants, beside the agent
TABLE = "contest_curves"


@dataclass(frozen=True)
class CurvesConfig:
    """Compare ways to spend a budget on the third contest's tasks."""

    contest: str = "experiments/results/broad/contest"
    """Folder of the contest, with protocol.json and runs.jsonl."""
    agent: str = SHIPPED
    """The contest's first agent, with its forecaster: shipped, or the folder of both."""
    log: str = LOG
    """Recorded tasks on which the portfolio of fixed policies is chosen, as for anytime.py."""
    further: str | None = FURTHER
    """Further ones, as for anytime.py; optional, None leaves them out."""
    out: str = "runs/budget"
    """Folder of contest_curves.json and contest_curves.md."""


@dataclass(frozen=True)
class Trained:
    """What the contest found on a task, accuracies in [0, 1].

    Attributes:
        group: group of the task.
        dataset: its data set.
        validation: validation accuracy under each of the P fixed policies, then led by the agent, then by the rule,
            `[P + 2]`.
        test: test accuracies, likewise.
        single: test accuracy of whoever does not take part in the budgets, by name.
    """

    group: str
    dataset: str
    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    single: Mapping[str, float]

    def best_of(self, trainings: Sequence[int]) -> float:
        """Return the test accuracy of the training that is best by validation, the first of equal ones."""
        return float(self.test[max(trainings, key=lambda place: self.validation[place])])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/contest_curves", arguments) as call:
        config = call.parse(CurvesConfig, __doc__)
        agent, forecaster = Agent.load(config.agent), Forecaster.load(config.agent)
        tasks = read_contest(Path(config.contest), agent.checksum)
        known: list[RecordedTask | Ends] = [*read_tasks(config.log, agent), *read_further(config.further, agent)]
        result = {
            "command": call.line,
            **summarise(tasks, [CHOICES.index(one) for one in forecaster.portfolio], portfolio(known, POLICIES)),
        }
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / f"{TABLE}.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / f"{TABLE}.md", markdown(result).encode())
        print(f"{markdown(result)}\nwritten: {out}/{TABLE}.json, {TABLE}.md")


def read_contest(folder: Path, checksum: str) -> list[Trained]:
    """Return the tasks on which all have finished, the searches too.

    Args:
        folder: folder of the contest.
        checksum: that of the agent that must be its first one.

    Raises:
        RunError: there is no contest of this agent with two such tasks.
    """
    files = [folder / name for name in ("protocol.json", "runs.jsonl")]
    if not all(file.is_file() for file in files):
        raise RunError(f"--contest: expected {files[0]} and {files[1].name}; studies/broad/contest.py writes them")
    with reject_incompatible(folder):
        contestants = json.loads(files[0].read_bytes())["contestants"]
        first = next(iter(contestants))
        if contestants[first].get("sha256") != checksum:
            raise RunError(f"--agent: not the agent {first} of {files[0]}; give that one")
        lines = {key_of(line): line for line in LineLog(files[1]).read()}
        tasks = [(group, number) for group, number, contestant in lines if contestant == MENU_16]
        found = [
            _trained({name: lines[*task, name] for name in (first, *NEEDED)}, first)
            for task in tasks
            if all((*task, name) in lines for name in (first, *NEEDED))
        ]
    if len(found) < 2:
        raise RunError(f"--contest: {files[1]} has fewer than 2 tasks on which the searches have finished too")
    return found


def _trained(lines: Mapping[str, Line], first: str) -> Trained:
    menu = lines[MENU_16]
    ends = [*menu["every"], *([lines[name]["accuracy"], lines[name]["validation"]] for name in (first, RULE))]
    test, validation = np.array(ends).T
    single = {
        BEST_FIXED: lines[BEST_FIXED]["accuracy"],
        ORACLE_AGAIN: menu["again"],
        **{name: lines[name]["accuracy"] for name in (COPIES, POPULATION)},
    }
    return Trained(menu["group"], menu["dataset"], validation, test, single)


def summarise(tasks: Sequence[Trained], beside: Sequence[int], alone: Sequence[int]) -> dict[str, Any]:
    """Return test accuracies and paired differences to the best fixed policy and to ours, in points.

    Args:
        tasks: tasks of the contest.
        beside: order of the policies beside the agent's training.
        alone: order of the policies where nothing else is trained.

    Returns:
        By method and budget, the differences over the tasks of one data set's groups; `accuracy` holds all tasks.
    """
    led, ruled = POLICIES, POLICIES + 1
    orders = {OURS: [led, *beside], BY_RULE: [ruled, *beside], PORTFOLIO: list(alone)}
    accuracy = {
        name: [[100 * task.best_of(order[:budget]) for task in tasks] for budget in BUDGETS]
        for name, order in orders.items()
    }
    accuracy[RANDOM] = [
        [100 * _at_random(task, number, budget) for number, task in enumerate(tasks)] for budget in BUDGETS
    ]
    accuracy[ORACLE] = [[100 * task.best_of(range(POLICIES)) for task in tasks]] * len(BUDGETS)
    for name in (BEST_FIXED, ORACLE_AGAIN, COPIES, POPULATION):
        accuracy[name] = [[100 * task.single[name] for task in tasks]] * len(BUDGETS)
    together = [place for place, task in enumerate(tasks) if task.group not in (VIT, NOISE)]
    sets = [tasks[place].dataset for place in together]

    def less(name: str, other: str) -> list[dict[str, Any]]:
        apart = np.array(accuracy[name]) - np.array(accuracy[other])
        return [interval_by_unit(values[together].tolist(), sets) for values in apart]

    return {
        "tasks": len(together),
        "data_sets": {name: sets.count(name) for name in sorted(set(sets))},
        "budgets": list(BUDGETS),
        "less_best_fixed": {name: less(name, BEST_FIXED) for name in accuracy if name != BEST_FIXED},
        "ours_less_this": {name: less(OURS, name) for name in accuracy if name != OURS},
        "groups": [task.group for task in tasks],
        "accuracy": {name: np.round(values, 2).tolist() for name, values in accuracy.items()},
    }


def _at_random(task: Trained, number: int, budget: int) -> float:
    draws = [np.random.default_rng([number, repeat]).permutation(POLICIES) for repeat in range(REPEATS)]
    return float(np.mean([task.best_of(order[:budget].tolist()) for order in draws]))


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results: tables against the best fixed policy and against ours, each over tasks and data sets."""
    budgets = result["budgets"]

    def table(which: str, unit: str) -> str:
        rows = [
            [name, *("" if name in AT_16 and budget != max(budgets) else format_interval(*one[unit], signed=True)
                     for budget, one in zip(budgets, row, strict=True))]
            for name, row in result[which].items()
        ]  # fmt: skip
        return tabulate(rows, ["", *map(str, budgets)], tablefmt="pipe", disable_numparse=True)

    counts = ", ".join(f"{name} ({count})" for name, count in result["data_sets"].items())
    return "\n\n".join(
        [
            "# Test accuracy for a budget, on the contest's tasks",
            f"`{result['command']}`",
            f"{result['tasks']} tasks of {len(result['data_sets'])} data sets: {counts}. Points of test accuracy, with "
            f"95 % intervals, for budgets of {', '.join(map(str, budgets))} trainings. Validation decides which one is "
            "kept. On none of these tasks was anything chosen; the portfolios were on recorded tasks, also of some of "
            "these data sets.",
            "## Above the best fixed policy of the recorded tasks",
            table("less_best_fixed", "tasks"),
            "With data sets as units:",
            table("less_best_fixed", "data_sets"),
            "## Ours less each",
            table("ours_less_this", "tasks"),
            "With data sets as units:",
            table("ours_less_this", "data_sets") + "\n",
        ]
    )


if __name__ == "__main__":
    main()
