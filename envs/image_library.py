"""ImageLibrary: several data sets, each loaded once and resized once to each size that a task asks for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from rlmix.classifier.data import Dataset, Splits, in_grey, load_dataset, resized, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.evaluation.measure import subject_of
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer

HELD_OUT = 2000  # most images for validation, and for development; else a fifth of the pool each
# The network whose confusions become wrong labels: it has learned a little, so that it still confuses classes.
CONFUSED = TrainConfig(updates=300, batch_size=64, lr=0.1, device="cpu", precision="fp32")
CONFUSED_SIDE = 16  # pixels


class ImageLibrary:
    """Data sets by name, in memory as bytes, for tasks of several data sets.

    Args:
        places: what `load_dataset` takes for each data set, by the name that tasks use.

    Raises:
        ValueError: there is no data set.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        if not places:
            raise InputError("a library needs at least one data set, got none")
        self.places = dict(places)
        self._loaded: dict[str, Dataset] = {}
        self._splits: dict[tuple[str, int, bool], Splits] = {}
        self._confusions: dict[str, NDArray[np.float64]] = {}

    def splits(self, name: str, image_size: int, *, grey: bool = False) -> Splits:
        """Return a data set's splits at a size; the images of each split are the same at every size.

        Args:
            name: name of the data set.
            image_size: side of the images in pixels.
            grey: whether colour images are made grey.

        Raises:
            DataError: the data set is not available, or streamed from files.
            ValueError: the library has no such data set.
        """
        key = (name, image_size, grey or self._dataset(name).pool.image_shape[0] == 1)
        if key not in self._splits:
            dataset = self._dataset(name)
            dataset = resized(in_grey(dataset) if grey else dataset, image_size)
            held_out = min(HELD_OUT, len(dataset.pool) // 5)
            own = dataset.validation is not None  # validation images of its own: all of them are used
            self._splits[key] = split(dataset, validation_size=None if own else held_out, development_size=held_out)
        return self._splits[key]

    def colour(self, name: str) -> bool:
        """Return whether a data set's images have colours."""
        return self._dataset(name).pool.image_shape[0] > 1

    def confusions(self, name: str) -> NDArray[np.float64]:
        """Return how a small network that has learned the data set a little confuses its classes.

        The network is trained once, for some seconds, on 16-pixel images.

        Returns:
            `[K, K]`, mean probability of each class (column) for the validation images of each class (row).
        """
        if name not in self._confusions:
            splits = self.splits(name, CONFUSED_SIDE)
            trainer = Trainer(CONFUSED, splits)
            trainer.train(MixPolicy({"clean": 1.0}), CONFUSED.updates, probe=False)
            seen = subject_of(trainer, "validation").predictions
            probabilities = seen.logits.softmax(dim=1).double()
            rows = [probabilities[seen.labels == label].mean(dim=0) for label in range(splits.num_classes)]
            self._confusions[name] = torch.stack(rows).numpy().round(3)
        return self._confusions[name]

    def _dataset(self, name: str) -> Dataset:
        if name not in self.places:
            raise InputError(f"dataset must be one of {', '.join(self.places)}, got {name!r}")
        if name not in self._loaded:
            self._loaded[name] = load_dataset(self.places[name])
        return self._loaded[name]
