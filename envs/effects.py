"""What the actions of a menu do, as numbers that models learn from."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from rlmix.classifier.mixing import METHODS
from rlmix.envs.menu import DIMENSIONS, Menu


def combinations(menu: Menu) -> list[tuple[int, ...]]:
    """Return every combination of a menu's choices, A of them, the last dimension running fastest."""
    return list(itertools.product(*(range(size) for size in menu.sizes)))


def action_strides(menu: Menu) -> Tensor:
    """Return the factors of an action's indices that sum to its row among `combinations`, `[D]`."""
    sizes = menu.sizes
    return torch.tensor([math.prod(sizes[place + 1 :]) for place in range(len(sizes))])


def action_effects(menu: Menu) -> Tensor:
    """Return what each action does, as numbers of about 0 to 1, `[A, E]`: actions that do alike are alike.

    Args:
        menu: menu of the actions; A is the number of combinations of its choices, the last dimension running fastest.
    """
    offered = [method for method in METHODS if any(method in shares for _, shares in menu.sources)]
    rows = []
    for action in combinations(menu):
        policy = menu.policy(action)
        shares = [policy.shares.get(method, 0.0) for method in offered]
        threshold = 0.5 if policy.threshold is None else policy.threshold
        lam = [float(menu.lams[action[DIMENSIONS.index("lam")]] == name) for name in menu.lams]
        labels = [policy.label_beta, policy.label_smoothing]
        rows.append([*shares, *labels, threshold, float(policy.threshold is None), *lam])
    return torch.tensor(rows)
