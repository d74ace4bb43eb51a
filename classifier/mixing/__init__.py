"""Mixing augmentations as pure functions, and policies that choose among them; usable without the other packages."""

from rlmix.classifier.mixing.batch import mix_batch
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.methods import METHODS
from rlmix.classifier.mixing.policy import Interleaver, LamDistribution, MixPolicy, PolicyError
from rlmix.classifier.mixing.schedule import PolicySchedule
from rlmix.classifier.mixing.targets import as_targets, one_hot, soft_binary_cross_entropy, soft_cross_entropy

__all__ = [
    "METHODS",
    "Interleaver",
    "LamDistribution",
    "MixDraw",
    "MixPolicy",
    "PolicyError",
    "PolicySchedule",
    "as_targets",
    "mix_batch",
    "one_hot",
    "soft_binary_cross_entropy",
    "soft_cross_entropy",
]
