"""Rehearse agents on tasks of data sets that they have not learned from, beside policies that need no agent.

    python experiments/studies/broad/rehearse.py --data ../shared/data --agents shipped broad=runs/broad_agent
    python experiments/studies/broad/rehearse.py --data ../shared/data --every-policy --data-sets mnist pacs \
        --tasks 32 --least-side 16

Tasks of `BroadTasks`, with usual settings, of one data set after the other: by default of those that are kept to
rehearse on. None of these tasks has been recorded. Every contestant trains every task once, from the same
seed; an agent chooses for each segment. Development accuracy is compared, paired by task: with tasks as units, and with
data sets as units, which tells what to expect of one more data set. With `--every-policy` the fixed policies are all of
the menu, and the best of them by validation on each task is shown too. Finished trainings do not run again: the same
command resumes, and more agents or tasks add to what is there.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.agent import Agent
from rlmix.agent.any_agent import load_agent
from rlmix.agent.files import SHIPPED
from rlmix.agent.rule import Rule
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import Precision
from rlmix.envs import BroadTasks, Source, Task
from rlmix.envs.broad_tasks import SIDES
from rlmix.envs.seeds import training_seed
from rlmix.experiments.comparison.contestants import agent_places, load_rules, load_schedules
from rlmix.experiments.comparison.intervals import format_interval, interval_by_unit, mean_interval
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.task_family import MENU
from rlmix.experiments.studies.broad.record import DRAWN, GROUPS, data_places, drawn_sources, shared_trainer

SEED = 230_004  # of the tasks; those of record.py have others
PLAIN, CUTMIX = MixPolicy({"clean": 1.0}), MixPolicy({"clean": 0.5, "cutmix": 0.5})
ALLOWED = (*GROUPS["learn"], *GROUPS["rehearse"])  # the others are kept for a contest
OFF = "CutMix half, off at 0.7"
BEST_OF_ALL = "best of the menu by validation"
LABELS = ("clean labels", "wrong labels")  # tasks without and with wrong labels
FIXED = {
    "plain": PolicySchedule.fixed(PLAIN),
    "label smoothing": PolicySchedule.fixed(MixPolicy({"clean": 1.0}, label_smoothing=0.3)),
    "mixup half": PolicySchedule.fixed(MixPolicy({"clean": 0.5, "mixup": 0.5})),
    "CutMix half": PolicySchedule.fixed(CUTMIX),
    OFF: PolicySchedule(((0.7, CUTMIX), (1.0, PLAIN))),
    "R-Mix half": PolicySchedule.fixed(MixPolicy({"clean": 0.5, "rmix": 0.5})),
}


@dataclass(frozen=True)
class Entrant:
    """A contestant.

    Attributes:
        chooses: the agent, the rule, or the fixed schedule.
        sha256: checksum of what was read from files; None for the policies that are fixed in the code.
    """

    chooses: PolicySchedule | Rule | Agent
    sha256: str | None = None


@dataclass(frozen=True)
class RehearseConfig:
    """Rehearse agents on data sets that they have not learned from."""

    data: str
    """Folder of the data sets: NAME.zip or NAME/, with train/CLASS/* and test/CLASS/* inside."""
    agents: tuple[str, ...] = (SHIPPED,)
    """Agents: shipped, or NAME=FOLDER."""
    schedules: tuple[str, ...] = ()
    """Fixed schedules: NAME=FILE."""
    rules: tuple[str, ...] = ()
    """Rules that fit_rule.py has found: NAME=FILE."""
    data_sets: tuple[str, ...] = GROUPS["rehearse"]
    """Data sets by name, of those that are recorded."""
    every_policy: bool = False
    """Train every task under every policy of the menu, not only under the usual ones."""
    group: Literal["longer", "usual"] = "usual"
    """Kind of tasks, as record.py has them."""
    least_side: int = SIDES[0]
    """Side in pixels that a task's images have at least; tasks with smaller ones are passed over."""
    first: int = 0
    """Number of the first task."""
    tasks: int = 40
    """Number of tasks, divided among the data sets."""
    processes: int = 2
    """Number of parallel trainings, one thread each."""
    out: str = "runs/rehearsal"
    """Folder of runs.jsonl, the trainings finished so far, tasks.json, results.json and results.md."""

    def __post_init__(self) -> None:
        require_at_least(self, first=0, tasks=2, processes=1)
        unknown = sorted(set(self.data_sets) - set(ALLOWED))
        if unknown or not self.data_sets:
            raise RunError(f"--data-sets must be among {', '.join(ALLOWED)}, got {' '.join(unknown) or 'none'}")
        if self.least_side > SIDES[-1]:
            raise RunError(f"--least-side must be at most {SIDES[-1]}, the largest of a task, got {self.least_side}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/rehearse", arguments) as call:
        call.resume = call.line
        config = call.parse(RehearseConfig, __doc__)
        contestants = select(config.agents, config.schedules, config.rules, menu=config.every_policy)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        places = data_places(config.data, config.data_sets)
        sources = drawn_sources(out / "tasks.json", places)
        if [source.name for source in sources] != list(config.data_sets):
            raise RunError(
                f"{out}: holds tasks of {', '.join(source.name for source in sources)}; choose another folder"
            )
        path = out / "runs.jsonl"
        kind: dict[str, Any] = {"group": config.group, "least_side": config.least_side}
        log = TrainingLog(path, lambda lines: _reusable(path, lines, contestants, kind))
        precision = resolve_precision("auto", resolve_device("cpu"))
        tasks = {
            number: task_of(number, sources, **kind) for number in range(config.first, config.first + config.tasks)
        }
        where = tuple(places.items())
        jobs = {
            (number, name): functools.partial(train, number, name, contestant, kind, task, where, precision)
            for number, task in tasks.items()
            for name, contestant in contestants.items()
        }
        log.run(jobs, processes=config.processes, describe=_describe)
        result = {"command": call.line, **summarise([log.finished[key] for key in jobs])}
        write_atomic(out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "results.md", markdown(result).encode())
        print(f"\n{markdown(result)}\nwritten: {out}/results.json, results.md")


def task_of(number: int, sources: Sequence[Source], *, group: str, least_side: int) -> Task:
    """Return a task of a group by its number: of one data set after the other, passing over too small images."""
    turn, place = divmod(number, len(sources))
    drawn = BroadTasks((sources[place],), seed=SEED + place, **DRAWN[group])
    large = (task for task in map(drawn.task, count()) if (task.image_size or 0) >= least_side)
    return next(islice(large, turn, None))


def select(
    agents: Sequence[str], schedules: Sequence[str] = (), rules: Sequence[str] = (), *, menu: bool = False
) -> dict[str, Entrant]:
    """Return the fixed policies, the schedules, the rules and the agents by name.

    Args:
        agents: shipped, or NAME=FOLDER.
        schedules: NAME=FILE.
        rules: NAME=FILE.
        menu: take all policies of the menu, plain first, for the usual ones.

    Raises:
        RunError: an entry is not of the form NAME=FOLDER or NAME=FILE, or its name stands for another contestant.
        DamagedFileError: an agent cannot be used.
        PolicyError: a schedule or a rule cannot be used.
    """
    fixed = FIXED
    if menu:
        policies = [MENU.policy(action) for action in MENU.actions()]
        fixed = {str(policy): PolicySchedule.fixed(policy) for policy in sorted(policies, key=lambda one: one != PLAIN)}
    selected = {name: Entrant(schedule) for name, schedule in fixed.items()}
    for name, schedule in load_schedules(schedules, selected).items():
        selected[name] = Entrant(schedule, hashlib.sha256(json.dumps(schedule.to_json()).encode()).hexdigest())
    for name, rule in load_rules(rules, selected).items():
        selected[name] = Entrant(rule, rule.checksum)
    for name, place in agent_places(agents, selected).items():
        agent = load_agent(place)
        selected[name] = Entrant(agent, agent.checksum)
    return selected


def train(
    number: int,
    name: str,
    entrant: Entrant,
    kind: Mapping[str, Any],
    task: Task,
    places: tuple[tuple[str, str], ...],
    precision: Precision,
) -> dict[str, Any]:
    """Train a task under a contestant and return the line of the log.

    Args:
        number: number of the task, also the seed of the training.
        name: name of the contestant.
        entrant: what chooses.
        kind: group and least side of the tasks, for the log.
        task: the task.
        places: name of each data set and what `load_dataset` takes for it.
        precision: number format of the network.

    Returns:
        Task and contestant, development and validation accuracy at the end in [0, 1], and what an agent or a rule
        chose.
    """
    trainer = shared_trainer(places, precision)
    chosen = None
    contestant = entrant.chooses
    if isinstance(contestant, PolicySchedule):
        trainer.run(contestant, task, training_seed(number))
    else:
        actions = contestant.play(contestant.environment(trainer, task), task, seed=number)
        chosen = [str(contestant.menu.policy(action)) for action in actions]
    measured = trainer.measure(["development", "validation"])
    return {
        "task": number,
        "contestant": name,
        **kind,
        "agent_sha256": entrant.sha256,
        "dataset": task.dataset,
        "wrong": task.label_noise,
        "development": round(measured["development"], 4),
        "validation": round(measured["validation"], 4),
        "diverged": trainer.diverged,
        **({} if chosen is None else {"chosen": chosen}),
    }


def summarise(lines: Sequence[Line]) -> dict[str, Any]:
    """Return each contestant's accuracy less that of plain training, in points, overall, by data set and by labels.

    Args:
        lines: lines of the log; every task has one of every contestant.
    """
    numbers = sorted({line["task"] for line in lines})
    accuracy = {(line["task"], line["contestant"]): 100 * line["development"] for line in lines}
    names = list(dict.fromkeys(line["contestant"] for line in lines))
    fixed = sum(line["agent_sha256"] is None for line in lines) // len(numbers)
    if fixed > len(FIXED):
        for number in numbers:
            trained = [line for line in lines if line["task"] == number and line["agent_sha256"] is None]
            best = max(trained, key=lambda line: line["validation"])  # the first of equals
            accuracy[number, BEST_OF_ALL] = 100 * best["development"]
        names.append(BEST_OF_ALL)
    datasets = {line["task"]: line["dataset"] for line in lines}
    sets = sorted(set(datasets.values()))
    grid = np.array([[accuracy[number, name] for name in names] for number in numbers])  # tasks x contestants
    of_set = [datasets[number] for number in numbers]

    wrong = {line["task"]: line["wrong"] > 0 for line in lines}
    of_labels = np.array([LABELS[wrong[number]] for number in numbers])

    def row(place: int, base: int) -> dict[str, Any]:
        gaps = grid[:, place] - grid[:, base]
        by_labels = {name: mean_interval(gaps[of_labels == name].tolist()) for name in LABELS if name in of_labels}
        return {**difference(gaps, of_set), "by_labels": by_labels}

    best_fixed = max(range(fixed), key=lambda place: grid[:, place].mean())
    return {
        "tasks": len(numbers),
        "data_sets": {name: of_set.count(name) for name in sets},
        "labels": {name: int((of_labels == name).sum()) for name in LABELS if name in of_labels},
        "best_fixed": names[best_fixed],
        "accuracy": {name: float(grid[:, place].mean()) for place, name in enumerate(names)},
        "less_plain": {name: row(place, 0) for place, name in enumerate(names) if place},
        "less_best_fixed": {name: row(place, best_fixed) for place, name in enumerate(names) if place != best_fixed},
        "diverged": sum(line["diverged"] for line in lines),
    }


def difference(gaps: NDArray[np.float64], of_set: Sequence[str]) -> dict[str, Any]:
    """Return intervals of differences by task, `[T]` points: over tasks, over data sets, and of each data set.

    Args:
        gaps: differences.
        of_set: each task's data set.
    """
    worst = np.sort(gaps)[: max(len(gaps) // 10, 1)]
    return {
        **interval_by_unit(gaps.tolist(), of_set),
        "by_data_set": {name: mean_interval(gaps[np.array(of_set) == name].tolist()) for name in sorted(set(of_set))},
        "worst_tenth": float(worst.mean()),
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results: a table less plain training, and one less the best fixed policy of these tasks."""
    sets = ", ".join(f"{name} ({count})" for name, count in result["data_sets"].items())
    labels = ", ".join(f"{name} ({count})" for name, count in result["labels"].items())
    head = ["", "Tasks", "Data sets", "Worst tenth", *result["labels"], *result["data_sets"]]

    def table(which: str) -> str:
        rows = [
            [
                name,
                format_interval(*row["tasks"], signed=True),
                format_interval(*row["data_sets"], signed=True),
                f"{row['worst_tenth']:+.2f}",
                *(format_interval(*row["by_labels"][one], signed=True) for one in result["labels"]),
                *(format_interval(*row["by_data_set"][one], signed=True) for one in result["data_sets"]),
            ]
            for name, row in result[which].items()
        ]
        return tabulate(rows, head, tablefmt="pipe", disable_numparse=True)

    return "\n\n".join(
        [
            "# Rehearsal on other data sets",
            f"`{result['command']}`",
            f"{result['tasks']} tasks: {sets}; {labels}. Points of development accuracy, one training each; 95 % "
            "intervals over tasks, and over the means of the data sets. Worst tenth: mean over the tenth of the tasks "
            f"where the difference is lowest. {result['diverged']} trainings diverged; they count as chance.",
            "## Less plain training",
            table("less_plain"),
            f"## Less the best of the fixed policies, here {result['best_fixed']}",
            table("less_best_fixed"),
            "",
        ]
    )


def _reusable(
    path: Path, lines: Sequence[Line], contestants: Mapping[str, Entrant], kind: Mapping[str, Any]
) -> dict[tuple[int, str], Line]:
    """Return the trainings of a log by task and contestant.

    Raises:
        RunError: one is of another agent, rule or schedule by the same name, or of another kind of tasks.
    """
    for line in lines:
        name = line["contestant"]
        held = {"group": line["group"], "least_side": line.get("least_side", SIDES[0])}
        for option, value in kind.items():
            if held[option] != value:
                raise RunError(
                    f"{path}: holds tasks of --{option.replace('_', '-')} {held[option]}, not {value}; choose another "
                    "folder"
                )
        if name in contestants and line["agent_sha256"] != contestants[name].sha256:
            raise RunError(
                f"{path}: holds another agent, rule or schedule by the name {name}; choose another name or folder"
            )
    return {(line["task"], line["contestant"]): line for line in lines}


def _describe(line: Line) -> str:
    return f"task {line['task']:<4} {line['dataset']:<12} {line['contestant']:<24} {100 * line['development']:5.1f} %"


if __name__ == "__main__":
    main()
