"""Compare ways to spend a budget on the third contest's tasks: test accuracy against cost, nothing trained anew.

    python experiments/studies/budget/contest_curves.py --out experiments/results/budget

The contest has trained some of its tasks under all sixteen fixed policies and led by the agent, from one seed, and by
Population Based Training with sixteen members. So it is known what a budget of whole trainings finds there: the agent's
and the first ones of a portfolio, as `replay_policy.py --budget` trains fewer than sixteen; the same with the rule in
the agent's place; a portfolio of fixed policies alone; policies in random order. Where our search branches,
`contest_searches.py` has made it on these tasks, and Population Based Training with fewer members. Validation decides,
test images judge. Both portfolios were chosen on recorded tasks, and no task of the contest had a part in anything. As
a measure of luck stands beside them the best of sixteen trainings of CutMix on half; and what was found by a search, or
by the oracle, has been trained again from another seed.

In a real search every candidate has a seed of its own, and a forecast is weighed in (`agent/budget.py`); in what is
looked up all are from one seed, and validation alone decides.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.agent import Agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.values import Forecaster
from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.experiments.comparison.runner import Line
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.studies.broad import contest_results
from rlmix.experiments.studies.broad.contest import COPIES, POPULATION
from rlmix.experiments.studies.broad.contest_results import MENU_16, NOISE, VIT
from rlmix.experiments.studies.broad.record import CHOICES
from rlmix.experiments.studies.budget import contest_searches
from rlmix.experiments.studies.budget.anytime import (
    BEST_FIXED,
    BUDGETS,
    FURTHER,
    LOG,
    ORACLE,
    UNBRANCHED,
    aims_in_words,
    read_further,
    read_tasks,
)
from rlmix.experiments.studies.budget.contest_searches import CONTEST, SEARCHES
from rlmix.experiments.studies.budget.real import (
    BRANCHED,
    OURS,
    Methods,
    aims,
    compare,
    comparison_tables,
    rounded,
    with_ours,
)
from rlmix.experiments.studies.budget.recorded import POLICIES, Ends, RecordedTask
from rlmix.experiments.studies.budget.rivals import portfolio

BY_RULE = f"{UNBRANCHED}, led by the rule"
PORTFOLIO, RANDOM = "greedy portfolio", "random search"
RULE = "rule"
REPEATS = 200  # random orders of the policies
NEEDED = (RULE, contest_results.BEST_FIXED, MENU_16, COPIES, POPULATION)  # contestants, beside the agent
TABLE = "contest_curves"


@dataclass(frozen=True)
class CurvesConfig:
    """Compare ways to spend a budget on the third contest's tasks."""

    contest: str = CONTEST
    """Folder of the contest, with protocol.json and runs.jsonl."""
    searches: str | None = SEARCHES
    """Folder of contest_searches.py, with protocol.json and runs.jsonl; optional, None leaves them out."""
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
    """Results of all methods on one task; accuracies in [0, 1].

    Attributes:
        group: group of the task.
        number: number of the task.
        dataset: its data set.
        validation: validation accuracy under each of the P fixed policies, then led by the agent, then by the rule,
            `[P + 2]`.
        test: test accuracies, likewise.
        best_fixed: test accuracy under the best fixed policy of the recorded tasks.
        again: test accuracy of the policy that is best by validation, trained again.
        found: the log's line by method and budget, of methods that are not looked up: `accuracy` on test images, and
            of searches `again` that of the policies found, trained again.
    """

    group: str
    number: int
    dataset: str
    validation: NDArray[np.float64]
    test: NDArray[np.float64]
    best_fixed: float
    again: float
    found: Mapping[tuple[str, int], Line]

    def best_of(self, trainings: Sequence[int]) -> float:
        """Return the test accuracy of the training that is best by validation, the first of equal ones."""
        return float(self.test[max(trainings, key=lambda place: self.validation[place])])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/contest_curves", arguments) as call:
        config = call.parse(CurvesConfig, __doc__)
        agent, forecaster = Agent.load(config.agent), Forecaster.load(config.agent)
        tasks = read_contest(Path(config.contest), config.searches, agent.checksum)
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


