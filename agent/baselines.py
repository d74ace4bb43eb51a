"""Baselines of an agent: fixed policies, and choices drawn at random."""

import numpy as np

from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs import Menu

FIXED = {
    "plain": MixPolicy({"clean": 1.0}),
    "CutMix half": MixPolicy({"clean": 0.5, "cutmix": 0.5}),
}


def random_schedule(menu: Menu, segments: tuple[float, ...], seed: int) -> PolicySchedule:
    """Return a schedule of actions drawn uniformly from the menu, one for each segment."""
    random = np.random.default_rng(seed)
    return PolicySchedule(tuple((end, menu.policy(random.integers(menu.sizes).tolist())) for end in segments))


def balanced_schedules(menu: Menu, segments: tuple[float, ...], count: int, seed: int) -> list[PolicySchedule]:
    """Return random schedules of which each segment holds every combination of the menu equally often, or once less.

    Their mean accuracy is that of `random_schedule` without the luck of which combinations were drawn.

    Args:
        menu: menu of the actions.
        segments: end of each segment as a share of the training, in (0, 1], ascending.
        count: number of schedules.
        seed: RNG seed.
    """
    random = np.random.default_rng(seed)
    combinations = menu.combinations()
    rounds = -(-count // len(combinations))
    orders = [np.concatenate([random.permutation(len(combinations)) for _ in range(rounds)]) for _ in segments]
    return [
        PolicySchedule(
            tuple((end, menu.policy(combinations[order[number]])) for end, order in zip(segments, orders, strict=True))
        )
        for number in range(count)
    ]
