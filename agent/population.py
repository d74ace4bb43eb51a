"""Population Based Training over mixing policies (arXiv 1711.09846), in one process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlmix.envs import Menu, Task, TaskTrainer
from rlmix.envs.task_trainer import Snapshot

QUANTILE = 0.25  # share of the members that is replaced after a segment, by members of the best share of this size
RESAMPLE = 0.25  # probability that a choice is drawn anew, rather than moved to a neighbour


def train_population(
    trainer: TaskTrainer, task: Task, *, menu: Menu, segments: Sequence[float], seed: int, members: int
) -> list[list[int]]:
    """Train a task by Population Based Training, as Ray Tune's scheduler does it.

    After every segment the worst quarter of the members take over weights and choice of members of the best quarter,
    and change each dimension of the choice: to a neighbour, or, for a quarter of the time, to anything. It is one
    process, so that the same seed gives the same population; `tune_agent.py --search pbt` spreads one over a cluster.

    Args:
        trainer: trains the members; at the end it holds the training that is best on all validation images, or a
            diverged one where all members diverged.
        task: the task.
        menu: choices of a member.
        segments: progress at which each segment ends.
        seed: RNG seed of the population.
        members: number of members, each a whole training.

    Returns:
        The actions that led to the best training.
    """
    random = np.random.default_rng([seed, 1])
    choices = [[int(random.integers(size)) for size in menu.sizes] for _ in range(members)]
    histories: list[list[list[int]]] = [[] for _ in range(members)]
    snapshots: list[Snapshot | None] = [None] * members
    scores = np.zeros(members)
    replaced = max(int(members * QUANTILE), 1)
    for number, end in enumerate(segments):
        for member in range(members):
            snapshot = snapshots[member]
            if snapshot is None:
                trainer.start(task, int(random.integers(2**31)))
            elif snapshot.diverged:
                continue
            else:
                trainer.restore(snapshot)
            segment = trainer.train_segment(menu.policy(choices[member]), round(end * task.updates))
            scores[member] = -1.0 if segment.diverged else segment.evaluation.accuracy  # below chance
            snapshots[member] = trainer.snapshot()
            histories[member] = [*histories[member], list(choices[member])]
        if number < len(segments) - 1:
            order = np.argsort(scores, kind="stable")
            for member in order[:replaced]:
                source = int(random.choice(order[-replaced:]))
                snapshots[member], scores[member] = snapshots[source], scores[source]
                histories[member] = list(histories[source])
                choices[member] = [
                    explore(random, choice, size) for choice, size in zip(choices[source], menu.sizes, strict=True)
                ]
    best = int(scores.argmax())
    snapshot = snapshots[best]
    assert snapshot is not None
    trainer.restore(snapshot)
    return histories[best]


def explore(random: np.random.Generator, choice: int, size: int) -> int:
    """Return another choice of a dimension with `size` choices: a neighbour, or, with `RESAMPLE`, any."""
    if random.random() < RESAMPLE:
        return int(random.integers(size))
    return min(max(choice + int(random.choice([-1, 1])), 0), size - 1)
