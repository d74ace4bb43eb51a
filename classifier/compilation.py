"""A training's device, number format and compilation on this machine, with nothing left to `auto`."""

from dataclasses import replace
from typing import Literal, TypeVar

from rlmix.classifier.data import Splits
from rlmix.classifier.hardware import has_amx, resolve_device, resolve_precision, why_not_compile
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.mixing.rmix import GRIDS
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

Setting = TypeVar("Setting", bound=TrainConfig)

MIN_UPDATES = 20_000  # below, compiling (half a minute or more) takes longer than it can save
MIN_GAIN = 1.05
ROUNDS = 5
ROUND_UPDATES = 4


def resolve_machine(config: Setting, data: Splits, *, planned_updates: int) -> Setting:
    """Return the setting with nothing left to `auto`.

    Args:
        config: the setting.
        data: the images that will be trained on.
        planned_updates: updates of the whole run, all trainings together.

    Raises:
        InputError: the device or the precision is not available.
    """
    device = resolve_device(config.device)
    config = replace(config, device=str(device), precision=resolve_precision(config.precision, device))
    if config.compile != "auto":
        return config
    return replace(config, compile="on" if compiling_pays(config, data, planned_updates=planned_updates) else "off")


def compiling_pays(config: TrainConfig, data: Splits, *, planned_updates: int) -> bool:
    """Measure whether compiling pays, for a run of `planned_updates`; no rule holds for every network.

    Compilation is tried on CUDA and on processors with AMX, whose fast convolutions leave most of an eager step to
    memory traffic. Elsewhere it gained 0 to 4 % (experiments/results/benchmark_speed.json) and is left out.

    Args:
        config: the setting; its `compile` is ignored.
        data: the images that will be trained on.
        planned_updates: updates of the whole run, all trainings together.
    """
    device = resolve_device(config.device)
    worth_trying = device.type == "cuda" or has_amx(device)
    if planned_updates < MIN_UPDATES or not worth_trying or why_not_compile(device) is not None:
        return False
    # A pass for saliency is compiled too, but not every image has R-Mix's grids.
    height, width = data.train.image_shape[1:]
    grids = any(height % grid == 0 and width % grid == 0 for grid in GRIDS)
    policy = MixPolicy({"clean": 0.5, "rmix" if grids else "mixup": 0.5})
    total = ROUND_UPDATES * (ROUNDS + 2)
    ways: tuple[Literal["off", "on"], ...] = ("off", "on")
    trainers = [Trainer(replace(config, updates=total, compile=compile), data) for compile in ways]
    for trainer in trainers:
        trainer.train(policy, 2 * ROUND_UPDATES)  # both graphs are compiled here
    seconds = [[trainer.train(policy, ROUND_UPDATES).seconds for trainer in trainers] for _ in range(ROUNDS)]
    gains = sorted(eager / compiled for eager, compiled in seconds)
    return gains[ROUNDS // 2] >= MIN_GAIN
