"""Compare methods that spend a budget of several trainings, by real trainings where a log cannot tell their results.

    python experiments/studies/broad/record.py --data ../shared/data --group rehearse-usual --agents shipped \\
        --tasks 60 --out runs/real
    python experiments/studies/budget/real.py --data ../shared/data --log runs/real/rehearse-usual.jsonl --out runs/real

The log has one training of each task under every fixed policy and one that the agent led. On the same tasks this trains
our search and Population Based Training, the agent alone and CutMix on half several times, and every fixed policy a
second time. So kinds of luck can be told apart: what a method's own network reaches; what its policy reaches again,
from another seed, which is what carries over; and what the best of as many trainings of one policy reaches. Methods
that only begin, continue or drop trainings that are in the log are looked up there, as in `anytime.py`, whose methods
they are; ours without branches is one of them.

Validation decides, development images judge; no method sees them. All trainings keep the last network. Finished
trainings do not run again: the same command resumes. Needs Optuna, which is among the packages of `rl-mix[dev]`.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.agent import Agent
from rlmix.agent.budget import BRANCHING, QUARTER, Action, BudgetSearch, Step, StepResult, search_budget
from rlmix.agent.files import SHIPPED
from rlmix.agent.population import train_population
from rlmix.agent.values import Forecaster
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.config import Precision
from rlmix.envs import Task, TaskTrainer
from rlmix.envs.observation import TrainingState, checks_labels, observe
from rlmix.envs.seeds import derive_seed, training_seed
from rlmix.envs.task_trainer import Snapshot
from rlmix.experiments.comparison.intervals import format_interval, interval_by_unit
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.contest import POPULATION
from rlmix.experiments.studies.broad.record import CHOICES, GROUPS, data_places, shared_trainer
from rlmix.experiments.studies.broad.rehearse import CUTMIX
from rlmix.experiments.studies.budget import rivals
from rlmix.experiments.studies.budget.anytime import (
    BEST_FIXED,
    BUDGETS,
    FURTHER,
    LOG,
    ORACLE,
    UNBRANCHED,
    aims_in_words,
    play_ours,
    play_rivals,
    read_further,
    read_tasks,
    require_optuna,
    with_portfolio,
)
from rlmix.experiments.studies.budget.recorded import LED, POLICIES, Ends, RecordedTask

COPIES = 4  # trainings of the agent alone, and of CutMix on half, by which luck is measured
REPEATS, REDUCTION = 10, 2  # of methods that draw; of Optuna's pruners, as in anytime.py
AGAIN = 100  # number of the seed from which what was found is trained again; copies have smaller ones
OURS, BRANCHED = "ours", "ours, with branches"
AGENTS, CUTMIXES = "the agent, the best of as many", "CutMix on half, the best of as many"

Key = tuple[int, str, int]  # number of a task, kind of training, and which of its kind
Column = Mapping[str, Sequence[float]]  # by what it is: one of each task
Methods = Mapping[str, Mapping[int, Column]]  # by name and budget
Comparisons = Mapping[str, Mapping[str, Mapping[str, Any]]]  # by name, budget and what it is


@dataclass(frozen=True)
class RealConfig:
    """Compare methods that spend a budget, by real trainings."""

    data: str
    """Folder of the data sets: NAME.zip or NAME/, with train/CLASS/* and test/CLASS/* inside."""
    log: str = LOG
    """Log of studies/broad/record.py --group rehearse-usual --agents AGENT; the meaning of its numbers lies beside it,
    in a .json of this name."""
    agent: str = SHIPPED
    """Agent that led trainings of the log, and its forecaster: shipped, or the folder of both."""
    further: str | None = FURTHER
    """Log of studies/broad/rehearse.py --every-policy --agents AGENT, of tasks that portfolios are chosen on too;
    optional, None leaves it out."""
    tasks: int = 60
    """Number of tasks, of those of the log."""
    budgets: tuple[int, ...] = (4, 16)
    """Budgets of our search and of Population Based Training, which has as many members; the largest comes last."""
    processes: int = 2
    """Number of parallel trainings, one thread each."""
    out: str = "runs/budget-real"
    """Folder of real.jsonl, the trainings finished so far, real.json and real.md."""

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2, processes=1)
        branching = [budget for budget in BUDGETS if budget >= QUARTER]  # with less, ours is in the log
        if not self.budgets or not set(self.budgets) <= set(branching):
            known, given = " ".join(map(str, branching)), " ".join(map(str, self.budgets)) or "none"
            raise RunError(f"--budgets must be some of {known}, got {given}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/budget/real", arguments) as call:
        call.resume = call.line
        config = call.parse(RealConfig, __doc__)
        require_optuna()
        torch.set_num_threads(1)
        agent = Agent.load(config.agent)
        tasks = read_tasks(config.log, agent)[: config.tasks]
        further = read_further(config.further, agent)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        places = tuple(data_places(config.data, GROUPS["rehearse-usual"]).items())
        path = out / "real.jsonl"
        beside = rivals.left_out(tasks, POLICIES, whole_data_set=True, led=True, further=further)
        log = TrainingLog(path, lambda lines: _reusable(path, lines, agent.checksum, beside))
        precision = resolve_precision("auto", resolve_device("cpu"))
        jobs = {
            (task.number, kind, number): functools.partial(
                train, (task.number, kind, number), task.task, config.agent, beside[task.number], places, precision
            )
            for task, (kind, number) in in_order(tasks, config.budgets)
        }
        log.run(jobs, processes=config.processes, describe=_describe)
        result = {
            "command": call.line,
            **summarise(tasks, log.finished, Forecaster.load(config.agent), further, config.budgets),
        }
        write_atomic(out / "real.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "real.md", markdown(result).encode())
        print(f"\n{markdown(result)}\nwritten: {out}/real.json, real.md")


def in_order(tasks: Sequence[RecordedTask], budgets: Sequence[int]) -> Iterator[tuple[RecordedTask, tuple[str, int]]]:
    """Yield each task with kind and number of what it lacks beside the log: task by task, the largest budget last.

    So an interrupted command has finished what needs fewer trainings, and `budgets` without the largest shows it.
    """
    *smaller, largest = sorted(budgets)
    yield from itertools.product(tasks, wanted(smaller))
    yield from itertools.product(tasks, searches([largest]))


def wanted(budgets: Sequence[int]) -> list[tuple[str, int]]:
    """Return kind and number of the trainings of a task, beside those of the log."""
    return [
        *(("agent", copy) for copy in range(1, COPIES)),  # the log has the first one
        *searches(budgets),
        *(("again", policy) for policy in range(POLICIES)),
        *(("cutmix", copy) for copy in range(2, COPIES)),  # the log has the first one, and `again` the second
    ]


def searches(budgets: Sequence[int]) -> list[tuple[str, int]]:
    """Return kind and number of the searches that a log of fixed policies cannot tell of."""
    return list(itertools.product(("population", "ours"), budgets))


def train(
    key: Key,
    task: Task,
    agent: str,
    portfolio: Sequence[int],
    places: tuple[tuple[str, str], ...],
    precision: Precision,
) -> dict[str, Any]:
    """Train what a key stands for and return the line of the log.

    Args:
        key: task, kind and number.
        task: the task.
        agent: folder of the agent.
        portfolio: policies of our search, in the order in which they begin.
        places: name of each data set and what `load_dataset` takes for it.
        precision: number format of the network.

    Returns:
        The key; development and validation accuracy of the network that is kept, in [0, 1]; updates that were spent, in
        whole trainings; of the agent also the bytes of a training's state; of a search what its policies reached again.
    """
    number, kind, which = key
    trainer, chooser = shared_trainer(places, precision), Agent.load(agent)
    seed, found = training_seed(number), None
    facts: dict[str, Any] = {"cost": 1.0}
    match kind:
        case "agent":
            env = chooser.environment(trainer, task)
            chooser.play(env, task, derive_seed(number, which))
            facts |= {"bytes": _bytes(trainer.snapshot())}
        case "again":
            trainer.run(PolicySchedule.fixed(MENU.policy(CHOICES[which])), task, derive_seed(seed, 1))
        case "cutmix":
            trainer.run(PolicySchedule.fixed(CUTMIX), task, derive_seed(seed, which))
        case "ours":
            forecaster = with_portfolio(Forecaster.load(agent), portfolio)
            search, path = search_task(trainer, task, number, chooser, forecaster, which)
            found = [step.action for step in path]
            facts = {"cost": round(search.cost, 3), "portfolio": list(portfolio)}
        case _:
            found = [
                tuple(action)
                for action in train_population(
                    trainer, task, menu=MENU, segments=SEGMENTS, seed=derive_seed(number, which), members=which
                )
            ]
            facts = {"cost": float(which)}
    kept = trainer.measure(["development", "validation"])
    line = {
        "task": number,
        "kind": kind,
        "number": which,
        "agent_sha256": chooser.checksum,
        "development": round(kept["development"], 4),
        "validation": round(kept["validation"], 4),
        **facts,
    }
    if found is not None:
        trainer.run(schedule_of(found), task, derive_seed(seed, AGAIN))
        again = trainer.measure(["development"])["development"]
        line |= {"again": round(again, 4), "policies": [str(MENU.policy(action)) for action in found]}
    return line


def schedule_of(actions: Sequence[Action]) -> PolicySchedule:
    """Return the schedule of a training's actions; one that diverged has fewer than there are segments."""
    steps = zip(SEGMENTS, actions, strict=False)
    *early, (_, last) = ((until, MENU.policy(action)) for until, action in steps)
    return PolicySchedule((*early, (1.0, last)))


def search_task(
    trainer: TaskTrainer, task: Task, number: int, agent: Agent, forecaster: Forecaster, budget: float
) -> tuple[BudgetSearch, list[Step]]:
    """Search within a budget with branches, as `replay_policy.py --budget` does from 16 trainings on.

    Args:
        trainer: trains the candidates; at the end it holds the training that is kept.
        task: the task.
        number: number of the task, from which the seeds are derived.
        agent: leads the first candidate.
        forecaster: has the portfolio.
        budget: updates of all candidates together, in whole trainings.

    Returns:
        The search at its end, and the steps of the training that is kept.
    """
    first = training_seed(number)
    check = checks_labels((*agent.features, *forecaster.features))

    def chosen(state: TrainingState) -> tuple[int, ...]:
        return agent.choose(observe(state, agent.menu, agent.features))

    def seen(state: TrainingState) -> NDArray[np.float32]:
        return observe(state, forecaster.menu, forecaster.features)

    def train_segment(
        step: Step, before: tuple[Snapshot, TrainingState] | None
    ) -> tuple[tuple[Snapshot, TrainingState], StepResult]:
        if before is None:
            seed = derive_seed(first, step.candidate) if step.candidate else first
            state = TrainingState.at_start(trainer.start(task, seed), task)
        else:
            snapshot, state = before
            trainer.restore(snapshot)
        end = round(forecaster.segments[step.segment] * task.updates)
        segment = trainer.train_segment(forecaster.menu.policy(step.action), end, check=check)
        state = state.after(
            progress=trainer.trainer.progress,
            relative_lr=trainer.trainer.relative_lr,
            segment=segment.stats,
            evaluation=segment.evaluation,
            action=step.action,
            labels=segment.labels,
        )
        accuracy = segment.evaluation.accuracy
        result = StepResult(None, accuracy) if segment.diverged else StepResult(
            seen(state), accuracy, own_choice=chosen(state)
        )  # fmt: skip
        return (trainer.snapshot(), state), result

    begun = trainer.start(task, first)
    start = TrainingState.at_start(begun, task)
    search = BudgetSearch(
        forecaster, budget, seen(start), chosen(start), images=len(begun.data.validation), branching=True
    )
    last, (snapshot, _) = search_budget(search, train_segment)
    trainer.restore(snapshot)
    return search, search.path(last)


def summarise(
    tasks: Sequence[RecordedTask],
    lines: Mapping[Key, Line],
    forecaster: Forecaster,
    further: Sequence[Ends],
    budgets: Sequence[int],
) -> dict[str, Any]:
    """Return accuracies, costs and paired differences of all methods, in points.

    Args:
        tasks: tasks of the log.
        lines: finished trainings by key.
        forecaster: forecaster of our search.
        further: further tasks that portfolios are chosen on.
        budgets: those of our search and of Population Based Training.
    """
    methods = accuracies(tasks, lines, forecaster, further, budgets)
    datasets = [task.dataset for task in tasks]
    comparisons = compare(methods, datasets)
    states = [line["bytes"] for (_, kind, _), line in lines.items() if kind == "agent"]
    return {
        "tasks": len(tasks),
        "data_sets": {name: datasets.count(name) for name in sorted(set(datasets))},
        "comparisons": comparisons,
        "aims": aims(comparisons),
        "megabytes": float(np.mean(states)) / 1e6,
        "numbers": [task.number for task in tasks],
        "methods": rounded(methods),
    }


def compare(methods: Methods, datasets: Sequence[str]) -> Comparisons:
    """Return the paired differences of all methods in points, with tasks and with data sets as units.

    Args:
        methods: what each method has on every task, by its name and budget; the best fixed policy has all budgets, and
            its policy again where another has.
        datasets: data set of each task.

    Returns:
        By method and budget: less the best fixed policy, the same of policies that were trained again, ours less the
        method, each None where one of the two is missing; and what was spent on average, in trainings.
    """

    def apart(ours: str, theirs: str, budget: int, which: str) -> dict[str, tuple[float, float]] | None:
        both = [methods[name].get(budget, {}).get(which) for name in (ours, theirs)]
        if both[0] is None or both[1] is None:
            return None
        return interval_by_unit((np.array(both[0]) - np.array(both[1])).tolist(), datasets)

    return {
        name: {
            str(budget): {
                "less_best_fixed": apart(name, BEST_FIXED, budget, "accuracy"),
                "again_less_best_fixed": apart(name, BEST_FIXED, budget, "again"),
                "ours_less_this": apart(OURS, name, budget, "accuracy"),
                "cost": float(np.mean(one["cost"])),
            }
            for budget, one in method.items()
        }
        for name, method in methods.items()
    }


def rounded(methods: Methods) -> dict[str, Any]:
    """Return what methods have on every task, for a file."""
    return {
        name: {
            str(budget): {key: np.round(values, 3).tolist() for key, values in one.items()}
            for budget, one in method.items()
        }
        for name, method in methods.items()
    }


def accuracies(
    tasks: Sequence[RecordedTask],
    lines: Mapping[Key, Line],
    forecaster: Forecaster,
    further: Sequence[Ends],
    budgets: Sequence[int],
) -> Methods:
    """Return each method's accuracy, its policy's accuracy again, both in points, and its cost, by task.

    Returns:
        By method and budget; `again` is missing where nothing but a network is found.
    """
    numbers = [task.number for task in tasks]

    def of_search(kind: str, which: int) -> dict[str, list[float]]:
        found = [lines[number, kind, which] for number in numbers]
        return {
            "accuracy": [100 * line["development"] for line in found],
            "again": [100 * line["again"] for line in found],
            "cost": [line["cost"] for line in found],
        }

    def best_of(copies: Callable[[int], Sequence[tuple[float, float]]], budget: int) -> dict[str, list[float]]:
        """Return the best by validation of some pairs of validation and development accuracy."""
        best = [max(copies(number)[:budget], key=lambda pair: pair[0])[1] for number in numbers]
        return {"accuracy": [100 * value for value in best], "cost": [float(budget)] * len(numbers)}

    cutmix = next(place for place, action in enumerate(CHOICES) if MENU.policy(action) == CUTMIX)
    recorded = {task.number: task for task in tasks}

    def agents(number: int) -> list[tuple[float, float]]:
        task, more = recorded[number], [lines[number, "agent", copy] for copy in range(1, COPIES)]
        first = (float(task.final[LED]), float(task.development[LED]))
        return [first, *((line["validation"], line["development"]) for line in more)]

    def cutmixes(number: int) -> list[tuple[float, float]]:
        task = recorded[number]
        more = [lines[number, "again", cutmix], *(lines[number, "cutmix", copy] for copy in range(2, COPIES))]
        first = (float(task.final[cutmix]), float(task.development[cutmix]))
        return [first, *((line["validation"], line["development"]) for line in more)]

    methods = {
        POPULATION: {budget: of_search("population", budget) for budget in sorted(budgets)},
        AGENTS: {budget: best_of(agents, budget) for budget in BUDGETS if budget <= COPIES},
        CUTMIXES: {budget: best_of(cutmixes, budget) for budget in BUDGETS if budget <= COPIES},
    }
    again = {
        number: [
            *(lines[number, "again", policy]["development"] for policy in range(POLICIES)),
            lines[number, "agent", 1]["development"],  # of the agent's, which has the place `LED`
        ]
        for number in numbers
    }
    looked_up = {
        UNBRANCHED: play_ours(tasks, forecaster, further),
        **play_rivals(tasks, further, repeats=REPEATS, reduction=REDUCTION),
    }
    for name, curves in looked_up.items():
        methods[name] = {
            budget: {
                "accuracy": [
                    100 * float(np.mean([task.development[repeat[budget].policy] for repeat in curve]))
                    for task, curve in zip(tasks, curves, strict=True)
                ],
                "again": [
                    100 * float(np.mean([again[task.number][repeat[budget].policy] for repeat in curve]))
                    for task, curve in zip(tasks, curves, strict=True)
                ],
                "cost": [float(np.mean([repeat[budget].cost for repeat in curve])) for curve in curves],
            }
            for budget in BUDGETS
        }
    searched = {budget: of_search("ours", budget) for budget in sorted(budgets)}
    return with_ours(methods.pop(UNBRANCHED), searched) | methods


def with_ours(unbranched: Mapping[int, Column], branched: Mapping[int, Column]) -> dict[str, Mapping[int, Column]]:
    """Return our search with and without branches by name, after what the program does: they are its from 16 on.

    Args:
        unbranched: what is found without branches, by budget.
        branched: what is found with them.
    """
    ours = {
        **{budget: one for budget, one in unbranched.items() if budget < BRANCHING},
        **{budget: one for budget, one in branched.items() if budget >= BRANCHING},
    }
    return {OURS: ours, BRANCHED: branched, UNBRANCHED: unbranched}


def aims(comparisons: Comparisons, beside: Collection[str] = (OURS, BRANCHED, UNBRANCHED, ORACLE)) -> dict[str, Any]:
    """Return what is aimed at, what came, and whether it was reached, with tasks as units, where ours is measured.

    Args:
        comparisons: what `compare` returns.
        beside: methods that are no rivals.
    """

    def lead(name: str, budget: int, which: str) -> tuple[float, float] | None:
        interval = comparisons[name].get(str(budget), {}).get(which)
        return None if interval is None else interval["tasks"]

    way, whole = lead(OURS, 2, "less_best_fixed"), lead(ORACLE, 2, "less_best_fixed")
    assert way is not None and whole is not None
    share = way[0] / whole[0] if whole[0] > 0 else 1.0
    found = {"share of the way from the best fixed policy to the oracle at 2": _aim(0.9, share)}
    lower_ends = {  # of ours less each, where both have it
        (name, budget): ahead[0] - ahead[1]
        for name in comparisons
        for budget in (4, 16)
        if (ahead := lead(name, budget, "ours_less_this"))
    }
    if (ORACLE, 4) in lower_ends:
        rivals_at_4 = [low for (name, budget), low in lower_ends.items() if budget == 4 and name not in beside]
        found["lower end of ours less the oracle at 4"] = _aim(-0.2, lower_ends[ORACLE, 4])
        found["lower end of ours less the strongest rival at 4"] = _aim(0.0, min(rivals_at_4))
    if (POPULATION, 16) in lower_ends:
        found[f"lower end of ours less {POPULATION} at 16"] = _aim(0.0, lower_ends[POPULATION, 16])
    return found


def _aim(aim: float, came: float) -> dict[str, Any]:
    return {"aim": aim, "came": came, "reached": came >= aim}


def comparison_tables(comparisons: Comparisons, which: str) -> str:
    """Return two tables of intervals of methods by budget, in Markdown: with tasks and with data sets as units.

    Args:
        comparisons: what `compare` returns.
        which: the difference; methods that have none are left out.
    """

    def table(unit: str) -> str:
        rows = []
        for name, by_budget in comparisons.items():
            shown = [by_budget.get(str(budget), {}).get(which) for budget in BUDGETS]
            if any(shown) and not (which == "ours_less_this" and name == OURS):
                rows.append([name, *("" if one is None else format_interval(*one[unit], signed=True) for one in shown)])
        return tabulate(rows, ["", *map(str, BUDGETS)], tablefmt="pipe", disable_numparse=True)

    return f"{table('tasks')}\n\nWith data sets as units:\n\n{table('data_sets')}"


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results: tables against the best fixed policy and against ours, memory, and the aims."""
    comparisons = result["comparisons"]
    costs = [
        [name, *(f"{by_budget[str(budget)]['cost']:.2f}" if str(budget) in by_budget else "" for budget in BUDGETS)]
        for name, by_budget in comparisons.items()
        if name not in (BEST_FIXED, ORACLE)
    ]
    sets = ", ".join(f"{name} ({count})" for name, count in result["data_sets"].items())
    return "\n\n".join(
        [
            "# Accuracy for a budget, by real trainings",
            f"`{result['command']}`",
            f"{result['tasks']} usual tasks of {len(result['data_sets'])} data sets that neither agent nor forecaster "
            f"has learned from: {sets}. Development accuracy in points, for budgets of {', '.join(map(str, BUDGETS))} "
            "trainings; 95 % intervals. The best fixed policy and the portfolios are chosen without the task, or "
            f"without its data set. {POPULATION} has as many members as trainings.",
            "## Above the best fixed policy",
            comparison_tables(comparisons, "less_best_fixed"),
            "## What carries over",
            "The policies that were found, trained again from another seed, above the best fixed policy trained again:",
            comparison_tables(comparisons, "again_less_best_fixed"),
            "## Ours less each",
            comparison_tables(comparisons, "ours_less_this"),
            "## Spent, in trainings",
            tabulate(costs, ["", *map(str, BUDGETS)], tablefmt="pipe", disable_numparse=True),
            "## Memory",
            f"A copy of a training's state (network, momentum, random states) takes {result['megabytes']:.2f} MB on "
            "average over the tasks; a search holds one for each candidate.",
            "## Aims",
            aims_in_words(result["aims"]),
            "",
        ]
    )


def _bytes(snapshot: Snapshot) -> int:
    """Return the bytes of a snapshot."""
    buffer = io.BytesIO()
    torch.save(snapshot.state, buffer)
    return buffer.getbuffer().nbytes


def _reusable(
    path: Path, lines: Sequence[Line], checksum: str, portfolios: Mapping[int, Sequence[int]]
) -> dict[Key, Line]:
    """Return the trainings of a log by key, but searches with other portfolios: those were chosen on other tasks.

    Raises:
        RunError: one is of another agent.
    """
    if any(line["agent_sha256"] != checksum for line in lines):
        raise RunError(f"{path}: holds trainings of another agent; choose another folder")
    return {
        (line["task"], line["kind"], line["number"]): line
        for line in lines
        if line["kind"] != "ours" or line["portfolio"] == list(portfolios.get(line["task"], ()))
    }


def _describe(line: Line) -> str:
    return f"task {line['task']:<4} {line['kind']:<10} {line['number']:<3} {100 * line['development']:5.1f} %"


if __name__ == "__main__":
    main()
