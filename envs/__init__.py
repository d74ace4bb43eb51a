"""Gymnasium environments around classifier training; `gym.make("rlmix:MixPolicy-v0")` makes one.

Names below are imported when they are first used, so that an agent that only chooses takes no Gymnasium.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlmix.envs.broad_tasks import BroadTasks, Source
    from rlmix.envs.image_library import ImageLibrary
    from rlmix.envs.menu import DIMENSIONS, Menu
    from rlmix.envs.mix_policy import FlatMixPolicyEnv, MixPolicyEnv
    from rlmix.envs.mix_policy_vector import MixPolicyVectorEnv
    from rlmix.envs.rl_mix import RLMixEnv
    from rlmix.envs.task_trainer import TaskTrainer
    from rlmix.envs.tasks import Task, TaskDistribution

_MODULES = {
    "DIMENSIONS": "menu",
    "BroadTasks": "broad_tasks",
    "FlatMixPolicyEnv": "mix_policy",
    "ImageLibrary": "image_library",
    "Menu": "menu",
    "MixPolicyEnv": "mix_policy",
    "MixPolicyVectorEnv": "mix_policy_vector",
    "RLMixEnv": "rl_mix",
    "Source": "broad_tasks",
    "Task": "tasks",
    "TaskDistribution": "tasks",
    "TaskTrainer": "task_trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


__all__ = [
    "DIMENSIONS",
    "BroadTasks",
    "FlatMixPolicyEnv",
    "ImageLibrary",
    "Menu",
    "MixPolicyEnv",
    "MixPolicyVectorEnv",
    "RLMixEnv",
    "Source",
    "Task",
    "TaskDistribution",
    "TaskTrainer",
]
