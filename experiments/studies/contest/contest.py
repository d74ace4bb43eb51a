"""Contest on unseen tasks: the agent, which chooses as it trains and needs no search, against all other policies.

On the test set, over 100 tasks, the earlier agent (`policies/fashion`) is ahead of the best fixed policy by 0.82 points
(0.16 to 1.52), of a random policy by 2.40 and of plain training by 1.76 (results/contest; 2 cores of an AMD EPYC).

    python experiments/studies/contest/contest.py protocol --out experiments/results/contest
    python experiments/studies/contest/contest.py run --out experiments/results/contest

The protocol is written first: groups of tasks, seeds, contestants, the agent's checksum, and which images are read. The
run follows the protocol, records that the test set is read, and writes the tables. Finished trainings do not run again:
the same command resumes. A protocol made with `--rehearsal` has other tasks and reads development images; agents are
chosen, and programs tried, on such rehearsals.

Every contestant trains the same network on the same images from the same seed. Those that search (the best fixed
policy of each task, Population Based Training, whose members have seeds of their own) train many times and keep the
network that is best on validation images.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from rlmix.agent.agent import Agent
from rlmix.agent.baselines import random_schedule
from rlmix.agent.plots import png
from rlmix.agent.population import train_population
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.evaluation.measure import subject_of
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.config import Precision, TrainConfig
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import DIMENSIONS, Menu, MixPolicyEnv, TaskDistribution
from rlmix.envs.seeds import derive_seed, training_seed
from rlmix.experiments.comparison.contestants import ThresholdChoice
from rlmix.experiments.comparison.held_out import record_test_read
from rlmix.experiments.comparison.results import pack_hits
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.comparison.trainings import train_rl_mix
from rlmix.experiments.runs.command import command, spelling
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, StudyConfig
from rlmix.experiments.search.task_family import DATA, ONE_TASK, TASKS
from rlmix.experiments.studies.contest.contest_results import (
    AGENT,
    BEST,
    ONE,
    ORACLE,
    RANDOM,
    RIVALS,
    markdown,
    plot_contest,
    summarise_contest,
)

SEED = 7_310_000_000  # of the tasks; far from the seeds that searches are given
CONTEST, REHEARSAL = 0, 1  # first seeds, from which the trainings' seeds are derived
REHEARSAL_OFFSET = 1000  # added to the tasks' seeds


@dataclass(frozen=True)
class TaskGroup:
    """A distribution of tasks, and the data set and network that they are trained with.

    Attributes:
        title: title in tables.
        tasks: distribution of the tasks.
        dataset: name of the data set.
        image_size: side that images are resized to; None keeps it.
        model: name of the network.
        lr: highest learning rate.
        validation_size: number of validation images, which searches choose by; None takes the data set's default.
    """

    title: str
    tasks: TaskDistribution
    dataset: str = DATA.dataset
    image_size: int | None = DATA.image_size
    model: str = "search"
    lr: float = 0.2
    validation_size: int | None = DATA.validation_size


GROUPS = {
    "family": TaskGroup("unseen sizes, budgets and seeds", replace(TASKS, seed=SEED + 1)),
    "pair": TaskGroup(
        "unseen noise: pairs of classes", replace(TASKS, seed=SEED + 2, clean=0.0, noise="pair", label_noise=(0.1, 0.4))
    ),
    "digits": TaskGroup(
        "unseen data: digits of 8 pixels",
        replace(TASKS, seed=SEED + 3, train_size=(200, 800)),
        dataset="digits",
        image_size=None,
        validation_size=None,
    ),
    "lenet": TaskGroup("unseen network: LeNet", replace(TASKS, seed=SEED + 4), model="lenet", lr=0.02),
    "wide": TaskGroup("unseen network: twice the channels", replace(TASKS, seed=SEED + 5), model="search_wide"),
    ONE: TaskGroup("1,000 clean images, 1,000 updates", replace(ONE_TASK, seed=SEED + 6)),
}


@dataclass(frozen=True)
class ContestConfig:
    """Write the protocol of a contest, or run the contest."""

    stage: tyro.conf.Positional[Literal["protocol", "run"]]
    """Write the protocol, or run the trainings that it lists."""
    agent: str = "experiments/policies/fashion"
    """Folder of the agent; for the protocol."""
    fixed: str = "experiments/results/fixed/policy.json"
    """File of the best single fixed policy, from task_family/best_fixed.py; for the protocol."""
    others: tuple[str, ...] = ()
    """Further agents, each as NAME=FOLDER; for the protocol."""
    schedules: tuple[str, ...] = ()
    """Schedules that searches have found, each as NAME=FILE; for the protocol."""
    only: tuple[str, ...] = ()
    """Contestants, by their names in a protocol; optional, defaults to all; for the protocol."""
    groups: tuple[str, ...] = tuple(name for name in GROUPS if name != ONE)
    """Groups of tasks, or one alone, a contest of its own; for the protocol."""
    count: int = 10
    """Number of tasks of each group that every contestant trains; for the protocol."""
    rivals_count: int | None = None
    """Number of tasks of each group for the agent, the best fixed policy, random and plain training; optional, defaults
    to --count; for the protocol."""
    rehearsal: bool = False
    """Use other tasks, and development images instead of the test set; for the protocol."""
    study: Annotated[StudyConfig, UNPREFIXED] = field(default_factory=StudyConfig)
    out: str = "runs/contest"
    """Folder of protocol.json, runs.jsonl, results.json, results.md and results.png."""

    def __post_init__(self) -> None:
        require_at_least(self, count=2)


@dataclass(frozen=True)
class ContestEntry:
    """One contestant on one task.

    Attributes:
        group: name of the task's group.
        task: number of the task in its group.
        contestant: name of the contestant.
    """

    group: str
    task: int
    contestant: str


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/contest/contest", arguments) as call:
        call.resume = call.line
        config = call.parse(ContestConfig, __doc__)
        out = Path(config.out)
        if config.stage == "protocol":
            write_protocol(config, out, call.line)
        else:
            run(config, out, call.line)


def write_protocol(config: ContestConfig, out: Path, command: str) -> None:
    """Write the protocol: contestants, tasks, seeds and statistics, before anything is trained.

    Raises:
        RunError: trainings have been made already, or an option is out of range.
    """
    _check_protocol_options(config, out)
    agent = Agent.load(config.agent)
    contestants = _contestants(config, agent)
    groups = {name: GROUPS[name] for name in config.groups}
    if config.rehearsal:
        groups = {
            name: replace(group, tasks=replace(group.tasks, seed=group.tasks.seed + REHEARSAL_OFFSET))
            for name, group in groups.items()
        }
    protocol = {
        "command": command,
        "split": "development" if config.rehearsal else "test",
        "first_seed": REHEARSAL if config.rehearsal else CONTEST,
        "groups": {name: asdict(group) for name, group in groups.items()},
        "contestants": {
            name: {**entry, "count": config.rivals_count or config.count if name in RIVALS else config.count}
            for name, entry in contestants.items()
        },
        "menu": agent.menu.to_json(),
        "segments": list(agent.segments),
        "statistics": (
            "Means over tasks of paired differences (same images, weights and order of data); over all groups every "
            "task weighs alike. 95 % intervals from 2,000 bootstrap replicates that draw tasks, within their groups, "
            "and held-out images, alike in all groups of one data set. The oracle is the network of the menu's fixed "
            "policy that is best on each task's validation images. A training that diverged counts as at chance. What "
            "was aimed at is judged on the most tasks that everybody whom an aim names has trained."
        ),
    }
    with with_filename(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "protocol.json", (json.dumps(protocol, indent=2) + "\n").encode())
    print(f"written: {out}/protocol.json\nnext: {spelling('studies/contest/contest')} run --out {out}")


def _check_protocol_options(config: ContestConfig, out: Path) -> None:
    """Check that a protocol can be written with these options.

    Raises:
        RunError: trainings have been made already, or an option is out of range.
    """
    if (out / "runs.jsonl").exists():
        raise RunError(f"{out}: this contest has trainings, so its protocol cannot change; choose another --out")
    unknown = [name for name in config.groups if name not in GROUPS]
    if unknown or not config.groups:
        raise RunError(f"--groups must be among {', '.join(GROUPS)}, got {' '.join(unknown) or 'none'}")
    if ONE in config.groups and len(config.groups) > 1:
        raise RunError(f"--groups {ONE} is a contest of its own; leave the others out, got {' '.join(config.groups)}")
    if config.rivals_count is not None and config.rivals_count < config.count:
        raise RunError(f"--rivals-count must be at least --count, {config.count}, got {config.rivals_count}")


def _contestants(config: ContestConfig, agent: Agent) -> dict[str, dict[str, Any]]:
    """Return the protocol's entries of the contestants by name, without their numbers of tasks.

    Raises:
        RunError: a name is unknown or taken, or an agent has another menu or other segments.
    """
    contestants: dict[str, dict[str, Any]] = {
        AGENT: _agent(config.agent),
        BEST: {"kind": "schedule", "schedule": PolicySchedule.load(config.fixed).to_json()},
        RANDOM: {"kind": "random"},
        **{
            f"fixed: {name}": {"kind": "schedule", "schedule": schedule.to_json(), "of_the_menu": True}
            for name, schedule in fixed_of(agent.menu).items()
        },
        "population": {"kind": "population", "trainings": len(agent.menu.actions())},
        "rl-mix": {"kind": "per batch"},
    }
    for option, entries in (("--others", config.others), ("--schedules", config.schedules)):
        for entry in entries:
            name, equals, path = entry.partition("=")
            if not equals or not name or name in (*contestants, ORACLE):
                kind = "FOLDER" if option == "--others" else "FILE"
                raise RunError(f"{option} must be new names as NAME={kind}, got {entry!r}")
            if option == "--schedules":
                contestants[name] = {"kind": "schedule", "schedule": PolicySchedule.load(path).to_json()}
                continue
            other = Agent.load(path)
            if (other.menu, other.segments) != (agent.menu, agent.segments):
                raise RunError(f"--others: {entry} has another menu or other segments than {config.agent}")
            contestants[name] = _agent(path)
    unknown = [name for name in config.only if name not in contestants]
    if unknown or (config.only and AGENT not in config.only):
        raise RunError(
            f"--only must be {AGENT} and others among {', '.join(contestants)}, got {', '.join(unknown or config.only)}"
        )
    return {name: entry for name, entry in contestants.items() if not config.only or name in config.only}


def run(config: ContestConfig, out: Path, command: str) -> None:
    """Run the protocol's trainings that have not finished, and write the tables.

    Raises:
        RunError: there is no protocol, or an agent's checksum is not that of the protocol.
    """
    file = out / "protocol.json"
    if not file.is_file():
        raise RunError(
            f"there is no {file}; write it first: {spelling('studies/contest/contest')} protocol --out {out}"
        )
    with reject_incompatible(file):
        protocol = json.loads(file.read_bytes())
        for entry in protocol["contestants"].values():
            if entry["kind"] == "agent" and entry["sha256"] != Agent.load(entry["folder"]).checksum:
                raise RunError(
                    f"{entry['folder']}: not the agent of the protocol; restore it, or write another protocol"
                )
        counts = {name: entry["count"] for name, entry in protocol["contestants"].items()}
        wanted = [
            ContestEntry(group, number, name)
            for count in sorted(set(counts.values()), reverse=True)  # contestants with many tasks first
            for number in range(count)
            for group in protocol["groups"]  # in turn, so that half a contest has tasks of every group
            for name in counts
            if counts[name] == count
        ]
    log = TrainingLog(out / "runs.jsonl", lambda lines: {_entry(line): line for line in lines})
    precision = resolve_precision("auto", resolve_device("cpu"))
    jobs = {
        entry: functools.partial(train_contestant, entry, str(file), precision, config.study.data_root)
        for entry in wanted
    }
    missing = log.missing(jobs)
    if missing and protocol["split"] == "test":
        record_test_read(out, command, entries=len(missing))
    try:
        log.run(jobs, processes=config.study.processes, describe=_describe)
    finally:  # even if interrupted
        write(out, protocol, [log.finished[entry] for entry in wanted if entry in log.finished], command)


def write(out: Path, protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], command: str) -> None:
    """Write and print the results of the tasks that every contestant of a table has finished."""
    summary = summarise_contest(protocol, lines)
    if not summary["tables"]:
        print("no two tasks of a group have been finished by every contestant")
        return
    result = {"command": command, "machine": machine(), **summary}
    write_atomic(out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
    write_atomic(out / "results.md", markdown(result).encode())
    write_atomic(out / "results.png", png(plot_contest(result)))
    print(f"\n{markdown(result)}\nwritten: {out}/results.json, results.md, results.png")


def fixed_of(menu: Menu) -> dict[str, PolicySchedule]:
    """Return every distinct policy of a menu by the names of its choices, in dimensions that have several."""
    named = {}
    for action in menu.actions():
        words = [
            menu.names(dimension)[choice]
            for dimension, choice, size in zip(DIMENSIONS, action, menu.sizes, strict=True)
            if size > 1
        ]
        named[", ".join(words)] = PolicySchedule.fixed(menu.policy(action))
    return named


def train_contestant(
    entry: ContestEntry, protocol_file: str, precision: Precision, data_root: str | None
) -> dict[str, Any]:
    """Train one contestant on one task; contestants that search train several times.

    Returns:
        The line of the log: accuracy on the protocol's split in [0, 1], at chance after a diverged training; which
        images are right, None after a diverged training; validation accuracy; and the actions that the contestant
        chose, if any.
    """
    protocol = _protocol(protocol_file)
    group, contestant = protocol["groups"][entry.group], protocol["contestants"][entry.contestant]
    env = _environment(protocol_file, entry.group, precision, data_root)
    tasks = TaskDistribution(**group["tasks"])
    task = tasks.task(entry.task)
    seed = seed_of(protocol["first_seed"], tasks, entry.task)
    chosen: list[Any] = []
    trainings, trainer = 1, None
    match contestant["kind"]:
        case "schedule":
            schedule = PolicySchedule.from_json(contestant["schedule"])
            env.task_trainer.run(schedule, task, training_seed(seed))
        case "random":
            schedule = random_schedule(env.menu, env.segments, seed)
            env.task_trainer.run(schedule, task, training_seed(seed))
        case "agent":
            agent = Agent.load(contestant["folder"])
            actions = agent.play(agent.environment(env.task_trainer, task), task, seed)
            chosen = [list(action) for action in actions]
        case "population":
            trainings = contestant["trainings"]
            chosen = train_population(
                env.task_trainer, task, menu=env.menu, segments=env.segments, seed=seed, members=trainings
            )
        case _:
            data = env.task_trainer.prepare(task).data
            training = replace(task.training(env.task_trainer.training), saliency="exact")
            trainer, _ = train_rl_mix(ThresholdChoice(), training, data, training_seed(seed))
    if trainer is None and not env.task_trainer.diverged:
        trainer = env.trainer
    evaluated = _evaluate(trainer, protocol["split"], EvalStats.at_chance(env.trainer.num_classes).accuracy)
    return {
        **asdict(entry),
        "task_drawn": task.to_json(),
        "seed": seed,
        "trainings": trainings,
        "chosen": chosen,
        **evaluated,
    }


def seed_of(first: int, tasks: TaskDistribution, number: int) -> int:
    """Return the seed of all contestants' trainings of a task; different for every task of every group."""
    return derive_seed(first, tasks.seed, number)


