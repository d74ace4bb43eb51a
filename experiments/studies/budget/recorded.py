"""Recorded trainings of a task under every fixed policy, as a table that methods of choosing can be tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.agent import Agent
from rlmix.agent.budget import Step, StepResult
from rlmix.agent.regression import Episode
from rlmix.classifier.errors import InputError
from rlmix.envs import Task
from rlmix.envs.image_library import HELD_OUT
from rlmix.envs.observation import TrainingState, observe, one_hot
from rlmix.experiments.search.task_family import MENU
from rlmix.experiments.studies.broad.logs import FEATURES
from rlmix.experiments.studies.broad.record import CHOICES

POLICIES = len(CHOICES)


@dataclass(frozen=True)
class RecordedTask:
    """A task, trained once under each of the P policies of the menu, all from one seed.

    Attributes:
        number: number of the task.
        task: the task.
        classes: number of classes.
        images: number of validation images at the end, as far as the log tells.
        relative_lr: learning rate of the first update over the highest one.
        observations: what the forecaster sees at the start and after each of the S segments, `[P, 1 + S, O]`; rows
            after a divergence are not a number.
        validation: validation accuracy after each segment, in [0, 1], `[P, S]`; chance after a divergence.
        development: development accuracy at the end, in [0, 1], `[P]`.
    """

    number: int
    task: Task
    classes: int
    images: int
    relative_lr: float
    observations: NDArray[np.float32]
    validation: NDArray[np.float64]
    development: NDArray[np.float64]

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.task.dataset)

    @property
    def final(self) -> NDArray[np.float64]:
        """Validation accuracy at the end, `[P]`."""
        return self.validation[:, -1]

    def own_choice(self, agent: Agent) -> tuple[int, ...]:
        """Return an agent's choice at the start."""
        state = TrainingState(
            self.task, self.classes, dict(self.task.options)["batch_size"], progress=0.0, relative_lr=self.relative_lr
        )
        return agent.choose(observe(state, agent.menu, agent.features))

    def result(self, step: Step) -> StepResult:
        """Return what came of a segment of a candidate that holds its action."""
        policy = CHOICES.index(step.action)
        seen = self.observations[policy, step.segment + 1]
        return StepResult(seen if np.isfinite(seen).all() else None, float(self.validation[policy, step.segment]))

    def episodes(self) -> list[Episode]:
        """Return the trainings that did not diverge, scored by development accuracy in points."""
        segments = self.validation.shape[1]
        return [
            Episode(self.number, self.observations[policy, :segments], [CHOICES[policy]] * segments, 100 * accuracy)
            for policy, accuracy in enumerate(self.development.tolist())
            if np.isfinite(self.observations[policy]).all()
        ]


def recorded_tasks(lines: Sequence[Mapping[str, Any]], meaning: Mapping[str, Any]) -> list[RecordedTask]:
    """Return the tasks of a log that were trained under every policy.

    Args:
        lines: lines of `studies/broad/record.py --group rehearse`.
        meaning: names of their numbers.

    Raises:
        InputError: there is none.
    """
    names = [*meaning["known"], *meaning["rows"]]
    places = [names.index(name) for name in FEATURES]
    relative_lr = meaning["rows"].index("relative_lr")
    sources = {source["name"]: source["counts"] for source in meaning["sources"]}
    trained: dict[int, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if len(set(line["policies"])) == 1:
            trained.setdefault(line["task"], {})[line["policies"][0]] = line
    tasks = []
    for number, by_policy in sorted(trained.items()):
        if len(by_policy) < POLICIES:
            continue
        drawn = next(line["task_drawn"] for line in by_policy.values() if "task_drawn" in line)
        task, counts = Task(**drawn), sources[drawn["dataset"]]
        used = range(len(counts)) if task.classes is None else task.classes
        segments = len(meaning["segments"])
        observations = np.full((POLICIES, 1 + segments, len(places) + sum(MENU.sizes)), np.nan, np.float32)
        validation = np.full((POLICIES, segments), 1 / len(used))
        for policy, line in by_policy.items():
            for place, row in enumerate(line["rows"][: -1 if line["diverged"] else None]):
                before = CHOICES[policy] if place else None
                known = np.array([*line["known"], *row], dtype=np.float32)[places]
                observations[policy, place] = [*known, *one_hot(before, MENU)]
                if place:
                    validation[policy, place - 1] = line["validation"][place - 1]
        first = by_policy[0]["rows"][0][relative_lr]
        development = np.array([by_policy[policy]["development"] for policy in range(POLICIES)])
        images = _validation_images(counts, used)
        tasks.append(RecordedTask(number, task, len(used), images, first, observations, validation, development))
    if not tasks:
        raise InputError(f"expected a task with trainings under all {POLICIES} policies, got none")
    return tasks


def _validation_images(counts: Sequence[int], used: Sequence[int]) -> int:
    """Return the number of validation images of some classes: `HELD_OUT` of a data set, or a third of `counts`."""
    held_out = min(HELD_OUT, sum(counts) // 3)  # a fifth of the pool each for validation and development
    return round(held_out * sum(counts[label] for label in used) / sum(counts))
