"""Fit the forecaster by which a budget of several trainings is spent, to recorded trainings of broad tasks.

    python experiments/studies/broad/fit_forecaster.py --out experiments/policies/shipped

It tells which of several trainings of one task will be best. Its file says how far results were from their forecasts on
tasks that it had not learned from, before each segment. It sees observation v2 without signs of wrong labels and
without earlier segments, so that nothing has to be measured for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlmix.agent.forecasting import fit_forecaster
from rlmix.agent.regression import Decisions, Episode, RegressionConfig
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import LineLog, with_filename
from rlmix.envs.observation import RECORDED_FEATURES, one_hot
from rlmix.envs.transfer_features import LABEL_FEATURES
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.record import CHOICES

FEATURES = tuple(name for name in RECORDED_FEATURES if name not in LABEL_FEATURES)


@dataclass(frozen=True)
class ForecasterConfig:
    """Fit a forecaster to recorded trainings."""

    log: str = "experiments/results/broad/learn.jsonl"
    """Log of studies/broad/record.py; the meaning of its numbers lies beside it, in a .json of this name."""
    seed: int = 0
    """RNG seed for networks and draws."""
    regression: RegressionConfig = field(default_factory=lambda: RegressionConfig(steps=600, hidden=64, dropout=0.2))
    """Hyperparameters of the networks; caution and temperature are not used."""
    out: str = "runs/forecaster"
    """Folder of forecaster.safetensors and forecaster.json."""

    def __post_init__(self) -> None:
        require_at_least(self, seed=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/fit_forecaster", arguments) as call:
        config = call.parse(ForecasterConfig, __doc__)
        log = Path(config.log)
        if not log.is_file() or not log.with_suffix(".json").is_file():
            raise RunError(
                f"--log: expected {log} and {log.with_suffix('.json').name}; studies/broad/record.py writes both"
            )
        torch.set_num_threads(1)
        with reject_incompatible(log):
            logged = episodes(LineLog(log).read(), json.loads(log.with_suffix(".json").read_bytes()))
            decisions = Decisions.from_episodes(logged, MENU)
            facts = {"command": call.line, "trainings": len(logged), "tasks": len(np.unique(decisions.tasks))}
            forecaster = fit_forecaster(
                decisions, MENU, SEGMENTS, FEATURES, config.regression, seed=config.seed, facts=facts
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


def episodes(lines: Sequence[Mapping[str, Any]], meaning: Mapping[str, Any]) -> list[Episode]:
    """Return recorded trainings, scored by accuracy on development images, in points.

    Args:
        lines: lines of the log.
        meaning: names of their numbers.
    """
    names = [*meaning["known"], *meaning["rows"]]
    places = [names.index(name) for name in FEATURES]
    logged = []
    for line in lines:
        actions = [CHOICES[choice] for choice in line["policies"]][: len(line["rows"]) - 1]
        rows = zip(line["rows"], [None, *actions[:-1]], strict=False)  # without the one at the end
        seen = [
            [*np.array([*line["known"], *row], dtype=np.float32)[places], *one_hot(before, MENU)]
            for row, before in rows
        ]
        observations = np.array(seen, dtype=np.float32)
        logged.append(Episode(line["task"], observations, actions, 100 * line["development"]))
    return logged


if __name__ == "__main__":
    main()
