"""A finished training read back from its run folder: configuration, images and network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rlmix.classifier.data import Splits
from rlmix.classifier.errors import InputError
from rlmix.classifier.evaluation import PixelNetwork, load_weights, trained_network
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.data_record import require_same_data
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import read_config
from rlmix.experiments.training import config
from rlmix.experiments.training.config import ClassifierConfig, FinalConfig, ReplayConfig
from rlmix.experiments.training.resolve import load_data

# The commands that train one network to be kept, and their configurations.
TRAININGS: dict[str, type[FinalConfig]] = {config.CLASSIFIER: ClassifierConfig, config.REPLAY: ReplayConfig}


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """A finished training: its configuration, its images and its network.

    Attributes:
        path: the run folder.
        config: options of the training.
        data: images of the training, on the CPU.
        network: network that the training kept, on the device.
        device: device of the network.
    """

    path: Path
    config: FinalConfig
    data: Splits
    network: PixelNetwork
    device: torch.device

    @classmethod
    def open(cls, path: str, *, device: torch.device, data_root: str | None = None, trust: bool) -> TrainedRun:
        """Read a run folder of `train_classifier.py` or `replay_policy.py`; nothing in it is changed.

        Args:
            path: run folder.
            device: device for the network.
            data_root: folder of the data set; optional, defaults to the training's own.
            trust: whether code that its configuration names may run.

        Raises:
            RunError: there is no such run, it has not finished, its data set has changed, or its network cannot be
                built.
            DamagedFileError: the weights cannot be read.
            DataError: the images are not available.
        """
        kind, stored = read_config(path, tuple(TRAININGS), trust=trust)
        config = stored_config(TRAININGS[kind], stored)
        weights = Path(path) / "model.safetensors"
        if not weights.exists():
            raise RunError(f"{path}: this training has not finished (model.safetensors is missing); --resume it first")
        if data_root is not None:
            config = replace(config, data=replace(config.data, data_root=data_root))
        data = load_data(config)
        require_same_data(Path(path), data)
        state = load_weights(weights)
        try:
            network = trained_network(
                state,
                config.train.model,
                num_classes=data.num_classes,
                image_shape=data.test.image_shape,
                mean=data.mean,
                std=data.std,
                embedding=config.train.embedding,
            )
        except InputError as error:
            raise RunError(f"{weights}: {error}") from error
        network.to(device).to(memory_format=torch.channels_last)
        return cls(Path(path), config, data, network, device)
