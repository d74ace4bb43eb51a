"""Which policy is best on which task, and how much of it is chance: 3,292 logged trainings of 310 tasks.

Of the variance between fixed policies on one task 98 % is the policy, the rest chance (results/family; about three
hours on 2 cores).

python experiments/studies/task_family/collect.py --tasks 100 --out experiments/results/family

Every task of the family (`experiments/search/task_family.py`) is trained under the reference (CutMix on half of the
updates) and plainly, the first tasks from two seeds. From the first seed it is also trained under fixed policies of the
menu, under policies that switch once, and under policies that begin as one of those two and switch after the first
segment. With `--agent`, that agent draws the policy of a task, and draws again at one later segment: such trainings
correct its values. The log keeps the observation at each segment's end, so that an agent can be fitted to it. Finished
trainings do not run again: the same command resumes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.plots import png
from rlmix.agent.ppo import Agent
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.training.config import Precision
from rlmix.envs import MixPolicyEnv
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.experiments.comparison.runner import TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.search.task_family import MENU, PARTS, PLAIN, REFERENCE, SEGMENTS, environment, part_of, task
from rlmix.experiments.studies.task_family.summary import markdown, plot_family, summarise_family

FIXED, SWITCHING, LOOKING = 2, 3, 2  # trainings of each task under drawn policies of each kind
DRAWN = 2  # trainings of each task under what an agent draws
TWICE = 20  # tasks whose reference and plain trainings are run from two seeds, to tell what chance does
DIGITS = 4  # of a feature, as it is kept


@dataclass(frozen=True)
class StudyConfig:
    """Train tasks of the family under many policies."""

    tasks: int = 100
    """Tasks 0, 1, 2, ... of the family."""
    slow: int = 0
    """Number of tasks of the slow part in addition."""
    bare: int = 0
    """Number of tasks of the network without normalisation in addition."""
    data_root: str | None = None
    """Folder where the data set lies; none looks in the usual places, then downloads."""
    agent: str | None = None
    """Optional folder of an agent; every task is also trained under its draws."""
    processes: int = 2
    """Trainings at a time, one thread each."""
    out: str = "runs/family"
    """Folder of episodes.jsonl, the trainings finished so far."""


@dataclass(frozen=True)
class TrainingPlan:
    """One training of a task.

    Attributes:
        task: number of the task.
        training: seed of the training.
        kind: reference, plain, fixed, switching, looking (switching after a first segment of the former two) or drawn.
        actions: action of each segment; empty for kind `drawn`.
        agent: checksum of the agent that draws; None for the other kinds.
        draw: number of the agent's draw.
    """

    task: int
    training: int
    kind: str
    actions: tuple[tuple[int, ...], ...]
    agent: str | None = None
    draw: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/task_family/collect", arguments) as call:
        call.resume = call.line
        config = call.parse(StudyConfig, __doc__)
        for name, least in (("tasks", 1), ("slow", 0), ("bare", 0), ("processes", 1)):
            if getattr(config, name) < least:
                raise RunError(f"--{name} must be at least {least}, got {getattr(config, name)}")
        agent = None if config.agent is None else Agent.load(Path(config.agent))
        if agent is not None and ((agent.menu, agent.segments, agent.features) != (MENU, SEGMENTS, DEFAULT_FEATURES)):
            raise RunError(f"--agent: {config.agent} has another menu, other segments or features than the family")
        files = None if agent is None else agent.to_files()
        # Of the weights alone, as the committed logs name an agent.
        checksum = None if files is None else hashlib.sha256(files["agent.safetensors"]).hexdigest()
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        log = TrainingLog(out / "episodes.jsonl", lambda lines: {_identity(line): line for line in lines})
        counts = {"family": config.tasks, "slow": config.slow, "bare": config.bare}
        # All parts grow together, so that an interrupted log has some of each.
        order = sorted((number / count, part, number) for part, count in counts.items() for number in range(count))
        precision = resolve_precision("auto", resolve_device("cpu"))
        jobs = {
            _identity(asdict(plan)): functools.partial(play, plan, precision, config.data_root, files)
            for _, part, number in order
            for plan in plans(PARTS[part].first + number, checksum)
        }
        try:
            log.run(jobs, processes=config.processes, describe=lambda line: f"task {line['task']:<5} {line['kind']}")
        finally:  # however far it came
            write(out, list(log.finished.values()), call.line)


def write(out: Path, lines: Sequence[dict[str, Any]], command: str) -> None:
    """Write the results of the trainings so far: results.json, results.md and results.png."""
    result = {"command": command, "machine": machine(), **summarise_family(lines)}
    for name, content in (
        ("results.json", (json.dumps(result, indent=2) + "\n").encode()),
        ("results.md", markdown(result).encode()),
        ("results.png", png(plot_family(lines))),
    ):
        write_atomic(out / name, content)
    print(f"\n{markdown(result)}\nwritten: {out}/results.json, results.md, results.png")


def plans(number: int, agent: str | None = None) -> list[TrainingPlan]:
    """Return the trainings of a task, always the same ones; with an agent's checksum `DRAWN` more under its draws."""
    random = np.random.default_rng([number, 1])
    choices = MENU.actions()
    count = len(SEGMENTS)

    def draw() -> tuple[int, ...]:
        return choices[random.integers(len(choices))]

    drawn = [TrainingPlan(number, 0, "fixed", (draw(),) * count) for _ in range(FIXED)]
    for _ in range(SWITCHING):
        place = int(random.integers(1, count))
        drawn.append(TrainingPlan(number, 0, "switching", (draw(),) * place + (draw(),) * (count - place)))
    for _ in range(LOOKING):
        look = (REFERENCE, PLAIN)[random.integers(2)]
        drawn.append(TrainingPlan(number, 0, "looking", (look,) + (draw(),) * (count - 1)))
    known = [
        TrainingPlan(number, training, kind, (action,) * count)
        for training in range(2 if number < TWICE else 1)
        for kind, action in (("reference", REFERENCE), ("plain", PLAIN))
    ]
    distinct = list({(plan.training, plan.actions): plan for plan in (*drawn, *known)}.values())
    return (
        distinct
        if agent is None
        else [*distinct, *(TrainingPlan(number, 0, "drawn", (), agent, i) for i in range(DRAWN))]
    )


