"""The images of a final training, and its configuration with nothing left to `auto`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from rlmix.classifier.compilation import compiling_pays
from rlmix.classifier.data import Dataset, Splits, load_dataset, split
from rlmix.classifier.hardware import resolve_device, resolve_precision, set_threads
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.training.config import Final, FinalConfig

MOST_EPOCHS = 1_000_000


def load_data(config: FinalConfig) -> Splits:
    """The images of a training.

    Raises:
        DataError: they cannot be had, or are too few.
    """
    dataset = load_dataset(config.dataset, config.data_root, image_size=config.image_size)
    return draw_data(config, dataset)


def draw_data(config: FinalConfig, dataset: Dataset) -> Splits:
    """A data set parted as the configuration says.

    Raises:
        DataError: it has too few images.
    """
    data = split(dataset, validation_size=config.validation_size, development_size=config.development_size)
    data = data.draw(config.train_size, data_seed=config.data_seed, label_noise=config.label_noise)
    if config.train_on_validation:
        data = data.trained_on_validation()
    return data


def resolve(config: Final, data: Splits, policies: Iterable[MixPolicy] = ()) -> Final:
    """The configuration with nothing left to `auto`; sets the number of threads.

    Args:
        config: what was asked.
        data: the images.
        policies: what is known of how they will be mixed.

    Raises:
        RunError: an option is out of range, the network cannot be built, or not trained under one of the policies.
    """
    try:
        for name, least in (("evaluations", 1), ("seed", 0)):
            if getattr(config, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
        if config.epochs is not None:
            if not 0 < config.epochs < MOST_EPOCHS:
                raise ValueError(f"epochs must be a number above 0 and below {MOST_EPOCHS:,}, got {config.epochs}")
            updates = max(1, round(config.epochs * len(data.train) / config.batch_size))
            config = replace(config, updates=updates, epochs=None)
        set_threads(config.threads)
        device = resolve_device(config.device)
        precision = resolve_precision(config.precision, device)
        compiled = config.compile == "on"
        training = replace(config.training(), precision=precision)
        # What is wrong with the network is said here, before there is a run folder.
        tried = Trainer(replace(training, device="cpu", precision="fp32", compile=False), data)
        for policy in policies:
            tried.check(policy)
        if config.compile == "auto":
            compiled = compiling_pays(training, data, planned_updates=config.updates)
    except ValueError as error:
        raise RunError(str(error)) from error
    return replace(
        config,
        device=str(device),
        precision=precision,  # type: ignore[arg-type]
        compile="on" if compiled else "off",
        threads=torch.get_num_threads(),
    )
