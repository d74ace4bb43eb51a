"""Values that have learned nothing and disagree, for tests of what uses a forecaster."""

from collections.abc import Sequence

import torch

from rlmix.agent.values import ActionValues, LinearValue, relative_effects
from rlmix.envs import Menu


def drawn_values(menu: Menu, features: Sequence[str], *, members: int, seed: int) -> ActionValues:
    generator, effects = torch.Generator().manual_seed(seed), relative_effects(menu)
    observed, places = len(features) + sum(menu.sizes), effects.shape[1]
    terms = 2 * observed + 2
    networks = [
        LinearValue(
            torch.randn(terms, generator=generator) / 4,
            torch.randn(terms, places, generator=generator) / 4,
            list(features).index("progress"),
        )
        for _ in range(members)
    ]
    return ActionValues(effects, torch.rand(observed, generator=generator), torch.ones(observed), networks)
