"""The game: Gymnasium environments around classifier training. `gym.make("envs:MixPolicy-v0")` finds them here."""

import gymnasium

from envs.menu import DIMENSIONS, Menu
from envs.mix_policy import FlatMixPolicyEnv, MixPolicyEnv
from envs.tasks import Task, TaskDistribution

gymnasium.register(id="MixPolicy-v0", entry_point="envs.mix_policy:MixPolicyEnv")
gymnasium.register(id="MixPolicyFlat-v0", entry_point="envs.mix_policy:FlatMixPolicyEnv")

__all__ = ["DIMENSIONS", "FlatMixPolicyEnv", "Menu", "MixPolicyEnv", "Task", "TaskDistribution"]
