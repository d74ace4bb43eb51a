"""Parts of the tests of one's own loop: a small network, batches, an agent."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlmix.agent.agent import Agent
from rlmix.agent.ppo import new_policy, to_agent
from rlmix.agent.rule import Leaf, Rule, Split
from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES, OBSERVATION_V2, checks_labels

KNOWN = {"num_classes": 10, "total_updates": 20, "train_size": 200}
# Observation v2 without what a loop does not show
TRANSFER = tuple(name for name in OBSERVATION_V2 if not checks_labels([name]))


def network(seed: int = 0, classes: int = 10) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes)
    )


def batches(count: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 1, 8, 8, generator=generator), torch.randint(10, (size,), generator=generator))
        for _ in range(count)
    ]


def agent(seed: int = 3, *, features: Sequence[str] = DEFAULT_FEATURES, **menu: Any) -> Agent:
    """An agent that has learned nothing but does not always choose the same."""
    offered = Menu(**{"labels": ((1.0, 0.0), (1.0, 0.3)), **menu})
    torch.manual_seed(seed)
    policy = new_policy(offered, [16], features)
    with torch.no_grad():
        policy.action_net.weight.mul_(300)  # type: ignore[operator]
    return to_agent(policy, offered, (0.25, 0.5, 0.75, 1.0), {}, features)


def rule(feature: str, threshold: float) -> Rule:
    """A rule that asks one question after a fifth of the training, and then changes every fifth."""
    menu = Menu(labels=((1.0, 0.0), (1.0, 0.3)))
    others = menu.actions()[1:]  # without plain
    leaves = [Leaf(tuple(others[place : place + 4])) for place in (0, 4)]
    return Rule(menu, (0.2, 0.4, 0.6, 0.8, 1.0), (others[-1],), Split(feature, threshold, *leaves))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
