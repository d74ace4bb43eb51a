"""Member of a population on a Ray cluster: one classifier training, one segment per step, for Ray Tune's schedulers.

Importing this needs Ray. Actors are reused: another member's configuration and weights are loaded into the same
trainer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ray import tune

from rlmix.agent.workers import episode_seed
from rlmix.classifier.files import load_state, save_state
from rlmix.envs import DIMENSIONS, MixPolicyEnv
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.search.config import SearchConfig
from rlmix.experiments.search.plan import Search

STATE = "member.safetensors"


class Member(tune.Trainable):
    """Training of task 0 of a search. Its configuration has the following entries.

    - `number`: number of the member, which determines its seed; copied with another member's configuration.
    - `perturbed`: whether a segment's action is read from the entries of `DIMENSIONS`, which a scheduler changes,
      rather than from `plan`.
    - `plan`: an action for each segment.

    It reports validation accuracy in [0, 1], at chance if the training diverged; `actions`, those that led to its
    present weights, whichever member took them; and `lineage`, the trials that took them.
    """

    _actions: list[list[int]]
    _lineage: list[str]

    def setup(self, config: dict[str, Any], agent: dict[str, Any]) -> None:  # type: ignore[override]  # Ray's own way
        """Load the data and build the trainer.

        Args:
            config: configuration of the member, see the class.
            agent: setting of the search, as fields of `SearchConfig`.
        """
        self._search = Search.from_config(stored_config(SearchConfig, agent))
        torch.set_num_threads(self._search.share.threads)
        self._task = self._search.tasks.task(0)
        self._trainer = MixPolicyEnv(**self._search.environment(None)).task_trainer
        self._start(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Become another member, at the start of its training; a checkpoint, if there is one, is loaded next."""
        self._start(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one segment and evaluate; after the last one, on all validation images."""
        segment, ends = len(self._actions), self._search.segments
        entry = self._entry
        action = [entry[dimension] for dimension in DIMENSIONS] if entry["perturbed"] else entry["plan"][segment]
        end = round(ends[segment] * self._task.updates)
        result = self._trainer.train_segment(self._search.menu.policy(action), end)
        self._actions.append([int(index) for index in action])
        self._lineage.append(self.trial_id)
        return {
            "validation_accuracy": result.evaluation.accuracy,
            "actions": list(self._actions),
            "lineage": list(self._lineage),
            "done": len(self._actions) == len(ends),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the training and its history into a folder."""
        state = {"trainer": self._trainer.trainer.state_dict(), "actions": self._actions, "lineage": self._lineage}
        save_state(Path(checkpoint_dir) / STATE, state)

    def load_checkpoint(self, checkpoint_dir: Any) -> None:
        """Continue the training of a checkpoint, its own or another member's."""
        state = load_state(Path(checkpoint_dir) / STATE)
        self._trainer.trainer.load_state_dict(state["trainer"])
        self._actions, self._lineage = state["actions"], state["lineage"]

    def _start(self, config: dict[str, Any]) -> None:
        self._entry = config
        seed = episode_seed(self._search.config.seed, "search", 0, config["number"])
        self._trainer.start(self._task, seed)
        self._actions, self._lineage = [], []
