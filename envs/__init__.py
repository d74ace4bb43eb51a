"""Gymnasium environments around classifier training; `gym.make("rlmix:MixPolicy-v0")` makes one."""

from rlmix.envs.broad_tasks import BroadTasks, Source
from rlmix.envs.image_library import ImageLibrary
from rlmix.envs.menu import DIMENSIONS, Menu
from rlmix.envs.mix_policy import FlatMixPolicyEnv, MixPolicyEnv
from rlmix.envs.rl_mix import RLMixEnv
from rlmix.envs.task_trainer import TaskTrainer
from rlmix.envs.tasks import Task, TaskDistribution

__all__ = [
    "DIMENSIONS",
    "BroadTasks",
    "FlatMixPolicyEnv",
    "ImageLibrary",
    "Menu",
    "MixPolicyEnv",
    "RLMixEnv",
    "Source",
    "Task",
    "TaskDistribution",
    "TaskTrainer",
]
