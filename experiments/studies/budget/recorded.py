"""Recorded trainings of a task, under every fixed policy and led by an agent: a table to try methods of choosing on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.budget import Step, StepResult
from rlmix.classifier.errors import InputError
from rlmix.envs import Task
from rlmix.envs.image_library import HELD_OUT
from rlmix.envs.observation import one_hot
from rlmix.experiments.search.task_family import MENU
from rlmix.experiments.studies.broad.logs import FEATURES
from rlmix.experiments.studies.broad.record import CHOICES

POLICIES = len(CHOICES)
NAMES = [str(MENU.policy(action)) for action in CHOICES]
LED = POLICIES  # place of the training that the agent led, after those under fixed policies


class Ends(NamedTuple):
    """Accuracies at the end of a task's trainings, which are all that choosing a portfolio needs.

    Attributes:
        dataset: name of the data set.
        final: validation accuracy at the end, in [0, 1], `[P + 1]`, as in `RecordedTask`.
        development: development accuracy at the end, in [0, 1], `[P + 1]`.
    """

    dataset: str
    final: NDArray[np.float64]
    development: NDArray[np.float64]


@dataclass(frozen=True)
class RecordedTask:
    """A task, trained once under each of the P policies of the menu and once as an agent chose, all from one seed.

    Attributes:
        number: number of the task.
        task: the task.
        images: number of validation images at the end, as far as the log tells.
        observations: what the forecaster sees at the start and after each of the S segments, `[P + 1, 1 + S, O]`; rows
            after a divergence are not a number. The agent's training is the last, also below.
        validation: validation accuracy after each segment, in [0, 1], `[P + 1, S]`; chance after a divergence.
        development: development accuracy at the end, in [0, 1], `[P + 1]`.
        choices: the agent's action in each segment.
    """

    number: int
    task: Task
    images: int
    observations: NDArray[np.float32]
    validation: NDArray[np.float64]
    development: NDArray[np.float64]
    choices: tuple[tuple[int, ...], ...]

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return str(self.task.dataset)

    @property
    def final(self) -> NDArray[np.float64]:
        """Validation accuracy at the end, `[P + 1]`."""
        return self.validation[:, -1]

    def result(self, step: Step) -> StepResult:
        """Return what came of a segment of a candidate that holds its action, or of the agent's own."""
        training, after = LED if step.own else CHOICES.index(step.action), step.segment + 1
        seen = self.observations[training, after]
        return StepResult(
            seen if np.isfinite(seen).all() else None,
            float(self.validation[training, step.segment]),
            own_choice=self.choices[after] if step.own and after < len(self.choices) else None,
        )


def recorded_tasks(lines: Sequence[Mapping[str, Any]], meaning: Mapping[str, Any], agent: str) -> list[RecordedTask]:
    """Return the tasks of a log that were trained under every policy and led by an agent.

    Args:
        lines: lines of `studies/broad/record.py --group rehearse-usual --agents AGENT`.
        meaning: names of their numbers.
        agent: checksum of the agent.

    Raises:
        InputError: there is none.
    """
    names = [*meaning["known"], *meaning["rows"]]
    places = [names.index(name) for name in FEATURES]
    sources = {source["name"]: source["counts"] for source in meaning["sources"]}
    trained: dict[int, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "led":
            if line["agent"] == agent:
                trained.setdefault(line["task"], {})[LED] = line
        elif len(set(line["policies"])) == 1:
            trained.setdefault(line["task"], {})[line["policies"][0]] = line
    tasks = []
    for number, by_policy in sorted(trained.items()):
        if len(by_policy) < POLICIES + 1:
            continue
        drawn = next(line["task_drawn"] for line in by_policy.values() if "task_drawn" in line)
        task, counts = Task(**drawn), sources[drawn["dataset"]]
        used = range(len(counts)) if task.classes is None else task.classes
        segments = len(meaning["segments"])
        observations = np.full((POLICIES + 1, 1 + segments, len(places) + sum(MENU.sizes)), np.nan, np.float32)
        validation = np.full((POLICIES + 1, segments), 1 / len(used))
        for policy, line in by_policy.items():
            for place, row in enumerate(line["rows"][: -1 if line["diverged"] else None]):
                before = CHOICES[line["policies"][place - 1]] if place else None
                known = np.array([*line["known"], *row], dtype=np.float32)[places]
                observations[policy, place] = [*known, *one_hot(before, MENU)]
                if place:
                    validation[policy, place - 1] = line["validation"][place - 1]
        development = np.array([by_policy[training]["development"] for training in range(POLICIES + 1)])
        images, led = _validation_images(counts, used), by_policy[LED]
        choices = tuple(CHOICES[policy] for policy in led["policies"])
        tasks.append(RecordedTask(number, task, images, observations, validation, development, choices))
    if not tasks:
        raise InputError(
            f"expected a task with trainings under all {POLICIES} policies and one that this agent led, got none; "
            "studies/broad/record.py --agents AGENT adds the latter"
        )
    return tasks


def rehearsed_tasks(lines: Sequence[Mapping[str, Any]], agent: str) -> list[Ends]:
    """Return how the trainings of rehearsed tasks ended that an agent led and that were trained under every policy.

    Args:
        lines: lines of `studies/broad/rehearse.py --every-policy`.
        agent: checksum of the agent.

    Raises:
        InputError: there is no such task.
    """
    trained: dict[int, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        name = line["contestant"]
        if line["agent_sha256"] == agent:
            trained.setdefault(line["task"], {})[LED] = line
        elif name in NAMES:
            trained.setdefault(line["task"], {})[NAMES.index(name)] = line
    ends = [
        Ends(
            by_place[LED]["dataset"],
            np.array([by_place[place]["validation"] for place in range(POLICIES + 1)]),
            np.array([by_place[place]["development"] for place in range(POLICIES + 1)]),
        )
        for _, by_place in sorted(trained.items())
        if len(by_place) == POLICIES + 1
    ]
    if not ends:
        raise InputError(
            f"expected a task with trainings under all {POLICIES} policies and one of this agent, got none"
        )
    return ends


def _validation_images(counts: Sequence[int], used: Sequence[int]) -> int:
    """Return the number of validation images of some classes: `HELD_OUT` of a data set, or a third of `counts`."""
    held_out = min(HELD_OUT, sum(counts) // 3)  # a fifth of the pool each for validation and development
    return round(held_out * sum(counts[label] for label in used) / sum(counts))
