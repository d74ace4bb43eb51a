"""Start an agent from the log of the study: a value of each action by regression, and an agent that follows it.

python experiments/studies/task_family/fit_agent.py --log experiments/results/family/episodes.jsonl --out runs/start
python experiments/train_agent.py --preset family --start runs/start

It says how well values that were learned on some tasks foretell others, and what choosing by them gains there: on tasks
of the same kinds, and on each kind of task by values that were learned on the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlmix.agent.config import PPOConfig
from rlmix.agent.ppo import Agent, new_policy
from rlmix.agent.regression import Decisions, Episode, RegressionConfig, fit_values, follow_values
from rlmix.classifier.files import LineLog, naming, write_atomic
from rlmix.envs.mix_policy import SCORE_LIMIT
from rlmix.envs.observation import one_hot
from rlmix.envs.reference import standard_error
from rlmix.experiments.comparison.intervals import mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import DATA, MENU, PARTS, SEGMENTS, part_of

FOLDS = 5
FEWEST_TASKS = 10
FEWEST_TRIED = 3  # policies of a task, for a choice among them


@dataclass(frozen=True)
class StartConfig:
    """Start an agent from logged trainings."""

    log: str = "experiments/results/family/episodes.jsonl"
    """Log of study_family.py."""
    seed: int = 0
    """Of networks and draws."""
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    """How values are learned and followed."""
    out: str = "runs/start"
    """Folder of agent.safetensors and agent.json, and of start.json, how well it foretells."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/task_family/fit_agent", arguments) as call:
        config = call.parse(StartConfig, __doc__)
        log = Path(config.log)
        if not log.is_file():
            raise RunError(f"--log: there is no file {log}; study_family.py writes one")
        if config.seed < 0:
            raise RunError(f"--seed must be at least 0, got {config.seed}")
        for name in ("members", "hidden", "steps"):
            if getattr(config.regression, name) < 1:
                raise RunError(f"--regression.{name} must be at least 1, got {getattr(config.regression, name)}")
        ranges = (
            *(("temperature", 1e-3, 1e3), ("learning_rate", 1e-9, 1.0)),
            *(("dropout", 0.0, 0.9), ("caution", 0.0, 1e3)),
        )
        for name, low, high in ranges:
            if not low <= getattr(config.regression, name) <= high:
                raise RunError(
                    f"--regression.{name.replace('_', '-')} must be from {low:g} to {high:g}, "
                    f"got {getattr(config.regression, name)}"
                )
        with reject_incompatible(log):
            lines = LineLog(log).read()
            logged = episodes(lines)
            undrawn = episodes([line for line in lines if line["kind"] != "drawn"])
        count = len({episode.task for episode in logged})
        if count < FEWEST_TASKS:
            raise RunError(f"{log} has trainings of {count} tasks; at least {FEWEST_TASKS} are needed")
        torch.set_num_threads(1)
        with reject_incompatible(log):
            decisions, judged = Decisions.of(logged, MENU), Decisions.of(undrawn, MENU)
        told = foretold(decisions, judged, config.regression, seed=config.seed)
        abroad = of_other_parts(decisions, judged, config.regression, seed=config.seed)
        values = fit_values(decisions, MENU, config.regression, seed=config.seed)
        torch.manual_seed(config.seed)
        policy = new_policy(MENU, [PPOConfig().hidden] * 2)
        loss = follow_values(policy, values, seen(logged), MENU, config.regression, seed=config.seed)
        facts = {
            "learned_by": "regression",
            "command": call.line,
            "trainings": len(logged),
            "tasks": count,
            "dataset": DATA.dataset,
            "image_size": DATA.image_size,
            "parts": {name: asdict(part) for name, part in PARTS.items()},
        }
        out = Path(config.out)
        with naming(out):
            out.mkdir(parents=True, exist_ok=True)
        Agent(policy, MENU, SEGMENTS, facts).save(out)
        result = {
            **facts,
            "regression": asdict(config.regression),
            "held_out_tasks": told,
            "held_out_parts": abroad,
            "loss_by_following": loss,
        }
        write_atomic(out / "start.json", (json.dumps(result, indent=2) + "\n").encode())
        print(f"{len(logged):,} trainings of {count} tasks; score: {DATA.validation_size:,} images' standard errors")
        for segment, share in enumerate(told["explained"]):
            print(f"  held-out tasks, choice {segment + 1}: {100 * share:.0f} % of the scores' variance foretold")
        for title, firsts in (("tasks", told["first_choice"]), *((f"part {name}", of) for name, of in abroad.items())):
            for name, (mean, width) in firsts.items():
                print(f"  held-out {title}, tried from the start, {name}: {mean:+.2f} ± {width:.2f}")
        print(f"  the agent's actions against the best by their values: {loss:+.3f}\nwritten: {out}")


