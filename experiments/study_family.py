"""Which policy is best on which task, and how much of it is chance: fixed, switching and random policies, logged.

python experiments/study_family.py --tasks 100 --out experiments/results/family

Every task of the family (`experiments/family.py`) is trained under the reference (CutMix on half of the updates) and
plainly, the first tasks from two seeds, and from the first seed under fixed policies of the menu and under policies
that switch once. The log keeps what an agent would have seen at each segment's end, so that an agent can be started
from it. Trainings that have finished are not run again: the same command goes on.
"""

from __future__ import annotations

import functools
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from classifier.files import write_atomic
from classifier.hardware import resolve_device, resolve_precision
from envs import MixPolicyEnv
from envs.observation import FEATURES
from experiments.charts import png
from experiments.family import FIRST_SLOW, MENU, PLAIN, REFERENCE, SEGMENTS, environment, task
from experiments.family_summary import markdown, picture, summary
from experiments.parallel import run_all
from experiments.run_folder import LineLog, RunError, interrupt_on_sigterm, machine, user_errors

COMMAND = "python experiments/study_family.py"
FIXED, SWITCHING = 2, 3  # trainings of each task under drawn policies of each kind
TWICE = 20  # tasks whose reference and plain trainings are run from two seeds, to tell what chance does
DIGITS = 4  # of a feature, as it is kept


@dataclass(frozen=True)
class StudyConfig:
    """Train tasks of the family under many policies."""

    tasks: int = 100
    """Tasks 0, 1, 2, ... of the family."""
    slow: int = 0
    """Tasks of its slow part besides."""
    data_root: str | None = None
    """Folder where the data set lies; none looks in the usual places, then downloads."""
    processes: int = 2
    """Trainings at a time, one thread each."""
    out: str = "runs/family"
    """Folder of episodes.jsonl, the trainings finished so far."""


@dataclass(frozen=True)
class Plan:
    """One training of a task.

    Attributes:
        task: number of the task.
        training: seed of the training.
        kind: reference, plain, fixed or switching.
        actions: of each segment.
    """

    task: int
    training: int
    kind: str
    actions: tuple[tuple[int, ...], ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    interrupt_on_sigterm()
    arguments = sys.argv[1:] if arguments is None else arguments
    command = shlex.join([*COMMAND.split(), *arguments])
    with user_errors(command):
        config = tyro.cli(StudyConfig, args=arguments, description=__doc__)
        for name, least in (("tasks", 1), ("slow", 0), ("processes", 1)):
            if getattr(config, name) < least:
                raise RunError(f"--{name} must be at least {least}, got {getattr(config, name)}")
        out = Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        log = LineLog(out / "episodes.jsonl")
        finished = log.read()
        log.keep(len(finished))
        seen = {(line["task"], line["training"], _hashable(line["actions"])) for line in finished}
        numbers = [*range(config.tasks), *range(FIRST_SLOW, FIRST_SLOW + config.slow)]
        wanted = [plan for number in numbers for plan in plans(number)]
        missing = [plan for plan in wanted if (plan.task, plan.training, plan.actions) not in seen]
        print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them finished before", flush=True)
        precision = resolve_precision("auto", resolve_device("cpu"))
        jobs = [functools.partial(play, plan, precision, config.data_root) for plan in missing]
        try:
            for done, line in enumerate(run_all(jobs, config.processes), start=len(wanted) - len(missing) + 1):
                log.append(line)
                finished.append(line)
                print(f"{done:>6} of {len(wanted)}  task {line['task']:<5} {line['kind']}", flush=True)
        finally:  # however far it came
            write(out, finished, command)


def write(out: Path, lines: Sequence[dict[str, Any]], command: str) -> None:
    """Write what the trainings so far say: results.json, results.md and results.png."""
    result = {"command": command, "machine": machine(), **summary(lines)}
    for name, content in (
        ("results.json", (json.dumps(result, indent=2) + "\n").encode()),
        ("results.md", markdown(result).encode()),
        ("results.png", png(picture(lines))),
    ):
        write_atomic(out / name, content)
    print(f"\n{markdown(result)}\nwritten: {out}/results.json, results.md, results.png")


def plans(number: int) -> list[Plan]:
    """The trainings of a task; always the same ones."""
    random = np.random.default_rng([number, 1])
    choices = MENU.actions()
    count = len(SEGMENTS)

    def draw() -> tuple[int, ...]:
        return choices[random.integers(len(choices))]

    drawn = [Plan(number, 0, "fixed", (draw(),) * count) for _ in range(FIXED)]
    for _ in range(SWITCHING):
        place = int(random.integers(1, count))
        drawn.append(Plan(number, 0, "switching", (draw(),) * place + (draw(),) * (count - place)))
    known = [
        Plan(number, training, kind, (action,) * count)
        for training in range(2 if number < TWICE else 1)
        for kind, action in (("reference", REFERENCE), ("plain", PLAIN))
    ]
    return list({(plan.training, plan.actions): plan for plan in (*drawn, *known)}.values())


def play(plan: Plan, precision: str, data_root: str | None) -> dict[str, Any]:
    """Train a task under a plan.

    Returns:
        The line of the log: what was seen before each choice and at the end, as `FEATURES`; validation accuracy after
        each segment and development accuracy at the end, all in [0, 1]; at chance after a diverged training.
    """
    env = _environment(precision, data_root)
    drawn = task(plan.task)
    observation, _ = env.reset(seed=plan.training, options={"task": drawn})
    seen, accuracies, diverged = [observation], [], False
    for action in plan.actions:
        observation, _, terminated, _, info = env.step(action)
        seen.append(observation)
        accuracies.append(info["validation_accuracy"])
        diverged = info["diverged"]
        if terminated:
            break
    development = 1 / env.trainer.num_classes if diverged else env.trainer.evaluate("development").accuracy
    return {
        **asdict(plan),
        "task_drawn": asdict(drawn),
        "observations": [[round(float(value), DIGITS) for value in row[: len(FEATURES)]] for row in seen],
        "validation": [round(accuracy, 5) for accuracy in accuracies],
        "development": round(development, 5),
        "diverged": diverged,
    }


@functools.cache
def _environment(precision: str, data_root: str | None) -> MixPolicyEnv:
    return environment(precision=precision, data_root=data_root)


def _hashable(actions: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(action) for action in actions)


if __name__ == "__main__":
    main()
