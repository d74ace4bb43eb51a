"""Population Based Training over mixing policies."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import MixPolicyEnv, Task

QUANTILE, RESAMPLE = 0.25, 0.25  # of Population Based Training: who is replaced, and what is drawn anew


def population(env: MixPolicyEnv, task: Task, seed: int, members: int) -> tuple[Trainer | None, list[list[int]]]:
    """Population Based Training (https://arxiv.org/abs/1711.09846) of one task, as Ray Tune's scheduler does it.

    After every segment the worst quarter of the members take over weights and choice of members of the best quarter,
    and change each dimension of the choice: to a neighbour, or, for a quarter of the time, to anything. It is one
    process, so that the same seed gives the same population; `tune_agent.py --search pbt` spreads one over a cluster.

    Args:
        env: whose trainer, menu and segments are used.
        task: what is trained.
        seed: of the population.
        members: each a whole training.

    Returns:
        The training of the member that is best on all validation images; none where all diverged. And its actions.
    """
    random = np.random.default_rng([seed, 1])
    choices = [[int(random.integers(size)) for size in env.menu.sizes] for _ in range(members)]
    histories: list[list[list[int]]] = [[] for _ in range(members)]
    states: list[dict[str, Any] | None] = [None] * members
    scores = np.zeros(members)
    replaced = max(int(members * QUANTILE), 1)
    trainer = env.prepare(task)
    for segment, end in enumerate(env.segments):
        last = segment == len(env.segments) - 1
        for member in range(members):
            state = states[member]
            if state is not None:
                trainer.load_state_dict(state)
            elif segment == 0:
                trainer.reset(int(random.integers(2**31)), updates=task.updates)
            else:  # diverged, and not replaced
                continue
            stretch = trainer.train(env.menu.policy(choices[member]), round(end * task.updates) - trainer.updates_done)
            evaluation = None
            if not stretch.diverged:
                evaluation = trainer.evaluate("validation", limit=None if last else env.validation_limit)
            well = evaluation is not None and np.isfinite(evaluation.loss)
            scores[member] = evaluation.accuracy if evaluation is not None and well else -1.0
            states[member] = trainer.state_dict() if well else None
            histories[member] = [*histories[member], list(choices[member])]
        if not last:
            order = np.argsort(scores, kind="stable")
            for member in order[:replaced]:
                source = int(random.choice(order[-replaced:]))
                states[member], scores[member] = states[source], scores[source]
                histories[member] = list(histories[source])
                choices[member] = [
                    _explored(random, choice, size)
                    for choice, size in zip(choices[source], env.menu.sizes, strict=True)
                ]
    best = int(scores.argmax())
    state = states[best]
    if state is None:
        return None, histories[best]
    trainer.load_state_dict(state)
    return trainer, histories[best]


def _explored(random: np.random.Generator, choice: int, size: int) -> int:
    if random.random() < RESAMPLE:
        return int(random.integers(size))
    return min(max(choice + int(random.choice([-1, 1])), 0), size - 1)
