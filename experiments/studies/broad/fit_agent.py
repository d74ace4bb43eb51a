"""Fit an agent that is to hold on data never seen, and the forecaster of budgets, to recorded trainings of many tasks.

    python experiments/studies/broad/fit_agent.py --out runs/broad_agent

Ridge regression finds the value of a state and the advantage of each action over plain training; an actor follows the
advantages, less its caution. Two things are measured on trainings that a fit has not seen, with whole data sets left
out: how well forecasts and results of one task agree, and what choosing the better one of two recorded trainings of a
task by their forecasts at the start is worth, beside choosing by each policy's mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlmix.agent.config import PPOConfig
from rlmix.agent.forecasting import MOST, RidgeConfig, fit_forecaster, fit_within_tasks, groups_of, within_reach
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.agent.regression import Decisions, RegressionConfig, follow_values
from rlmix.agent.values import ActionValues, LinearValue
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.logs import CHOICES, FEATURES, TASKS_OF_A_LOG, episode_of, read_logs

LOGS = ("broad/learn.jsonl", "broad/longer.jsonl", "family/episodes.jsonl")  # not those to rehearse on


@dataclass(frozen=True)
class FitConfig:
    """Fit an agent and a forecaster to recorded trainings."""

    logs: tuple[str, ...] = tuple(f"experiments/results/{name}" for name in LOGS)
    """Logs of studies/broad/record.py and studies/task_family/collect.py."""
    weights: tuple[float, ...] = (1.0, 1.0, 0.3)
    """Weight of a training of each log: tasks of one data set count less each."""
    seed: int = 0
    """RNG seed for bootstrap samples, networks and draws."""
    ridge: RidgeConfig = field(default_factory=RidgeConfig)
    """Hyperparameters of values and forecaster."""
    follow: RegressionConfig = field(default_factory=lambda: RegressionConfig(temperature=0.5))
    """Caution, temperature, steps and learning rate of the agent that follows the values; the others are not used."""
    out: str = "runs/broad_agent"
    """Folder of the agent's and the forecaster's files, and of start.json, the cross-validation."""

    def __post_init__(self) -> None:
        require_at_least(self, seed=0)
        if len(self.logs) != len(self.weights) or not all(0 < weight < float("inf") for weight in self.weights):
            raise RunError(
                f"--weights: expected a number above 0 for each of {len(self.logs)} logs, got {self.weights}"
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/fit_agent", arguments) as call:
        config = call.parse(FitConfig, __doc__)
        torch.set_num_threads(1)
        decisions, data_sets = read_decisions(config)
        facts: dict[str, Any] = {
            "learned_by": "regression",
            "command": call.line,
            "trainings": round(float(decisions.weights.sum())),
            "tasks": len(np.unique(decisions.tasks)),
            "data_sets": sorted(set(data_sets.tolist())),
        }
        weighted = replace(decisions, weights=decisions.weights * _log_weights(decisions, config))
        held_out = leave_data_sets_out(weighted, data_sets, config)
        forecaster = fit_forecaster(weighted, MENU, SEGMENTS, FEATURES, config.ridge, seed=config.seed, facts=facts)
        torch.manual_seed(config.seed)
        policy = new_policy(MENU, [PPOConfig().hidden] * 2, FEATURES)
        advantages = advantages_of(forecaster.values)
        loss = follow_values(policy, advantages, decisions.observations, MENU, config.follow, seed=config.seed)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        to_agent(policy, MENU, SEGMENTS, facts, FEATURES).save(out)
        forecaster.save(out)
        result = {
            **facts,
            "ridge": asdict(config.ridge),
            "caution": config.follow.caution,
            "temperature": config.follow.temperature,
            "left_out_data_sets": held_out,
            "held_out_tasks": forecaster.provenance["held_out_tasks"],
            "loss_by_following": round(loss, 4),
        }
        write_atomic(out / "start.json", (json.dumps(result, indent=2) + "\n").encode())
        _report(result)
        print(f"written: {out}")


def read_decisions(config: FitConfig) -> tuple[Decisions, NDArray[np.str_]]:
    """Return the decisions of all logs, and the data set of each.

    Raises:
        RunError: a log is missing or damaged, or all are of one data set.
    """
    recorded = read_logs(config.logs)
    sets = {task: name for one in recorded for task, name in one.data_sets.items()}
    kept = [episode_of(training) for one in recorded for training in one.trainings]
    if len({sets[episode.task] for episode in kept}) < 2:
        raise RunError(f"--logs: expected trainings of at least two data sets, got {', '.join(set(sets.values()))}")
    decisions = Decisions.from_episodes(kept, MENU)
    return decisions, np.array([sets[task] for task in decisions.tasks])


def advantages_of(values: ActionValues) -> ActionValues:
    """Return the advantages over the menu's first action, whose own is 0 for every member."""
    networks = [network.without_state() for network in values.networks if isinstance(network, LinearValue)]
    return ActionValues(values.effects, values.mean, values.spread, networks)


