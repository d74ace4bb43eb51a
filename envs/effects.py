"""Effects of the actions of a menu, as numbers that models learn from."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rlmix.classifier.mixing import METHODS
from rlmix.envs.menu import DIMENSIONS, Menu


def combination_numbers(actions: ArrayLike, menu: Menu) -> Tensor:
    """Return the number of each action among the menu's `combinations()`, `[...]`.

    Args:
        actions: `[..., D]`, an index into each of the menu's D dimensions.
        menu: menu of the actions.

    Raises:
        ValueError: an index is out of range.
    """
    return torch.from_numpy(
        np.asarray(np.ravel_multi_index(tuple(np.moveaxis(np.asarray(actions), -1, 0)), menu.sizes))
    )


def action_effects(menu: Menu) -> Tensor:
    """Return the effect of each of the menu's `combinations()`, `[A, E]`, numbers of about 0 to 1.

    Actions of similar policies have similar effects.
    """
    offered = [method for method in METHODS if any(method in shares for _, shares in menu.sources)]
    rows = []
    for action in menu.combinations():
        policy = menu.policy(action)
        shares = [policy.shares.get(method, 0.0) for method in offered]
        threshold = 0.5 if policy.threshold is None else policy.threshold
        lam = [float(menu.lams[action[DIMENSIONS.index("lam")]] == name) for name in menu.lams]
        labels = [policy.label_beta, policy.label_smoothing]
        rows.append([*shares, *labels, threshold, float(policy.threshold is None), *lam])
    return torch.tensor(rows)
