"""Mixing augmentations as pure functions, and the values that say when to use which. Usable without the rest."""

from classifier.mixing.batch import mix_batch
from classifier.mixing.methods import METHODS, MixDraw
from classifier.mixing.policy import Interleaver, LamDistribution, MixPolicy, PolicyError
from classifier.mixing.schedule import PolicySchedule
from classifier.mixing.targets import one_hot, soft_cross_entropy

__all__ = [
    "METHODS",
    "Interleaver",
    "LamDistribution",
    "MixDraw",
    "MixPolicy",
    "PolicyError",
    "PolicySchedule",
    "mix_batch",
    "one_hot",
    "soft_cross_entropy",
]
