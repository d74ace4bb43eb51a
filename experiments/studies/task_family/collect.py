"""Log trainings of many tasks under many policies, and measure how much of a result is the policy and how much chance.

Over 3,292 trainings of 310 tasks, 98 % of the variance between fixed policies on one task is the policy, the rest
chance (results/family; about three hours on 2 cores).

    python experiments/studies/task_family/collect.py --tasks 100 --out experiments/results/family

Every task of the family (`experiments/search/task_family.py`) is trained under the reference (CutMix on half of the
updates) and plainly, the first tasks from two seeds. From the first seed it is also trained under fixed policies of the
menu, under policies that switch once, and under policies that begin as one of those two and switch after the first
segment. With `--agent`, that agent draws the policy of a task, and another one at a later segment; such trainings
correct its values. The log has the observation at each segment's end, so that an agent can be fitted to it. Finished
trainings do not run again: the same command resumes.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.agent import Agent
from rlmix.agent.plots import png
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.training.config import Precision
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.experiments.comparison.runner import TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, StudyConfig
from rlmix.experiments.search.task_family import MENU, PARTS, PLAIN, REFERENCE, SEGMENTS
from rlmix.experiments.studies.task_family.recording import draw_action, record_training
from rlmix.experiments.studies.task_family.summary import markdown, plot_family, summarise_family

FIXED, SWITCHING, LOOKING = 2, 3, 2  # trainings of each task under drawn policies of each kind
DRAWN = 2  # trainings of each task under an agent's draws
TWICE = 20  # tasks whose reference and plain trainings run from two seeds, to measure chance


@dataclass(frozen=True)
class CollectConfig:
    """Train tasks of the family under many policies."""

    tasks: int = 100
    """Number of tasks of the family: 0, 1, 2, ..."""
    slow: int = 0
    """Number of additional tasks of the slow part."""
    bare: int = 0
    """Number of additional tasks of the network without normalisation."""
    agent: str | None = None
    """Folder of an agent under whose draws every task is also trained; optional, defaults to none."""
    study: Annotated[StudyConfig, UNPREFIXED] = field(default_factory=StudyConfig)
    out: str = "runs/family"
    """Folder of episodes.jsonl, the trainings finished so far."""

    def __post_init__(self) -> None:
        require_at_least(self, tasks=1, slow=0, bare=0)


@dataclass(frozen=True)
class TrainingPlan:
    """One training of a task.

    Attributes:
        task: number of the task.
        training: seed of the training.
        kind: reference, plain, fixed, switching, looking (reference or plain, then a switch after the first segment) or
            drawn.
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
        config = call.parse(CollectConfig, __doc__)
        agent = None if config.agent is None else Agent.load(config.agent)
        if agent is not None and ((agent.menu, agent.segments, agent.features) != (MENU, SEGMENTS, DEFAULT_FEATURES)):
            raise RunError(f"--agent: {config.agent} has another menu, other segments or features than the family")
        files = None if agent is None else agent.to_files()
        # Checksum of the weights alone, as in the committed logs.
        checksum = None if files is None else hashlib.sha256(files["agent.safetensors"]).hexdigest()
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        log = TrainingLog(out / "episodes.jsonl", lambda lines: {_identity(line): line for line in lines})
        counts = {"family": config.tasks, "slow": config.slow, "bare": config.bare}
        # All parts grow together, so that an interrupted log has some of each.
        order = sorted((number / count, part, number) for part, count in counts.items() for number in range(count))
        precision = resolve_precision("auto", resolve_device("cpu"))
        jobs = {
            _identity(asdict(plan)): functools.partial(play, plan, precision, config.study.data_root, files)
            for _, part, number in order
            for plan in plans(PARTS[part].first + number, checksum)
        }
        try:
            log.run(
                jobs, processes=config.study.processes, describe=lambda line: f"task {line['task']:<5} {line['kind']}"
            )
        finally:  # even if interrupted
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
    """Return the trainings of a task, always the same ones.

    Args:
        number: number of the task.
        agent: checksum of an agent; its draws are `DRAWN` further trainings.
    """
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
        first = (REFERENCE, PLAIN)[random.integers(2)]
        drawn.append(TrainingPlan(number, 0, "looking", (first,) + (draw(),) * (count - 1)))
    references = [
        TrainingPlan(number, training, kind, (action,) * count)
        for training in range(2 if number < TWICE else 1)
        for kind, action in (("reference", REFERENCE), ("plain", PLAIN))
    ]
    distinct = list({(plan.training, plan.actions): plan for plan in (*drawn, *references)}.values())
    if agent is None:
        return distinct
    return [*distinct, *(TrainingPlan(number, 0, "drawn", (), agent, i) for i in range(DRAWN))]


def play(
    plan: TrainingPlan, precision: Precision, data_root: str | None, agent: Mapping[str, bytes] | None = None
) -> dict[str, Any]:
    """Train a task under a plan, and return the line of the log.

    Args:
        plan: the training.
        precision: number format of the network.
        data_root: folder of the data set; optional, defaults to `$RLMIX_DATA`, else `~/.cache/rlmix/data`.
        agent: contents of the agent's files, for a plan of kind `drawn`.
    """
    player = None if agent is None or plan.agent is None else Agent.from_files(agent)
    random = np.random.default_rng([plan.task, 2, plan.draw])
    switch = int(random.integers(1, len(SEGMENTS)))  # segment at which an agent draws again
    drawn: list[tuple[int, ...]] = []

    def choose(segment: int, observation: NDArray[np.float32]) -> tuple[int, ...]:
        if player is None:
            return plan.actions[segment]
        drawn.append(draw_action(player, observation, random) if segment in (0, switch) else drawn[-1])
        return drawn[-1]

    line = {**asdict(plan), **record_training(plan.task, plan.training, choose, precision, data_root)}
    return line if plan.agent is not None else {**line, "actions": plan.actions}


def _identity(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the identity of a logged training: task, seed, and its actions or the agent's draw."""
    agent = line.get("agent")
    policy = tuple(map(tuple, line["actions"])) if agent is None else (agent, line["draw"])
    return (line["task"], line["training"], policy)


if __name__ == "__main__":
    main()