def _evaluate(trainer: Trainer | None, split: str, chance: float) -> dict[str, Any]:
    """Evaluate the network of a finished training."""
    validation = None if trainer is None else trainer.evaluate("validation")
    if trainer is not None and validation is not None and np.isfinite(validation.loss):
        right = subject_of(trainer, split).predictions.right
        return {
            "accuracy": float(right.mean()),
            "validation": validation.accuracy,
            "diverged": False,
            "hits": pack_hits(right),
            "images": len(right),
        }
    return {"accuracy": chance, "validation": chance, "diverged": True, "hits": None, "images": None}


def _entry(line: Line) -> ContestEntry:
    return ContestEntry(line["group"], line["task"], line["contestant"])


def _describe(line: Line) -> str:
    return f"{line['group']:<8} {line['task']:>3}  {line['contestant']:<24} {100 * line['accuracy']:.2f} %"


def _agent(folder: str) -> dict[str, Any]:
    return {"kind": "agent", "folder": folder, "sha256": Agent.load(folder).checksum}


@functools.cache
def _protocol(file: str) -> dict[str, Any]:
    return json.loads(Path(file).read_bytes())


@functools.cache
def _environment(protocol_file: str, group: str, precision: Precision, data_root: str | None) -> MixPolicyEnv:
    protocol = _protocol(protocol_file)
    setting = protocol["groups"][group]
    tasks = TaskDistribution(**setting["tasks"])
    return MixPolicyEnv(
        setting["dataset"],
        data_root,
        image_size=setting["image_size"],
        training=TrainConfig(
            model=setting["model"], updates=tasks.updates[1], lr=setting["lr"], device="cpu", precision=precision
        ),
        tasks=tasks,
        segments=protocol["segments"],
        reward="final",
        menu=Menu.from_json(protocol["menu"]),
        validation_size=setting["validation_size"],
    )


if __name__ == "__main__":
    main()
