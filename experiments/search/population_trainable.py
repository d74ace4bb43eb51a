"""A member of a population: one classifier training, a segment a step, as Ray Tune's schedulers drive it.

Ray is needed to import this. Actors are reused: another member's configuration and weights go into the same trainer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from ray import tune

from rlmix.agent.workers import episode_seed
from rlmix.classifier.data import split
from rlmix.classifier.files import load_state, save_state
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import DIMENSIONS
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.search.config import SearchConfig
from rlmix.experiments.search.plan import Search

STATE = "member.safetensors"


class Member(tune.Trainable):
    """Trains task 0 of a search's; its configuration has the following entries.

    - `number`: its seed follows from it; a scheduler that copies another member's configuration copies it too.
    - `perturbed`: whether a segment's action is read from the entries of `DIMENSIONS`, which a scheduler changes,
      rather than from `plan`.
    - `plan`: an action for each segment.

    What it reports besides validation accuracy in [0, 1]: `actions`, those that led to its present weights, whoever
    made them, and `lineage`, the trials that made them.
    """

    def setup(self, config: dict[str, Any], agent: dict[str, Any]) -> None:
        """Load the data and build the trainer.

        Args:
            config: see the class.
            agent: the search's setting, fields of `SearchConfig`.
        """
        self._search = Search.from_config(stored_config(SearchConfig, agent))
        torch.set_num_threads(self._search.share.threads)
        setting = self._search.config
        self._task = self._search.tasks.task(0)
        data = split(setting.data.load(), validation_size=setting.data.validation_size)
        self._trainer = Trainer(self._task.training(self._search.training), self._task.draw(data))
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another member, at the start of its training; a checkpoint, if there is one, is loaded next."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one segment and evaluate; on all validation images after the last."""
        segment, ends = len(self._actions), self._search.segments
        entry = self._entry
        action = [entry[dimension] for dimension in DIMENSIONS] if entry["perturbed"] else entry["plan"][segment]
        end = round(ends[segment] * self._task.updates)
        stretch = self._trainer.train(self._search.menu.policy(action), end - self._trainer.updates_done)
        self._actions.append([int(index) for index in action])
        self._lineage.append(self.trial_id)
        last = len(self._actions) == len(ends)
        accuracy = 1 / self._trainer.num_classes
        if not stretch.diverged:
            limit = None if last else self._search.config.validation_limit
            evaluation = self._trainer.evaluate("validation", limit=limit)
            if math.isfinite(evaluation.loss):
                accuracy = evaluation.accuracy
        return {
            "validation_accuracy": accuracy,
            "actions": list(self._actions),
            "lineage": list(self._lineage),
            "done": last,
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the training and its history into a folder."""
        state = {"trainer": self._trainer.state_dict(), "actions": self._actions, "lineage": self._lineage}
        save_state(Path(checkpoint_dir) / STATE, state)

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Go on with the training of a checkpoint, one's own or another member's."""
        state = load_state(Path(checkpoint_dir) / STATE)
        self._trainer.load_state_dict(state["trainer"])
        self._actions, self._lineage = state["actions"], state["lineage"]

    def _start(self, config: dict[str, Any]) -> None:
        self._entry = config
        seed = episode_seed(self._search.config.seed, "search", 0, config["number"])
        self._trainer.reset(seed, updates=self._task.updates)
        self._actions: list[list[int]] = []
        self._lineage: list[str] = []
