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