def read_contest(folder: Path, searches: str | None, checksum: str) -> list[Trained]:
    """Return the tasks of groups of one data set on which all have finished, the searches too.

    Args:
        folder: folder of the contest.
        searches: folder of the searches, or None.
        checksum: that of the agent that must be the contest's first one.

    Raises:
        RunError: there is no contest of this agent with two such tasks, or the searches are of another agent.
    """
    files = [folder / name for name in ("protocol.json", "runs.jsonl")]
    if not all(file.is_file() for file in files):
        raise RunError(f"--contest: expected {files[0]} and {files[1].name}; studies/broad/contest.py writes them")
    with reject_incompatible(folder):
        contestants = json.loads(files[0].read_bytes())["contestants"]
        first = next(iter(contestants))
        if contestants[first].get("sha256") != checksum:
            raise RunError(f"--agent: not the agent {first} of {files[0]}; give that one")
        lines = {contest_results.key_of(line): line for line in LineLog(files[1]).read()}
        searched = {} if searches is None else _read_searches(Path(searches), checksum)
        tasks = [
            (group, number) for group, number, name in lines if name == MENU_16 and group not in (VIT, NOISE)
        ]  # fmt: skip
        found = [
            _trained({name: lines[*task, name] for name in (first, *NEEDED)}, first, searched.get(task, {}))
            for task in tasks
            if all((*task, name) in lines for name in (first, *NEEDED))
        ]
    if len(found) < 2:
        raise RunError(f"--contest: {files[1]} has fewer than 2 tasks on which the searches have finished too")
    return found


def _read_searches(folder: Path, checksum: str) -> dict[tuple[str, int], dict[tuple[str, int], Line]]:
    """Return the lines of the searches by task, then by method and budget, of those that have finished on all tasks."""
    files = [folder / name for name in ("protocol.json", "runs.jsonl")]
    if not all(file.is_file() for file in files):
        raise RunError(
            f"--searches: expected {files[0]} and {files[1].name}; studies/budget/contest_searches.py writes them"
        )
    with reject_incompatible(folder):
        protocol = json.loads(files[0].read_bytes())
        if protocol["sha256"]["agent"] != checksum:
            raise RunError(f"--agent: not the agent of {files[0]}; give that one")
        lines = {contest_searches.key_of(line): line for line in LineLog(files[1]).read()}
        wanted = contest_searches.wanted(protocol)
        unfinished = {(method, budget) for *task, method, budget in wanted if (*task, method, budget) not in lines}
        found: dict[tuple[str, int], dict[tuple[str, int], Line]] = {}
        for group, number, method, budget in wanted:
            if (method, budget) not in unfinished:
                found.setdefault((group, number), {})[method, budget] = lines[group, number, method, budget]
    return found


def _trained(lines: Mapping[str, Line], first: str, searched: Mapping[tuple[str, int], Line]) -> Trained:
    menu = lines[MENU_16]
    ends = [*menu["every"], *([lines[name]["accuracy"], lines[name]["validation"]] for name in (first, RULE))]
    test, validation = np.array(ends).T
    return Trained(
        group=menu["group"],
        number=menu["task"],
        dataset=menu["dataset"],
        validation=validation,
        test=test,
        best_fixed=lines[contest_results.BEST_FIXED]["accuracy"],
        again=menu["again"],
        found={**{(name, max(BUDGETS)): lines[name] for name in (COPIES, POPULATION)}, **searched},
    )


