"""Images of a final training, and its configuration with nothing left to `auto`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from rlmix.classifier.compilation import resolve_machine
from rlmix.classifier.data import Dataset, Splits
from rlmix.classifier.errors import InputError
from rlmix.classifier.hardware import set_threads
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.training.config import Final, FinalConfig

MAX_EPOCHS = 1_000_000


def load_data(config: FinalConfig) -> Splits:
    """Return the images of a training.

    Raises:
        DataError: they are not available, or are too few.
    """
    return draw_data(config, config.data.load())


def draw_data(config: FinalConfig, dataset: Dataset) -> Splits:
    """Return a data set split as the configuration says.

    Raises:
        DataError: it has too few images.
    """
    data = config.data.draw_from(dataset, config.data_seed)
    return data.trained_on_validation() if config.train_on_validation else data


def resolve(config: Final, data: Splits, policies: Iterable[MixPolicy] = ()) -> Final:
    """Return the configuration with nothing left to `auto`; sets the number of threads.

    Args:
        config: options of the command.
        data: images of the training.
        policies: policies that the training may use, as far as they are known.

    Raises:
        InputError: an option is out of range, or the network cannot be built, or not be trained under a policy.
    """
    train = config.train
    if config.train_on_validation and config.data.label_noise:
        raise InputError(
            "--label-noise spoils drawn training images, and --train-on-validation would add others with their own "
            "labels: leave one of them out"
        )
    if config.epochs is not None:
        if not 0 < config.epochs < MAX_EPOCHS:
            raise InputError(f"epochs must be a number above 0 and below {MAX_EPOCHS:,}, got {config.epochs}")
        train = replace(train, updates=max(1, round(config.epochs * len(data.train) / train.batch_size)))
    set_threads(config.threads)
    # Errors in the network are reported here, before there is a run folder.
    tried = Trainer(replace(train, device="cpu", precision="fp32", compile="off"), data)
    for policy in policies:
        tried.check(policy)
    train = resolve_machine(train, data, planned_updates=train.updates)
    return replace(config, train=train, epochs=None, threads=torch.get_num_threads())