def play(
    plan: TrainingPlan, precision: Precision, data_root: str | None, agent: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    """Train a task under a plan.

    Args:
        plan: the training.
        precision: number format of the network.
        data_root: folder of the data set; optional, defaults to the usual places.
        agent: contents of the agent's files, for a plan of kind `drawn`.

    Returns:
        The line of the log: observations before each choice and at the end, as `DEFAULT_FEATURES`; validation accuracy
        after each segment and development accuracy at the end, all in [0, 1]; at chance after a diverged training.
    """
    env = _environment(part_of(plan.task), precision, data_root)
    drawn = task(plan.task)
    observation, _ = env.reset(seed=plan.training, options={"task": drawn})
    observations, accuracies, diverged = [observation], [], False
    actions: list[tuple[int, ...]] = []
    player = None if agent is None or plan.agent is None else Agent.from_files(agent)
    random = np.random.default_rng([plan.task, 2, plan.draw])
    again = int(random.integers(1, len(SEGMENTS)))  # where a drawn one is drawn once more
    for segment in range(len(SEGMENTS)):
        if player is None:
            actions.append(plan.actions[segment])
        elif segment in (0, again):
            actions.append(_drawn(player, observation, random))
        else:
            actions.append(actions[-1])
        observation, _, terminated, _, info = env.step(actions[-1])
        observations.append(observation)
        accuracies.append(info["validation_accuracy"])
        diverged = info["diverged"]
        if terminated:
            break
    development = env.task_trainer.measure(["development"])["development"]
    return {
        **asdict(plan),
        "actions": actions if plan.agent is not None else plan.actions,
        "task_drawn": asdict(drawn),
        "observations": [
            [round(float(value), DIGITS) for value in row[: len(DEFAULT_FEATURES)]] for row in observations
        ],
        "validation": [round(accuracy, 5) for accuracy in accuracies],
        "development": round(development, 5),
        "diverged": diverged,
    }


@functools.cache
def _environment(part: str, precision: Precision, data_root: str | None) -> MixPolicyEnv:
    return environment(part, precision=precision, data_root=data_root)


def _drawn(agent: Agent, observation: NDArray[np.float32], random: np.random.Generator) -> tuple[int, ...]:
    """Draw an action by the agent's probabilities of each choice of each dimension."""
    return tuple(
        int(random.choice(len(choices), p=np.array([*choices.values()]) / sum(choices.values())))
        for choices in agent.probabilities(observation).values()
    )


def _identity(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what identifies a training of the log: its task, seed and actions, or the agent's draw."""
    agent = line.get("agent")
    what = tuple(map(tuple, line["actions"])) if agent is None else (agent, line["draw"])
    return (line["task"], line["training"], what)


if __name__ == "__main__":
    main()
