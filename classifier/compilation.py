"""Whether compiling the training step pays on this machine: measured, since no rule holds for every network."""

from dataclasses import replace

from rlmix.classifier.data import Splits
from rlmix.classifier.hardware import has_amx, resolve_device, why_not_compile
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

LEAST_UPDATES = 20_000  # below, compiling (half a minute or more) takes longer than it can save
LEAST_GAIN = 1.05
ROUNDS = 5
ROUND_UPDATES = 4


def compiling_pays(config: TrainConfig, data: Splits, *, planned_updates: int) -> bool:
    """Whether to compile, for a run of so many updates.

    Compilation is tried on CUDA and on processors with AMX, whose fast convolutions leave most of an eager step to
    memory traffic. Elsewhere it gained 0 to 4 % (experiments/results/benchmark_speed.json) and is left out.

    Args:
        config: the setting; its `compile` is ignored.
        data: the images that will be trained on.
        planned_updates: of the whole run, all trainings together.
    """
    device = resolve_device(config.device)
    worth_trying = device.type == "cuda" or has_amx(device)
    if planned_updates < LEAST_UPDATES or not worth_trying or why_not_compile(device) is not None:
        return False
    policy = MixPolicy({"clean": 0.5, "rmix": 0.5})
    total = ROUND_UPDATES * (ROUNDS + 2)
    trainers = [Trainer(replace(config, updates=total, compile=compiled), data) for compiled in (False, True)]
    for trainer in trainers:
        trainer.train(policy, 2 * ROUND_UPDATES)  # both graphs are compiled here
    seconds = [[trainer.train(policy, ROUND_UPDATES).seconds for trainer in trainers] for _ in range(ROUNDS)]
    gains = sorted(eager / compiled for eager, compiled in seconds)
    return gains[ROUNDS // 2] >= LEAST_GAIN
