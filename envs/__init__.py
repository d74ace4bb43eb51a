"""The game: Gymnasium environments around classifier training. `gym.make("envs:MixPolicy-v0")` finds them here."""

import gymnasium

from envs.menu import DIMENSIONS, Menu
from envs.mix_policy import FlatMixPolicyEnv, MixPolicyEnv
from envs.rl_mix import RLMixEnv
from envs.tasks import Task, TaskDistribution

gymnasium.register(id="MixPolicy-v0", entry_point="envs.mix_policy:MixPolicyEnv")
gymnasium.register(id="MixPolicyFlat-v0", entry_point="envs.mix_policy:FlatMixPolicyEnv")
gymnasium.register(id="RLMix-v0", entry_point="envs.rl_mix:RLMixEnv")

__all__ = ["DIMENSIONS", "FlatMixPolicyEnv", "Menu", "MixPolicyEnv", "RLMixEnv", "Task", "TaskDistribution"]