def episodes(lines: Sequence[dict[str, Any]]) -> list[Episode]:
    """The logged trainings, each scored against the reference of its task and seed; references at 0.

    A score is as `MixPolicyEnv`'s reward `standing` has it, from development images: the difference in standard errors
    of measuring the reference on the validation images, limited. Of a training that diverged, what was seen and done
    until then.
    """
    references = {
        (line["task"], line["training"]): line["development"] for line in lines if line["kind"] == "reference"
    }
    found = []
    for line in lines:
        reference = references.get((line["task"], line["training"]))
        if reference is None:
            continue
        score = (line["development"] - reference) / standard_error(reference, DATA.validation_size or 0)
        actions = [tuple(action) for action in line["actions"]][: len(line["observations"]) - 1]
        rows = zip(line["observations"], [None, *actions[:-1]], strict=False)  # the last is of the training's end
        observations = np.array([[*row, *one_hot(before, MENU)] for row, before in rows], dtype=np.float32)
        found.append(Episode(line["task"], observations, actions, min(max(score, -SCORE_LIMIT), SCORE_LIMIT)))
    return found


def seen(logged: Sequence[Episode]) -> torch.Tensor:
    """Every observation at which an action was to be chosen, `[N, O]`."""
    return torch.from_numpy(np.concatenate([episode.observations for episode in logged]))


def foretold(decisions: Decisions, judged: Decisions, config: RegressionConfig, *, seed: int) -> dict[str, Any]:
    """What values learned on four fifths of the tasks say of the others, for every fifth.

    Args:
        decisions: that values are learned from.
        judged: that they are judged by: what an agent drew is not among them, for it had learned from these tasks.
        config: how values are learned.
        seed: of everything drawn.

    Returns:
        explained: share of the scores' variance, for each segment that a decision was made before.
        first_choice: as `_first_choices` has it, over all tasks.
    """
    tasks = np.random.default_rng(seed).permutation(np.unique(decisions.tasks))
    scores, values, segments = [], [], []
    firsts: list[dict[str, float]] = []
    for fold in range(FOLDS):
        fifth = tasks[fold::FOLDS].tolist()
        held = judged.among(fifth)
        rest = decisions.among([task for task in tasks.tolist() if task not in set(fifth)])
        expected, cautious = fit_values(rest, MENU, config, seed=seed)(held.observations, config.caution)
        scores.append(held.scores.numpy())
        values.append(expected.gather(1, held.actions[:, None])[:, 0].numpy())
        segments.append(held.segments)
        firsts += _first_choices(held, cautious)
    score, value, segment = map(np.concatenate, (scores, values, segments))
    explained = [
        1 - float(np.mean((score - value)[segment == place] ** 2) / score[segment == place].var())
        for place in range(len(SEGMENTS))
    ]
    return {"explained": explained, "first_choice": _over_tasks(firsts)}


def of_other_parts(decisions: Decisions, judged: Decisions, config: RegressionConfig, *, seed: int) -> dict[str, Any]:
    """What first choices on each part of the family score, by values that were learned on the other parts alone.

    Args as those of `foretold`.
    """
    tasks = np.unique(decisions.tasks).tolist()
    found = {}
    for part in PARTS:
        within = [task for task in tasks if part_of(task) == part]
        others = [task for task in tasks if part_of(task) != part]
        if within and others:
            held = judged.among(within)
            values = fit_values(decisions.among(others), MENU, config, seed=seed)
            _, cautious = values(held.observations, config.caution)
            found[part] = _over_tasks(_first_choices(held, cautious))
    return found


def _first_choices(held: Decisions, worth: torch.Tensor) -> list[dict[str, float]]:
    """What is tried from a task's start scores, for each task with enough of it.

    Args:
        held: tasks that values were not learned on.
        worth: of each action, at each decision, `[N, A]`.

    Returns:
        For each task the score of the policy that is worth most, of all of them, and of the luckiest.
    """
    scored, found = held.scores.numpy(), []
    told = worth.gather(1, held.actions[:, None])[:, 0].numpy()
    for task in np.unique(held.tasks):
        tried = np.flatnonzero((held.tasks == task) & (held.segments == 0))
        tried = tried[np.unique(held.actions[tried].numpy(), return_index=True)[1]]  # each policy once
        if len(tried) >= FEWEST_TRIED:
            found.append(
                {
                    "of the highest value": float(scored[tried[told[tried].argmax()]]),
                    "all": float(scored[tried].mean()),
                    "the luckiest": float(scored[tried].max()),
                }
            )
    return found


def _over_tasks(firsts: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    return {name: mean_interval([task[name] for task in firsts]) for name in firsts[0]} if firsts else {}


if __name__ == "__main__":
    main()
