"""RL-Mix: learn how to mix images while a classifier trains.

Names below are imported when they are first used, so that `import rlmix` takes neither torch nor Stable-Baselines3.
"""

import importlib
from typing import TYPE_CHECKING, Any

import gymnasium

if TYPE_CHECKING:
    from rlmix.agent.ppo import Agent
    from rlmix.classifier.mixing import (
        Interleaver,
        LamDistribution,
        MixPolicy,
        PolicySchedule,
        mix_batch,
        one_hot,
        soft_cross_entropy,
    )
    from rlmix.envs import MixPolicyEnv

_MODULES = {
    "Agent": "rlmix.agent.ppo",
    "Interleaver": "rlmix.classifier.mixing",
    "LamDistribution": "rlmix.classifier.mixing",
    "MixPolicy": "rlmix.classifier.mixing",
    "MixPolicyEnv": "rlmix.envs",
    "PolicySchedule": "rlmix.classifier.mixing",
    "mix_batch": "rlmix.classifier.mixing",
    "one_hot": "rlmix.classifier.mixing",
    "soft_cross_entropy": "rlmix.classifier.mixing",
}

# `gym.make("rlmix:MixPolicy-v0")` imports this package and finds them; the classes are imported when one is made.
gymnasium.register(id="MixPolicy-v0", entry_point="rlmix.envs.mix_policy:MixPolicyEnv")
gymnasium.register(id="MixPolicyFlat-v0", entry_point="rlmix.envs.mix_policy:FlatMixPolicyEnv")
gymnasium.register(id="RLMix-v0", entry_point="rlmix.envs.rl_mix:RLMixEnv")


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


__all__ = [
    "Agent",
    "Interleaver",
    "LamDistribution",
    "MixPolicy",
    "MixPolicyEnv",
    "PolicySchedule",
    "mix_batch",
    "one_hot",
    "soft_cross_entropy",
]
