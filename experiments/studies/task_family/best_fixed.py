"""Search the best single fixed policy for the family of tasks, mixtures of methods included: the agent's rival.

Result: 53 % clean, 25 % mixup, 20 % R-Mix and 2 % CutMix updates, 0.35 ± 0.36 points above the next of 24 candidates
over 48 tasks (results/fixed; 288 trainings, 15 minutes on 2 cores of an AMD EPYC).

    python experiments/studies/task_family/best_fixed.py --out experiments/results/fixed
    python experiments/studies/task_family/best_fixed.py --tasks one --from-menu 16 \\
        --out experiments/results/one_task/fixed

Candidates are the policies of the family's menu that are best in its log, and random mixtures: shares of clean updates
and of all methods of the menu, and label smoothing. Successive rounds train the remaining candidates on further tasks
of the family, all on the same ones, and keep the best by mean accuracy over all rounds on development images. With
`--tasks one` the tasks have 1,000 clean images and 1,000 updates. Finished trainings do not run again: the same command
resumes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import Precision
from rlmix.envs import TaskTrainer
from rlmix.envs.seeds import training_seed
from rlmix.experiments.comparison.intervals import mean_interval, paired_difference
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, StudyConfig
from rlmix.experiments.search.task_family import MENU, ONE_TASK, TASKS, environment, part_of
from rlmix.experiments.studies.task_family.fit_agent import episodes

FIRST_TASK = 100_000  # of the family; the log and the agent use those before it
SMOOTHING = (0.0, 0.1, 0.3)
KINDS = {"family": TASKS, "one": ONE_TASK}
ROUNDS = ((24, 4), (8, 12), (3, 32))  # (candidates, tasks of each); the best of a round are in the next one


@dataclass(frozen=True)
class FixedConfig:
    """Search the best single fixed policy of the family."""

    tasks: Literal["family", "one"] = "family"
    """Tasks that the policy is searched for: the family's, or 1,000 clean images for 1,000 updates."""
    log: str = "experiments/results/family/episodes.jsonl"
    """Log of task_family/collect.py, by which the menu's candidates are chosen."""
    from_menu: int = 8
    """Number of candidates from the menu; the others are mixtures."""
    seed: int = 0
    """RNG seed for the mixtures."""
    study: Annotated[StudyConfig, UNPREFIXED] = field(default_factory=StudyConfig)
    out: str = "runs/fixed"
    """Folder of trainings.jsonl, those finished so far, of results.json, and of policy.json, the best one."""

    def __post_init__(self) -> None:
        require_at_least(self, seed=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/task_family/best_fixed", arguments) as call:
        call.resume = call.line
        config = call.parse(FixedConfig, __doc__)
        if not 0 <= config.from_menu <= min(ROUNDS[0][0], len(MENU.actions())):
            raise RunError(f"--from-menu must be in [0, {len(MENU.actions())}], got {config.from_menu}")
        out, family_log = Path(config.out), Path(config.log)
        if not family_log.is_file():
            raise RunError(f"--log: there is no file {family_log}; task_family/collect.py writes one")
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        with reject_incompatible(family_log):
            left = best_of_menu(LineLog(family_log).read(), config.from_menu)
        left += mixtures(ROUNDS[0][0] - len(left), seed=config.seed)
        log = TrainingLog(
            out / "trainings.jsonl", functools.partial(_index, kind=config.tasks, path=out / "trainings.jsonl")
        )
        precision = resolve_precision("auto", resolve_device("cpu"))
        first, rounds = FIRST_TASK, []
        for count, tasks in ROUNDS:
            left = left[:count]
            jobs = {
                (_key(policy), task): functools.partial(
                    play, policy, task, config.tasks, precision, config.study.data_root
                )
                for task in range(first, first + tasks)
                for policy in left
            }
            log.run(jobs, processes=config.study.processes, describe=lambda line: f"task {line['task']}")
            first += tasks
            scores = {
                _key(policy): [log.finished[_key(policy), task]["development"] for task in range(FIRST_TASK, first)]
                for policy in left
            }
            left.sort(key=lambda policy: -float(np.mean(scores[_key(policy)])))
            rounds.append(ranking(left, scores))
        trainings = sum(count * tasks for count, tasks in ROUNDS)
        facts = {"learned_by": "search_fixed", "command": call.line, "trainings": trainings}
        PolicySchedule(PolicySchedule.fixed(left[0]).segments, facts).save(out / "policy.json")
        result = {"command": call.line, "machine": machine(), "trainings": trainings, "rounds": rounds}
        write_atomic(out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
        for entry in rounds[-1]:
            print(f"  {100 * entry['mean']:.2f} %  {MixPolicy.from_json(entry['policy'])}")
        print(f"written: {out}/policy.json, results.json, trainings.jsonl")


def _index(lines: Sequence[Line], *, kind: str, path: Path) -> dict[tuple[str, int], Line]:
    """Return the log's trainings by policy and task.

    Raises:
        RunError: they are of other tasks.
    """
    for line in lines:
        if line["task_drawn"] != KINDS[kind].task(line["task"]).to_json():
            raise RunError(f"{path} holds trainings of other tasks than --tasks {kind}; choose another --out")
    return {(line["policy"], line["task"]): line for line in lines}


def best_of_menu(lines: Sequence[dict[str, Any]], count: int) -> list[MixPolicy]:
    """Return the menu's policies with the highest mean score of fixed trainings in the log, for the part `family`.

    Policies without a training come last. An agent's draws do not count: it drew policies for tasks that suit them.

    Args:
        lines: lines of the log.
        count: number of policies.
    """
    scores: dict[tuple[int, ...], list[float]] = {action: [] for action in MENU.actions()}
    for episode in episodes([line for line in lines if line["kind"] != "drawn"]):
        if len(set(episode.actions)) == 1 and part_of(episode.task) == "family":
            scores[episode.actions[0]].append(episode.score)
    best = sorted(scores, key=lambda action: -np.mean(scores[action]) if scores[action] else np.inf)
    return [MENU.policy(action) for action in best[:count]]


def mixtures(count: int, *, seed: int) -> list[MixPolicy]:
    """Draw mixtures of the menu's methods with uniform shares, and label smoothing."""
    random = np.random.default_rng(seed)
    methods = sorted({method for _, shares in MENU.sources for method in shares})
    drawn = []
    for _ in range(count):
        shares = random.dirichlet(np.ones(len(methods))).round(2)
        shares[shares.argmax()] += 1 - shares.sum()
        named = {method: round(float(share), 2) for method, share in zip(methods, shares, strict=True) if share > 0}
        drawn.append(MixPolicy(named, label_smoothing=float(random.choice(SMOOTHING))))
    return drawn


def ranking(policies: Sequence[MixPolicy], scores: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return the policies in the given order, each with its mean accuracy and its distance to the first one."""
    first = scores[_key(policies[0])]
    return [
        {
            "policy": policy.to_json(),
            "mean": mean_interval(scores[_key(policy)])[0],
            "behind": paired_difference(first, scores[_key(policy)]),
            "tasks": len(first),
        }
        for policy in policies
    ]


def play(policy: MixPolicy, task: int, kind: str, precision: Precision, data_root: str | None) -> dict[str, Any]:
    """Train a task of a kind, a key of `KINDS`, under one policy, and return the line of the log."""
    trainer, drawn = _task_trainer(precision, data_root), KINDS[kind].task(task)
    trainer.run(PolicySchedule.fixed(policy), drawn, training_seed(task))
    accuracy = trainer.measure(["development"])
    return {"policy": _key(policy), "task": task, "task_drawn": drawn.to_json(), **accuracy}


def _key(policy: MixPolicy) -> str:
    return json.dumps(policy.to_json())


@functools.cache
def _task_trainer(precision: Precision, data_root: str | None) -> TaskTrainer:
    return environment(precision=precision, data_root=data_root).task_trainer


if __name__ == "__main__":
    main()