def accuracies(tasks: Sequence[Trained], beside: Sequence[int], alone: Sequence[int]) -> Methods:
    """Return each method's test accuracy, that of its policies trained again, both in points, and its cost, by task.

    Args:
        tasks: tasks of the contest.
        beside: order of the policies beside the agent's training.
        alone: order of the policies where nothing else is trained.
    """

    def of(test: Sequence[float], budget: int, again: Sequence[float] | None = None) -> dict[str, list[float]]:
        found = {"accuracy": [100 * value for value in test], "cost": [float(budget)] * len(tasks)}
        return found if again is None else {**found, "again": [100 * value for value in again]}

    def looked_up(order: Sequence[int]) -> dict[int, dict[str, list[float]]]:
        return {budget: of([task.best_of(order[:budget]) for task in tasks], budget) for budget in BUDGETS}

    def searched(method: str) -> dict[int, dict[str, list[float]]]:
        budgets = [budget for name, budget in sorted(tasks[0].found) if name == method]
        columns = {
            budget: [task.found[method, budget] for task in tasks]
            for budget in budgets
            if all((method, budget) in task.found for task in tasks)
        }
        return {
            budget: of(
                [line["accuracy"] for line in lines],
                budget,
                [line["again"] for line in lines] if all("again" in line for line in lines) else None,
            )
            for budget, lines in columns.items()
        }

    led, ruled = POLICIES, POLICIES + 1
    unbranched = looked_up([led, *beside])
    fixed, again = [task.best_fixed for task in tasks], [task.again for task in tasks]
    every = [task.best_of(range(POLICIES)) for task in tasks]
    return {
        **with_ours(unbranched, searched(OURS)),
        BY_RULE: looked_up([ruled, *beside]),
        POPULATION: searched(POPULATION),
        PORTFOLIO: looked_up(alone),
        RANDOM: {
            budget: of([_at_random(task, number, budget) for number, task in enumerate(tasks)], budget)
            for budget in BUDGETS
        },
        COPIES: searched(COPIES),
        BEST_FIXED: {budget: of(fixed, budget, fixed) for budget in BUDGETS},  # nothing of these tasks chose it
        ORACLE: {budget: of(every, POLICIES, again) for budget in BUDGETS},
    }


def summarise(tasks: Sequence[Trained], beside: Sequence[int], alone: Sequence[int]) -> dict[str, Any]:
    """Return test accuracies, paired differences to the best fixed policy and to ours, in points, and the aims.

    Args:
        tasks: tasks of the contest.
        beside: order of the policies beside the agent's training.
        alone: order of the policies where nothing else is trained.
    """
    methods = accuracies(tasks, beside, alone)
    datasets = [task.dataset for task in tasks]
    comparisons = compare(methods, datasets)
    return {
        "tasks": len(tasks),
        "data_sets": {name: datasets.count(name) for name in sorted(set(datasets))},
        "comparisons": comparisons,
        "aims": aims(comparisons, (OURS, BRANCHED, UNBRANCHED, BY_RULE, ORACLE)),
        "groups": [task.group for task in tasks],
        "numbers": [task.number for task in tasks],
        "methods": rounded(methods),
    }


def _at_random(task: Trained, number: int, budget: int) -> float:
    draws = [np.random.default_rng([number, repeat]).permutation(POLICIES) for repeat in range(REPEATS)]
    return float(np.mean([task.best_of(order[:budget].tolist()) for order in draws]))


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results: tables against the best fixed policy and against ours, each over tasks and data sets."""
    comparisons = result["comparisons"]
    counts = ", ".join(f"{name} ({count})" for name, count in result["data_sets"].items())
    return "\n\n".join(
        [
            "# Test accuracy for a budget, on the contest's tasks",
            f"`{result['command']}`",
            f"{result['tasks']} tasks of {len(result['data_sets'])} data sets: {counts}. Points of test accuracy, with "
            f"95 % intervals, for budgets of {', '.join(map(str, BUDGETS))} trainings. Validation decides which one is "
            "kept. On none of these tasks was anything chosen; the portfolios were on recorded tasks, also of some of "
            "these data sets. The best fixed policy is that of the recorded tasks.",
            "## Above the best fixed policy",
            comparison_tables(comparisons, "less_best_fixed"),
            "## What carries over",
            "The policies that were found, trained again from another seed, above the best fixed policy:",
            comparison_tables(comparisons, "again_less_best_fixed"),
            "## Ours less each",
            comparison_tables(comparisons, "ours_less_this"),
            "## Aims",
            aims_in_words(result["aims"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
