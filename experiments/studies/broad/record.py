"""Record trainings of broad tasks under fixed and switching policies, for agents that are to hold on data never seen.

    python experiments/studies/broad/record.py --data ../shared/data --out runs/broad

Tasks 0, 1, 2, ... of `BroadTasks` over a group of data sets. Those to learn from are trained five times each, from one
seed: plain, under two fixed policies of the menu, one that switches once and one that may switch after every segment.
Usual tasks, whose settings are those that people mostly take, are trained six times: plain, under two fixed policies,
twice plain at first and under another policy from the second or third segment on, and under one that switches. Those to
rehearse on are trained under every policy of the menu, and led by each agent of `--agents`, so that what a choice would
have given is known. Played tasks are other usual ones, trained plain and by draws of each agent of `--agents`, for a
surrogate to learn from. A line of the log has observation v2 at the start and after each segment, validation accuracy
after each segment and development accuracy at the end; the first line of a task also says what the task is. The true
share of wrong labels is there to measure estimates of it, not for agents. Finished trainings do not run again: the same
command resumes, also after a kill.

At most 15 s a training on one slow core and about 5 s on average are estimated, 12 and 7 of the longer ones
(`envs/broad_tasks.py`), 18 and 10 of the usual ones.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlmix.agent.agent import Agent
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.training.config import Precision, TrainConfig
from rlmix.envs import BroadTasks, ImageLibrary, MixPolicyEnv, Source, TaskTrainer
from rlmix.envs.observation import RECORDED_FEATURES
from rlmix.experiments.comparison.runner import TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.task_family import MENU, PLAIN, SEGMENTS
from rlmix.experiments.studies.task_family.recording import draw_action

LEARN = ("fashion_mnist", "mnist", "kmnist", "cifar10", "gtsrb", "pacs")
REHEARSE = ("digits", "flowers5", "sign_digits", "cifar100")
GROUPS = {  # data sets to learn from, and to rehearse on; no other may be looked at before the contest
    "learn": LEARN,
    "longer": LEARN,
    "usual": LEARN,
    "rehearse": REHEARSE,
    "rehearse-usual": REHEARSE,
    "played": LEARN,
}
BUILT_IN = ("fashion_mnist", "digits")  # read from where `load_dataset` finds them
SEEDS = {  # of the tasks
    "learn": 230_001,
    "rehearse": 230_002,
    "longer": 230_003,
    "usual": 230_005,
    "rehearse-usual": 230_006,
    "played": 230_007,
}
USUAL: dict[str, Any] = {"updates": (200, 2000), "seconds": 18.0, "usual": True}
DRAWN: dict[str, dict[str, Any]] = {  # arguments of `BroadTasks`, where they differ from its defaults
    "longer": {"updates": (250, 2000), "seconds": 12.0},
    "usual": USUAL,
    "rehearse-usual": USUAL,
    "played": USUAL,
}
LATER = 2  # trainings of a usual task that are plain at first
CHOICES = MENU.actions()
FIXED = 2  # trainings under fixed policies, besides plain
CHANGES = 0.5  # probability of another policy after a segment, in the last training of a task
BEFOREHAND = RECORDED_FEATURES.index("progress")  # features before this one never change within a training
DIGITS = 3  # decimals of a logged feature


@dataclass(frozen=True)
class RecordConfig:
    """Record trainings of broad tasks."""

    data: str
    """Folder of the data sets: NAME.zip or NAME/, with train/CLASS/* and test/CLASS/* inside."""
    group: Literal["learn", "longer", "usual", "rehearse", "rehearse-usual", "played"] = "learn"
    """Tasks that are trained: learn or longer, five trainings each, usual, six, rehearse or rehearse-usual, under
    every policy of the menu, or played, plain and once by each of --agents."""
    agents: tuple[str, ...] = ()
    """Agents, shipped or their folders: the group played records their draws, and needs some, rehearse and
    rehearse-usual what they choose."""
    tasks: int = 2000
    """Number of tasks."""
    first: int = 0
    """Number of the first task; the others follow."""
    processes: int = 2
    """Number of parallel trainings, one thread each."""
    out: str = "runs/broad"
    """Folder of GROUP.jsonl, the trainings finished so far, and of GROUP.json, the meaning of its numbers."""

    def __post_init__(self) -> None:
        require_at_least(self, tasks=1, first=0, processes=1)
        if self.group == "played" and not self.agents:
            raise RunError("--group played: expected --agents, whose draws are recorded, got none")
        if self.agents and self.group not in ("played", "rehearse", "rehearse-usual"):
            raise RunError(f"--agents belong to --group played, rehearse or rehearse-usual, got --group {self.group}")


@dataclass(frozen=True)
class TrainingPlan:
    """One training of a task.

    Attributes:
        task: number of the task.
        training: number of the training among those of its task.
        kind: plain, fixed, later (plain at first), switching (once), wandering (perhaps after every segment), played
            (as an agent draws) or led (as it chooses).
        policies: policy of each segment, a place in `MENU.actions()`; none if an agent chooses.
        agent: files of the agent that chooses, if one does.
    """

    task: int
    training: int
    kind: str
    policies: tuple[int, ...]
    agent: Mapping[str, bytes] | None = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/record", arguments) as call:
        call.resume = call.line
        config = call.parse(RecordConfig, __doc__)
        agents = [Agent.load(folder) for folder in config.agents]
        for folder, agent in zip(config.agents, agents, strict=True):
            require_recorded(agent, folder)
        places = data_places(config.data, GROUPS[config.group])
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        sources = drawn_sources(out / f"{config.group}.json", places)
        tasks = BroadTasks(sources, seed=SEEDS[config.group], **DRAWN.get(config.group, {}))
        log = TrainingLog(out / f"{config.group}.jsonl", lambda lines: {_identity(line): line for line in lines})
        precision = resolve_precision("auto", resolve_device("cpu"))
        of_group = functools.partial(plans_of, config.group, agents)
        jobs = {
            _identity(asdict(plan)): functools.partial(record, plan, tasks, tuple(places.items()), precision)
            for number in range(config.first, config.first + config.tasks)
            for plan in of_group(number)
        }
        _require_same_agents(log.finished, agents)
        log.run(jobs, processes=config.processes, describe=_describe)


def data_places(folder: str, names: Sequence[str]) -> dict[str, str]:
    """Return what `load_dataset` takes for each data set, by name.

    Raises:
        RunError: a data set is neither built in nor in the folder.
    """
    places = {}
    for name in names:
        found = [path for path in (Path(folder) / f"{name}.zip", Path(folder) / name) if path.exists()]
        if name not in BUILT_IN and not found:
            raise RunError(f"--data: expected {name}.zip or {name}/ in {folder}, got neither")
        places[name] = name if name in BUILT_IN else str(found[0].resolve())
    return places


def plans(number: int) -> list[TrainingPlan]:
    """Return the trainings of a task, always the same ones."""
    random = np.random.default_rng([number, 23])
    segments = len(SEGMENTS)

    def draw() -> int:
        return int(random.integers(len(CHOICES)))

    plain = CHOICES.index(PLAIN)
    others = [choice for choice in range(len(CHOICES)) if choice != plain]
    fixed = random.choice(others, size=FIXED, replace=False).tolist()
    place = int(random.integers(1, segments))
    wandering = [draw()]
    while len(wandering) < segments:
        wandering.append(draw() if random.random() < CHANGES else wandering[-1])
    policies = [
        ("plain", (plain,) * segments),
        *(("fixed", (choice,) * segments) for choice in fixed),
        ("switching", (draw(),) * place + (draw(),) * (segments - place)),
        ("wandering", tuple(wandering)),
    ]
    return [TrainingPlan(number, training, kind, choices) for training, (kind, choices) in enumerate(policies)]


def usual_plans(number: int) -> list[TrainingPlan]:
    """Return the trainings of a usual task, always the same ones."""
    plain, one, other, switching, _ = plans(number)
    random, segments = np.random.default_rng([number, 24]), len(SEGMENTS)
    start = plain.policies[0]
    later = [
        (start,) * place + (choice,) * (segments - place)
        for place, choice in zip(
            random.integers(1, 3, size=LATER).tolist(),
            random.choice([choice for choice in range(len(CHOICES)) if choice != start], LATER, replace=False).tolist(),
            strict=True,
        )
    ]
    kinds = [(plan.kind, plan.policies) for plan in (plain, one, other)]
    kinds += [("later", policies) for policies in later] + [("switching", switching.policies)]
    return [TrainingPlan(number, training, kind, policies) for training, (kind, policies) in enumerate(kinds)]


def every_policy(number: int) -> list[TrainingPlan]:
    """Return a training of a task under each policy of the menu, plain first."""
    plain = CHOICES.index(PLAIN)
    order = [plain, *(choice for choice in range(len(CHOICES)) if choice != plain)]
    return [
        TrainingPlan(number, training, "fixed" if training else "plain", (choice,) * len(SEGMENTS))
        for training, choice in enumerate(order)
    ]


def played_plans(agents: Sequence[Agent], number: int) -> list[TrainingPlan]:
    """Return a plain training of a task, and one by each agent."""
    plain = plans(number)[0]
    return [plain, *(TrainingPlan(number, place, "played", (), one.to_files()) for place, one in enumerate(agents, 1))]


def require_recorded(agent: Agent, folder: str) -> None:
    """Check that an agent chooses among what is recorded, and sees nothing else.

    Raises:
        RunError: it does not.
    """
    unknown = sorted(set(agent.features) - set(RECORDED_FEATURES))
    if unknown or (agent.menu, agent.segments) != (MENU, SEGMENTS):
        of = f"the features {', '.join(unknown)}" if unknown else "another menu or other segments"
        raise RunError(f"--agents: expected agents of recorded features, got {folder}, which has {of}")


def plans_of(group: str, agents: Sequence[Agent], number: int) -> list[TrainingPlan]:
    """Return the trainings of a task of a group."""
    if group == "played":
        return played_plans(agents, number)
    if group == "usual":
        return usual_plans(number)
    return plans(number) if group in ("learn", "longer") else [*every_policy(number), *led_plans(agents, number)]


def led_plans(agents: Sequence[Agent], number: int) -> list[TrainingPlan]:
    """Return the trainings of a task that agents lead, numbered after those under every policy."""
    return [
        TrainingPlan(number, training, "led", (), agent.to_files())
        for training, agent in enumerate(agents, start=len(CHOICES))
    ]


def record(
    plan: TrainingPlan, tasks: BroadTasks, places: tuple[tuple[str, str], ...], precision: Precision
) -> dict[str, Any]:
    """Train a task under a plan and return the line of the log.

    Args:
        plan: the training.
        tasks: distribution of the tasks.
        places: name of each data set and what `load_dataset` takes for it.
        precision: number format of the network.

    Returns:
        The plan; `known`, the features that never change, and `rows`, the others at the start and after each segment;
        validation accuracy after each segment and development accuracy at the end, in [0, 1] and at chance after a
        diverged training; the true share of wrong labels; seconds of processor time; the task in its first training.
    """
    started = time.process_time()
    task = tasks.task(plan.task)
    env = MixPolicyEnv(
        task_trainer=shared_trainer(places, precision),
        tasks=tasks,
        segments=SEGMENTS,
        reward="final",
        menu=MENU,
        features=RECORDED_FEATURES,
    )
    observation, _ = env.reset(seed=plan.task)
    rows, validation, info, policies = [observation], [], {"diverged": False}, list(plan.policies)
    agent = None if plan.agent is None else Agent.from_files(plan.agent)
    random = np.random.default_rng([plan.task, 25, plan.training])
    for segment in range(len(SEGMENTS)):
        if agent is not None:
            places_seen = [RECORDED_FEATURES.index(name) for name in agent.features]
            seen = np.concatenate((observation[places_seen], observation[len(RECORDED_FEATURES) :]))
            action = agent.choose(seen) if plan.kind == "led" else draw_action(agent, seen, random)
            policies.append(CHOICES.index(action))
        observation, _, terminated, _, info = env.step(CHOICES[policies[segment]])
        rows.append(observation)
        validation.append(round(info["validation_accuracy"], 4))
        if terminated:
            break
    return {
        "task": plan.task,
        "training": plan.training,
        "kind": plan.kind,
        "policies": policies,
        **({} if agent is None else {"agent": agent.checksum}),
        **({"task_drawn": task.to_json()} if plan.training == 0 else {}),
        "known": _rounded(rows[0][:BEFOREHAND]),
        "rows": [_rounded(row[BEFOREHAND : len(RECORDED_FEATURES)]) for row in rows],
        "validation": validation,
        "development": round(env.task_trainer.measure(["development"])["development"], 4),
        "wrong": task.label_noise,
        "diverged": info["diverged"],
        "seconds": round(time.process_time() - started, 2),
    }


@functools.cache
def shared_trainer(places: tuple[tuple[str, str], ...], precision: Precision) -> TaskTrainer:
    """Return the trainer of the tasks, built once in each process."""
    training = TrainConfig(device="cpu", precision=precision)
    return TaskTrainer(training=training, library=ImageLibrary(dict(places)))


def drawn_sources(file: Path, places: Mapping[str, str]) -> tuple[Source, ...]:
    """Return the data sets that tasks are drawn from, as the first call has written them down."""
    if file.exists():
        known = json.loads(file.read_bytes())["sources"]
        return tuple(Source(entry["name"], tuple(entry["counts"]), entry["colour"]) for entry in known)
    library = ImageLibrary(places)
    sources = tuple(Source.of(library, name) for name in places)
    meaning = {
        "sources": [asdict(source) for source in sources],
        "segments": SEGMENTS,
        "menu": MENU.to_json(),
        "policies": CHOICES,
        "known": RECORDED_FEATURES[:BEFOREHAND],
        "rows": RECORDED_FEATURES[BEFOREHAND:],
    }
    write_atomic(file, (json.dumps(meaning) + "\n").encode())
    return sources


def _require_same_agents(finished: Mapping[Any, Mapping[str, Any]], agents: Sequence[Agent]) -> None:
    """Check that what is in the log was played by these agents, in this order.

    Raises:
        RunError: it was played by others.
    """
    checksums = [agent.checksum for agent in agents]
    for line in finished.values():
        place = line["training"] - (len(CHOICES) if line["kind"] == "led" else 1)
        if "agent" in line and checksums[place : place + 1] != [line["agent"]]:
            raise RunError("--out: trainings of other agents are there already; choose another folder")


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]


def _identity(line: Mapping[str, Any]) -> tuple[int, int]:
    return line["task"], line["training"]


def _describe(line: Mapping[str, Any]) -> str:
    return f"task {line['task']:<5} {line['kind']:<10} {100 * line['development']:5.1f} %  {line['seconds']:5.1f} s"


if __name__ == "__main__":
    main()
