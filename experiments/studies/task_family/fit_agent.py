"""Fit an agent to the family's log without a search: action values by regression on 3,292 trainings of 310 tasks.

The agent that version 0.2 shipped (`policies/fashion`) is ahead of the best fixed policy by 1.69 points (+0.98 to
+2.41) on 100 unseen tasks (results/rehearsal; development images, 2 cores of an AMD EPYC).

    python experiments/studies/task_family/fit_agent.py --log experiments/results/family/episodes.jsonl --out runs/start
    python experiments/train_agent.py --preset family --start runs/start

Cross-validation measures how well the values predict held-out tasks, and the gain of choosing by them: on tasks of the
same kinds, and on each part of the family with values that were learned on the other parts.
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
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.agent.regression import Decisions, Episode, RegressionConfig, fit_values, follow_values
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.envs.observation import one_hot
from rlmix.envs.reference import standard_error
from rlmix.envs.rewards import score
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import (
    DATA,
    MENU,
    PARTS,
    SEGMENTS,
    part_of,
)

FOLDS = 5
MIN_TASKS = 10
MIN_POLICIES = 3  # of a task, for a choice among them


@dataclass(frozen=True)
class StartConfig:
    """Fit an agent to logged trainings."""

    log: str = "experiments/results/family/episodes.jsonl"
    """Log of task_family/collect.py."""
    seed: int = 0
    """RNG seed for networks and draws."""
    regression: RegressionConfig = field(default_factory=RegressionConfig)
    """Hyperparameters of the regression, of values and agent."""
    out: str = "runs/start"
    """Folder of agent.safetensors and agent.json, and of start.json, the cross-validation."""

    def __post_init__(self) -> None:
        require_at_least(self, seed=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/task_family/fit_agent", arguments) as call:
        config = call.parse(StartConfig, __doc__)
        log = Path(config.log)
        if not log.is_file():
            raise RunError(f"--log: there is no file {log}; task_family/collect.py writes one")
        with reject_incompatible(log):
            lines = LineLog(log).read()
            logged = episodes(lines)
            not_drawn = episodes([line for line in lines if line["kind"] != "drawn"])
        count = len({episode.task for episode in logged})
        if count < MIN_TASKS:
            raise RunError(
                f"{log}: expected trainings of at least {MIN_TASKS} tasks, got {count}; "
                "log more with task_family/collect.py"
            )
        torch.set_num_threads(1)
        with reject_incompatible(log):
            decisions, eval_set = Decisions.from_episodes(logged, MENU), Decisions.from_episodes(not_drawn, MENU)
        held_out = cross_validate(decisions, eval_set, config.regression, seed=config.seed)
        by_part = leave_one_group_out(decisions, eval_set, config.regression, seed=config.seed)
        values = fit_values(decisions, MENU, config.regression, seed=config.seed)
        torch.manual_seed(config.seed)
        policy = new_policy(MENU, [PPOConfig().hidden] * 2)
        loss = follow_values(policy, values, observations_of(logged), MENU, config.regression, seed=config.seed)
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
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        to_agent(policy, MENU, SEGMENTS, facts).save(out)
        result = {
            **facts,
            "regression": asdict(config.regression),
            "held_out_tasks": held_out,
            "held_out_parts": by_part,
            "loss_by_following": loss,
        }
        write_atomic(out / "start.json", (json.dumps(result, indent=2) + "\n").encode())
        print(f"{len(logged):,} trainings of {count} tasks; score: {DATA.validation_size:,} images' standard errors")
        for segment, share in enumerate(held_out["explained"]):
            print(f"  held-out tasks, choice {segment + 1}: {100 * share:.0f} % of the scores' variance explained")
        parts = [(f"part {name}", firsts) for name, firsts in by_part.items()]
        for title, firsts in (("tasks", held_out["first_choice"]), *parts):
            for name, (mean, width) in firsts.items():
                print(f"  held-out {title}, tried from the start, {name}: {format_interval(mean, width, signed=True)}")
        print(f"  the agent's actions against the best by their values: {loss:+.3f}\nwritten: {out}")


def episodes(lines: Sequence[dict[str, Any]]) -> list[Episode]:
    """Return the logged trainings, each scored against the reference of its task and seed; references score 0.

    A score is `MixPolicyEnv`'s reward `standing` on development images: the difference in standard errors of the
    reference's accuracy on the validation images, clipped. A diverged training counts up to its divergence.
    """
    references = {
        (line["task"], line["training"]): line["development"] for line in lines if line["kind"] == "reference"
    }
    logged = []
    for line in lines:
        reference = references.get((line["task"], line["training"]))
        if reference is None:
            continue
        actions = [tuple(action) for action in line["actions"]][: len(line["observations"]) - 1]
        rows = zip(line["observations"], [None, *actions[:-1]], strict=False)  # without the one at the training's end
        observations = np.array([[*row, *one_hot(before, MENU)] for row, before in rows], dtype=np.float32)
        scored = score(line["development"], reference, standard_error(reference, DATA.validation_size or 0))
        logged.append(Episode(line["task"], observations, actions, scored))
    return logged


def observations_of(logged: Sequence[Episode]) -> torch.Tensor:
    """Return every observation at which an action was chosen, `[N, O]`."""
    return torch.from_numpy(np.concatenate([episode.observations for episode in logged]))


def cross_validate(decisions: Decisions, eval_set: Decisions, config: RegressionConfig, *, seed: int) -> dict[str, Any]:
    """Score values that were learned on four fifths of the tasks on the remaining fifth, for every fifth.

    Args:
        decisions: decisions to learn values from.
        eval_set: decisions to evaluate them on, without draws of an agent that had learned from these tasks.
        config: regression of the values.
        seed: RNG seed for folds and networks.

    Returns:
        explained: explained share of the scores' variance, for the decision before each segment.
        first_choice: means and intervals over tasks of `_first_choices`.
    """
    tasks = np.random.default_rng(seed).permutation(np.unique(decisions.tasks))
    scores, values, segments = [], [], []
    firsts: list[dict[str, float]] = []
    for fold in range(FOLDS):
        fifth = tasks[fold::FOLDS].tolist()
        held = eval_set.among(fifth)
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


def leave_one_group_out(
    decisions: Decisions, eval_set: Decisions, config: RegressionConfig, *, seed: int
) -> dict[str, Any]:
    """Score first choices on each part of the family, with values that were learned on the other parts alone.

    The arguments are those of `cross_validate`.
    """
    tasks = np.unique(decisions.tasks).tolist()
    results = {}
    for part in PARTS:
        within = [task for task in tasks if part_of(task) == part]
        others = [task for task in tasks if part_of(task) != part]
        if within and others:
            held = eval_set.among(within)
            values = fit_values(decisions.among(others), MENU, config, seed=seed)
            _, cautious = values(held.observations, config.caution)
            results[part] = _over_tasks(_first_choices(held, cautious))
    return results


def _first_choices(held: Decisions, values: torch.Tensor) -> list[dict[str, float]]:
    """Compare the policies that were tried from the start of each task, for tasks with enough of them.

    Args:
        held: decisions on tasks that the values were not learned on.
        values: value of each action at each decision, `[N, A]`.

    Returns:
        For each task the score of the policy with the highest value, the mean score, and the highest score.
    """
    scores, choices = held.scores.numpy(), []
    value = values.gather(1, held.actions[:, None])[:, 0].numpy()
    for task in np.unique(held.tasks):
        tried = np.flatnonzero((held.tasks == task) & (held.segments == 0))
        tried = tried[np.unique(held.actions[tried].numpy(), return_index=True)[1]]  # each policy once
        if len(tried) >= MIN_POLICIES:
            choices.append(
                {
                    "of the highest value": float(scores[tried[value[tried].argmax()]]),
                    "all": float(scores[tried].mean()),
                    "the luckiest": float(scores[tried].max()),
                }
            )
    return choices


def _over_tasks(firsts: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    return {name: mean_interval([task[name] for task in firsts]) for name in firsts[0]} if firsts else {}


if __name__ == "__main__":
    main()
