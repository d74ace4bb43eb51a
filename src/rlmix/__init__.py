"""RL-Mix: learn how to mix images while a classifier trains.

Names below are imported when they are first used, so that `import rlmix` takes neither torch nor Stable-Baselines3.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlmix.agent.agent import Agent
    from rlmix.agent.own_loop import RLMix
    from rlmix.agent.rule import Rule
    from rlmix.classifier.mixing import (
        Interleaver,
        LamDistribution,
        MixPolicy,
        PolicySchedule,
        mix_batch,
        one_hot,
        soft_binary_cross_entropy,
        soft_cross_entropy,
    )
    from rlmix.envs import MixPolicyEnv

_MODULES = {
    "Agent": "rlmix.agent.agent",
    "Interleaver": "rlmix.classifier.mixing",
    "LamDistribution": "rlmix.classifier.mixing",
    "MixPolicy": "rlmix.classifier.mixing",
    "MixPolicyEnv": "rlmix.envs",
    "PolicySchedule": "rlmix.classifier.mixing",
    "RLMix": "rlmix.agent.own_loop",
    "Rule": "rlmix.agent.rule",
    "mix_batch": "rlmix.classifier.mixing",
    "one_hot": "rlmix.classifier.mixing",
    "soft_binary_cross_entropy": "rlmix.classifier.mixing",
    "soft_cross_entropy": "rlmix.classifier.mixing",
}


def _register_environments() -> None:
    """Register the environments with Gymnasium; their classes are imported when one is made."""
    from gymnasium import register

    register(id="MixPolicy-v0", entry_point="rlmix.envs.mix_policy:MixPolicyEnv")
    register(id="MixPolicyFlat-v0", entry_point="rlmix.envs.mix_policy:FlatMixPolicyEnv")
    for suffix, options in (("", {}), ("Flat", {"flat": True})):
        register(
            id=f"MixPolicySurrogate{suffix}-v0",
            entry_point="rlmix.envs.surrogate:SurrogateEnv",
            vector_entry_point="rlmix.envs.surrogate:SurrogateVectorEnv",
            kwargs=options,
        )
    register(id="RLMix-v0", entry_point="rlmix.envs.rl_mix:RLMixEnv")


class _AfterGymnasium:
    """Finder that registers the environments as soon as Gymnasium is imported, which takes 0.7 s, and finds nothing.

    `gym.make("rlmix:MixPolicy-v0")` imports this package, but finds nothing new where that was done before Gymnasium's.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _register_environments()

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "gymnasium" in sys.modules:
    _register_environments()
else:
    sys.meta_path.insert(0, _AfterGymnasium())


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
    "RLMix",
    "Rule",
    "mix_batch",
    "one_hot",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
]