def leave_data_sets_out(decisions: Decisions, data_sets: NDArray[np.str_], config: FitConfig) -> dict[str, Any]:
    """Measure forecasts on each data set by values that were learned on the others.

    Returns:
        `correlation` of forecasts and results within a task, before each segment; `chosen` and `by_policy`, mean and
        half a 95 % interval over tasks, in points: gain over a coin by choosing between two trainings of a task by
        their forecasts at the start, and by each policy's mean.
    """
    told, by_policy = np.zeros(len(data_sets), dtype=np.float32), np.zeros(len(data_sets), dtype=np.float32)
    scores, actions, groups = decisions.scores.numpy(), decisions.actions.numpy(), groups_of(decisions)
    above = within_reach(decisions, groups)
    for members in groups:
        above[members] -= above[members].mean()
    for name in np.unique(data_sets):
        held, others = np.flatnonzero(data_sets == name), np.flatnonzero(data_sets != name)
        learned = decisions.among(np.unique(decisions.tasks[others]).tolist())
        values = fit_within_tasks(learned, MENU, FEATURES, config.ridge, seed=config.seed)
        mean = values.of_members(decisions.observations[torch.from_numpy(held)]).mean(dim=0).numpy()
        told[held] = mean[np.arange(len(held)), actions[held]]
        starts = others[decisions.segments[others] == 0]
        weights = decisions.weights.numpy()[starts]
        sums, counts = (np.bincount(actions[starts], part, len(CHOICES)) for part in (weights * above[starts], weights))
        by_policy[held] = (sums / np.maximum(counts, 1e-9))[actions[held]]
    several = [members for members in groups if len(members) > 1]
    correlations = []
    for segment in range(len(SEGMENTS)):
        pairs = [
            np.stack([told[members] - told[members].mean(), above[members]])
            for members in several
            if decisions.segments[members[0]] == segment
        ]
        correlations.append(round(float(np.corrcoef(np.concatenate(pairs, axis=1))[0, 1]), 3) if pairs else None)
    first = [members for members in several if decisions.segments[members[0]] == 0 and np.ptp(actions[members])]
    gains = {
        name: [
            gain
            for members in first
            if (gain := _pair_gain(by[members], scores[members], actions[members])) is not None
        ]
        for name, by in (("chosen", told), ("by_policy", by_policy))
    }
    return {"correlation": correlations, **{name: mean_interval(found) for name, found in gains.items()}}


def _pair_gain(told: NDArray[np.float32], scores: NDArray[np.float32], actions: NDArray[np.int64]) -> float:
    """Return the mean over pairs of trainings of the gain of the one with the higher forecast over their mean."""
    one, other = np.triu_indices(len(told), 1)
    differ = actions[one] != actions[other]
    difference = (scores[one] - scores[other]).clip(-MOST, MOST)[differ]
    return float(np.mean(np.sign(told[one] - told[other])[differ] * difference) / 2)


def _log_weights(decisions: Decisions, config: FitConfig) -> torch.Tensor:
    return torch.tensor(config.weights)[torch.from_numpy(decisions.tasks // TASKS_OF_A_LOG)]


def _report(result: Mapping[str, Any]) -> None:
    left_out = result["left_out_data_sets"]
    print(f"{result['trainings']:,} trainings of {result['tasks']} tasks over {len(result['data_sets'])} data sets")
    print("left-out data sets: correlation within a task before each segment", *left_out["correlation"])
    for name, title in (("chosen", "by forecast"), ("by_policy", "by each policy's mean")):
        print(
            f"  better of two trainings at the start, {title}: {format_interval(*left_out[name], signed=True)} points"
        )
    for number, measured in enumerate(result["held_out_tasks"]):
        print(
            f"  before segment {number + 1}: results differ by {measured['spread']:.2f} within a task, and from their "
            f"forecasts by {measured['error']:.2f}"
        )
    print(f"  the agent's actions against the best by their bounds: {result['loss_by_following']:+.3f} points")


if __name__ == "__main__":
    main()
