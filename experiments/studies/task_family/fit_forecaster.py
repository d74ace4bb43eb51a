"""Fit the forecaster by which a budget of several trainings is spent, to the family's log.

    python experiments/studies/task_family/fit_forecaster.py --out experiments/policies/shipped

It sees what the shipped agent sees, and tells which of several trainings of one task will be best. Its file says how
far results were from their forecasts on tasks that it had not learned from, before each segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlmix.agent.forecasting import fit_forecaster
from rlmix.agent.regression import Decisions, Episode, RegressionConfig
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import LineLog, with_filename
from rlmix.envs.observation import DEFAULT_FEATURES, one_hot
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import MENU, SEGMENTS


@dataclass(frozen=True)
class ForecasterConfig:
    """Fit a forecaster to logged trainings."""

    log: str = "experiments/results/family/episodes.jsonl"
    """Log of task_family/collect.py."""
    seed: int = 0
    """RNG seed for networks and draws."""
    regression: RegressionConfig = field(default_factory=lambda: RegressionConfig(steps=1500))
    """Hyperparameters of the networks; caution and temperature are not used."""
    out: str = "runs/forecaster"
    """Folder of forecaster.safetensors and forecaster.json."""

    def __post_init__(self) -> None:
        require_at_least(self, seed=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/task_family/fit_forecaster", arguments) as call:
        config = call.parse(ForecasterConfig, __doc__)
        log = Path(config.log)
        if not log.is_file():
            raise RunError(f"--log: there is no file {log}; task_family/collect.py writes one")
        torch.set_num_threads(1)
        with reject_incompatible(log):
            logged = episodes(LineLog(log).read())
            decisions = Decisions.from_episodes(logged, MENU)
            facts = {"command": call.line, "trainings": len(logged), "tasks": len(np.unique(decisions.tasks))}
            forecaster = fit_forecaster(
                decisions, MENU, SEGMENTS, DEFAULT_FEATURES, config.regression, seed=config.seed, facts=facts
            )
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        forecaster.save(out)
        print(f"{facts['trainings']:,} trainings of {facts['tasks']} tasks; points, on tasks not learned from")
        for number, measured in enumerate(forecaster.provenance["held_out_tasks"]):
            print(
                f"  before segment {number + 1}: results differ by {measured['spread']:.2f} within a task, and from "
                f"their forecasts by {measured['error']:.2f}"
            )
        print(f"written: {out}")


def episodes(lines: Sequence[dict[str, Any]]) -> list[Episode]:
    """Return the trainings of each task's first seed, scored by accuracy on development images, in points."""
    logged = []
    for line in lines:
        if line["training"] == 0:
            actions = [tuple(action) for action in line["actions"]][: len(line["observations"]) - 1]
            rows = zip(line["observations"], [None, *actions[:-1]], strict=False)  # without the one at the end
            observations = np.array([[*row, *one_hot(before, MENU)] for row, before in rows], dtype=np.float32)
            logged.append(Episode(line["task"], observations, actions, 100 * line["development"]))
    return logged


if __name__ == "__main__":
    main()
