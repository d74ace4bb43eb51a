"""Third contest: agents on data sets, a network and wrong labels that they have not learned from.

    python experiments/studies/broad/contest.py protocol --data ../shared/data \
        --agents new=runs/broad_agent old=shipped --best-fixed runs/rule/fixed.json \
        --schedules switch=runs/rule/switch.json --rules rule=runs/rule/rule.json
    python experiments/studies/broad/contest.py run --data ../shared/data

The protocol is written first: tasks, seeds, contestants with checksums, and which images are read. The run follows it,
records that the test set is read, and writes the tables. Finished trainings do not run again: the same command resumes.
A protocol made with `--rehearsal` has other tasks, of the data sets that are kept to rehearse on, and reads development
images.

Every contestant trains the same network on the same images from the same seed. The first agent is compared with all.
Three contestants train a task 16 times, and so train fewer tasks: all fixed policies, of which the best by validation
is the oracle, whose policy is also trained again from another seed, without the luck of the best of 16; CutMix on half
16 times, the best by validation, which has only that luck; and Population Based Training with 16 members.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from rlmix.agent.agent import Agent
from rlmix.agent.any_agent import load_agent
from rlmix.agent.baselines import random_schedule
from rlmix.agent.files import SHIPPED
from rlmix.agent.plots import png
from rlmix.agent.population import train_population
from rlmix.agent.rule import Rule
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import Precision
from rlmix.envs import BroadTasks, ImageLibrary, Source, Task, TaskTrainer
from rlmix.envs.seeds import derive_seed, training_seed
from rlmix.experiments.comparison.contestants import agent_places, load_rules, load_schedules, only_networks
from rlmix.experiments.comparison.held_out import record_test_read
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.command import command, spelling
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.contest_results import (
    BEST_FIXED,
    MENU_16,
    NOISE,
    ORACLE,
    ORACLE_AGAIN,
    UNSEEN,
    VIT,
    Key,
    key_of,
    markdown,
    plot,
    summarise,
)
from rlmix.experiments.studies.broad.record import CHOICES, USUAL, data_places, shared_trainer
from rlmix.experiments.studies.broad.record import GROUPS as RECORDED
from rlmix.experiments.studies.broad.rehearse import CUTMIX, OFF
from rlmix.experiments.studies.broad.rehearse import FIXED as REHEARSED_BESIDE
from rlmix.experiments.studies.broad.small_vit import SIDE, small_vit

SEED = 230_100  # of the tasks; those of record.py and rehearse.py have others
REHEARSAL_OFFSET = 50  # added to it
REHEARSED = RECORDED["rehearse"]
MOST_WRONG = (0.65, 0.8)  # of NOISE; no recorded task has more than 0.6
VIT_OPTIONS = {
    "model": f"{small_vit.__module__}:{small_vit.__name__}",
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "lr_schedule": "cosine",
    "warmup": 0.1,
}
KEPT = ("batch_size", "augmentation", "crop_padding")  # options of a task that are those of VIT's too
# Where to stop mixing is chosen in the surrogate of the recorded tasks, and given as a schedule.
FIXED = {name: schedule for name, schedule in REHEARSED_BESIDE.items() if name != OFF}
# Much as timm mixes by default, with --mixup 0.8 --cutmix 1.0: there λ of mixup is Beta(0.8, 0.8).
TIMM = MixPolicy({"mixup": 0.5, "cutmix": 0.5}, label_smoothing=0.1)
RANDOM, AS_TIMM = "random", "as timm mixes"
COPIES, POPULATION = "CutMix half, the best of 16", "Population Based Training"
LOOKS = {"one look": 1, "two looks": 2}
SEARCHES = (MENU_16, COPIES, POPULATION)
TRAININGS = len(CHOICES)


@dataclass(frozen=True)
class ContestConfig:
    """Write the protocol of a contest, or run the contest."""

    stage: tyro.conf.Positional[Literal["protocol", "run"]]
    """Write the protocol, or run the trainings that it lists."""
    data: str
    """Folder of the data sets: NAME.zip or NAME/, with train/CLASS/* and test/CLASS/* inside."""
    agents: tuple[str, ...] = (SHIPPED,)
    """Agents, the first of which is compared with all: shipped, or NAME=FOLDER; for the protocol."""
    schedules: tuple[str, ...] = ()
    """Fixed schedules, beside those that every contest has: NAME=FILE; for the protocol."""
    rules: tuple[str, ...] = ()
    """Rules that fit_rule.py has found: NAME=FILE; for the protocol."""
    best_fixed: str | None = None
    """File of the schedule that keeps the best fixed policy of the recorded tasks, in their surrogate, as fit_rule.py
    writes it; for the protocol, and needed there."""
    tasks: int = 24
    """Number of tasks of each group; for the protocol."""
    search_tasks: int = 10
    """Number of them that contestants train which search with 16 trainings; for the protocol."""
    rehearsal: bool = False
    """Use other tasks, of the data sets to rehearse on alone, and development images; for the protocol."""
    processes: int = 2
    """Number of parallel trainings, one thread each."""
    out: str = "runs/broad-contest"
    """Folder of protocol.json, runs.jsonl, results.json, results.md and results.png."""

    def __post_init__(self) -> None:
        require_at_least(self, tasks=2, search_tasks=0, processes=1)
        if self.search_tasks > self.tasks:
            raise RunError(f"--search-tasks must be at most --tasks, {self.tasks}, got {self.search_tasks}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/contest", arguments) as call:
        call.resume = call.line
        config = call.parse(ContestConfig, __doc__)
        out = Path(config.out)
        if config.stage == "protocol":
            write_protocol(config, out, call.line)
        else:
            run(config, out, call.line)


def groups_of(*, rehearsal: bool) -> dict[str, tuple[str, ...]]:
    """Return the data sets of each group of tasks, by the group's name."""
    data_sets = REHEARSED if rehearsal else (*UNSEEN, *REHEARSED)
    return {**{name: (name,) for name in data_sets}, VIT: REHEARSED, NOISE: REHEARSED}


def task_of(group: str, number: int, sources: Sequence[Source], *, seed: int) -> Task:
    """Return a task of a group by its number: of one of the group's data sets after the other.

    Args:
        group: name of the group.
        number: number of the task.
        sources: the group's data sets.
        seed: RNG seed of the contest.
    """
    turn, place = divmod(number, len(sources))
    own = derive_seed(seed, *group.encode(), place)
    task = BroadTasks((sources[place],), seed=own, **USUAL).task(turn)
    if group == VIT:
        kept = {name: value for name, value in dict(task.options).items() if name in KEPT}
        return replace(task, image_size=SIDE, options={**kept, **VIT_OPTIONS})
    if group == NOISE:
        share = float(np.random.default_rng([own, turn]).uniform(*MOST_WRONG))
        return replace(task, label_noise=round(share, 3), noise="symmetric")
    return task


def task_and_seed(protocol: Mapping[str, Any], group: str, number: int) -> tuple[Task, int]:
    """Return a task of a protocol, and the seed that all its trainings share.

    Args:
        protocol: the protocol.
        group: name of the group.
        number: number of the task.
    """
    known = {source["name"]: Source(source["name"], tuple(source["counts"]), source["colour"])
             for source in protocol["sources"]}  # fmt: skip
    sources = [known[one] for one in protocol["groups"][group]]
    task = task_of(group, number, sources, seed=protocol["seed"])
    return task, derive_seed(protocol["seed"], *group.encode(), number)


def contestants_of(
    agents: Mapping[str, Agent],
    folders: Mapping[str, str],
    best: PolicySchedule,
    schedules: Mapping[str, PolicySchedule],
    rules: Mapping[str, Rule],
) -> dict[str, Any]:
    """Return the protocol's entries of all contestants by name, the first agent's first.

    Args:
        agents: agents by name.
        folders: folder of each.
        best: best fixed policy of the recorded tasks.
        schedules: further schedules by name.
        rules: rules by name.
    """
    first = next(iter(agents))
    entries: dict[str, Any] = {
        name: {"kind": "agent", "folder": folders[name], "sha256": agent.checksum, "looks": None}
        for name, agent in agents.items()
    }
    entries |= {f"{first}, {name}": {**entries[first], "looks": looks} for name, looks in LOOKS.items()}
    fixed = {**FIXED, BEST_FIXED: best, AS_TIMM: PolicySchedule.fixed(TIMM), **schedules}
    entries |= {name: {"kind": "schedule", "schedule": schedule.to_json()} for name, schedule in fixed.items()}
    entries |= {name: {"kind": "rule", "rule": rule.to_json()} for name, rule in rules.items()}
    return {**entries, RANDOM: {"kind": "random"}, **{name: {"kind": "search"} for name in SEARCHES}}


def write_protocol(config: ContestConfig, out: Path, line: str) -> None:
    """Write the protocol: contestants, tasks, seeds and statistics, before anything is trained.

    Raises:
        RunError: trainings have been made already, or an option is out of range.
    """
    if (out / "runs.jsonl").exists():
        raise RunError(f"{out}: this contest has trainings, so its protocol cannot change; choose another --out")
    if config.best_fixed is None:
        raise RunError("--best-fixed: expected the file of a schedule; studies/broad/fit_rule.py writes fixed.json")
    best = PolicySchedule.load(config.best_fixed)
    taken = {*FIXED, BEST_FIXED, AS_TIMM, RANDOM, *SEARCHES, ORACLE, ORACLE_AGAIN}
    folders = agent_places(config.agents, taken)
    agents = only_networks({name: load_agent(folder) for name, folder in folders.items()})
    if not agents:
        raise RunError("--agents: expected at least one agent, got none")
    taken |= {*agents, *(f"{next(iter(agents))}, {name}" for name in LOOKS)}
    schedules = load_schedules(config.schedules, taken)
    rules = load_rules(config.rules, {*taken, *schedules})
    groups = groups_of(rehearsal=config.rehearsal)
    names = tuple(dict.fromkeys(name for data_sets in groups.values() for name in data_sets))
    library = ImageLibrary(data_places(config.data, names))
    protocol = {
        "command": line,
        "split": "development" if config.rehearsal else "test",
        "seed": SEED + (REHEARSAL_OFFSET if config.rehearsal else 0),
        "groups": groups,
        "sources": [asdict(Source.of(library, name)) for name in names],
        "contestants": contestants_of(agents, folders, best, schedules, rules),
        "tasks": config.tasks,
        "search_tasks": config.search_tasks,
        "statistics": (
            "Means over tasks of paired differences (same images, weights and order of data), with 95 % intervals of "
            "Student's t: over tasks, and over the means of data sets. All data sets together: groups of one data set, "
            "every task alike. A training that diverged counts as at chance. Validation images decide wherever one of "
            "several trainings is kept."
        ),
    }
    with with_filename(out):
        out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "protocol.json", (json.dumps(protocol, indent=1) + "\n").encode())
    print(
        f"written: {out}/protocol.json\nnext: {spelling('studies/broad/contest')} run --data {config.data} --out {out}"
    )


def run(config: ContestConfig, out: Path, line: str) -> None:
    """Run the protocol's trainings that have not finished, and write the tables.

    Raises:
        RunError: there is no protocol, or an agent is not that of the protocol.
    """
    file = out / "protocol.json"
    if not file.is_file():
        raise RunError(f"there is no {file}; write it first: {spelling('studies/broad/contest')} protocol --out {out}")
    with reject_incompatible(file):
        protocol = json.loads(file.read_bytes())
        for name, entry in protocol["contestants"].items():
            if entry["kind"] == "agent" and Agent.load(entry["folder"]).checksum != entry["sha256"]:
                raise RunError(f"{entry['folder']}: not the agent {name} of the protocol; restore it, or write another")
        sources = [source["name"] for source in protocol["sources"]]
    places = tuple(data_places(config.data, sources).items())
    log = TrainingLog(out / "runs.jsonl", lambda lines: {key_of(line): line for line in lines})
    precision = resolve_precision("auto", resolve_device("cpu"))
    jobs = {key: functools.partial(train, key, str(file), places, precision) for key in wanted(protocol)}
    missing = log.missing(jobs)
    if missing and protocol["split"] == "test":
        record_test_read(out, line, entries=len(missing))
    try:
        log.run(jobs, processes=config.processes, describe=_describe)
    finally:  # even if interrupted
        write(out, protocol, [log.finished[key] for key in jobs if key in log.finished], line)


def wanted(protocol: Mapping[str, Any]) -> list[Key]:
    """Return the trainings of a protocol in their order: groups in turn, those that search last."""
    entries = protocol["contestants"]
    singles = [name for name, entry in entries.items() if entry["kind"] != "search"]
    searches = [name for name in entries if name not in singles]
    return [
        (group, number, name)
        for names, count in ((singles, protocol["tasks"]), (searches, protocol["search_tasks"]))
        for number in range(count)
        for group in protocol["groups"]
        for name in names
    ]


def train(key: Key, protocol_file: str, places: tuple[tuple[str, str], ...], precision: Precision) -> dict[str, Any]:
    """Train a contestant on a task and return the line of the log.

    Args:
        key: group, number of the task, and contestant.
        protocol_file: the protocol.
        places: name of each data set and what `load_dataset` takes for it.
        precision: number format of the network.

    Returns:
        The key; accuracy on the protocol's split and on validation images, in [0, 1] and at chance after a divergence;
        what was chosen; and for all fixed policies each one's accuracies, and that of the best trained again.
    """
    group, number, name = key
    protocol = _protocol(protocol_file)
    entry, split = protocol["contestants"][name], protocol["split"]
    task, seed = task_and_seed(protocol, group, number)
    trainer = shared_trainer(places, precision)
    line: dict[str, Any] = {"group": group, "task": number, "contestant": name, "dataset": task.dataset}
    match entry["kind"]:
        case "agent":
            agent = Agent.load(entry["folder"])
            actions = agent.play(agent.environment(trainer, task), task, seed, looks=entry["looks"])
            line["chosen"] = [str(agent.menu.policy(action)) for action in actions]
        case "rule":
            rule = Rule.from_json(entry["rule"])
            actions = rule.play(rule.environment(trainer, task), task, seed)
            line["chosen"] = [str(rule.menu.policy(action)) for action in actions]
        case "schedule":
            trainer.run(PolicySchedule.from_json(entry["schedule"]), task, training_seed(seed))
        case "random":
            trainer.run(random_schedule(MENU, SEGMENTS, seed), task, training_seed(seed))
        case _:
            return line | _search(name, trainer, task, split, seed)
    return line | accuracies(trainer, split)


def _search(name: str, trainer: TaskTrainer, task: Task, split: str, seed: int) -> dict[str, Any]:
    """Train a task 16 times and return the accuracies of the network kept, with what else is found out."""
    if name == POPULATION:
        train_population(trainer, task, menu=MENU, segments=SEGMENTS, seed=seed, members=TRAININGS)
        return accuracies(trainer, split)
    policies = [MENU.policy(action) for action in CHOICES] if name == MENU_16 else [CUTMIX] * TRAININGS
    found = []
    for place, policy in enumerate(policies):
        own = training_seed(seed) if name == MENU_16 or place == 0 else derive_seed(training_seed(seed), place)
        trainer.run(PolicySchedule.fixed(policy), task, own)
        found.append(accuracies(trainer, split))
    best = max(range(TRAININGS), key=lambda place: found[place]["validation"])
    if name == COPIES:
        return found[best]
    trainer.run(PolicySchedule.fixed(policies[best]), task, derive_seed(training_seed(seed), TRAININGS))
    again = accuracies(trainer, split)
    every = [[one["accuracy"], one["validation"]] for one in found]
    return {**found[best], "chosen": [str(policies[best])], "again": again["accuracy"], "every": every}


def accuracies(trainer: TaskTrainer, split: str) -> dict[str, Any]:
    """Return what a line of the log says of a trained network: accuracies in [0, 1], and whether it diverged.

    Args:
        trainer: has trained it.
        split: images that judge: development or test.
    """
    measured = trainer.measure([split, "validation"])
    return {
        "accuracy": round(measured[split], 4),
        "validation": round(measured["validation"], 4),
        "diverged": trainer.diverged,
    }


def write(out: Path, protocol: Mapping[str, Any], lines: Sequence[Line], line: str) -> None:
    """Write and print the results of the tasks that every contestant of a table has finished."""
    summary = summarise(protocol, lines)
    if not summary["tables"]:
        print("no two tasks of a group have been finished by every contestant")
        return
    result = {"command": line, "machine": machine(), **summary}
    write_atomic(out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
    write_atomic(out / "results.md", markdown(result).encode())
    write_atomic(out / "results.png", png(plot(result)))
    print(f"\n{markdown(result)}\nwritten: {out}/results.json, results.md, results.png")


@functools.cache
def _protocol(file: str) -> dict[str, Any]:
    return json.loads(Path(file).read_bytes())


def _describe(line: Line) -> str:
    return f"{line['group']:<12} {line['task']:>3}  {line['contestant']:<24} {100 * line['accuracy']:.1f} %"


if __name__ == "__main__":
    main()
