"""Published sets of small images that torchvision downloads, checks and holds in memory: EMNIST and STL-10."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlmix.classifier.data.archives import printable
from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.downloads import torchvision_root
from rlmix.classifier.data.image_set import DataError, ImageSet


@dataclass(frozen=True)
class Source:
    """Properties of one of the data sets.

    Args:
        title: name as its authors write it.
        torchvision: name of its class in `torchvision.datasets`.
        folder: folder of its files, below the one that torchvision is given.
        arguments: arguments of torchvision's class for training and test images.
        images: returns the images `[N, C, H, W]` of an object of torchvision's class.
        labels: returns their classes.
        class_names: name of each class.
        mean, std: mean and standard deviation of each channel.
        flip: whether a mirrored image still shows its class.
        crop_padding: width of the border for random crops.
    """

    title: str
    torchvision: str
    folder: str
    arguments: tuple[dict[str, Any], dict[str, Any]]
    images: Callable[[Any], Tensor]
    labels: Callable[[Any], Tensor]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int


SETS = {
    "emnist": Source(
        "EMNIST (balanced)",
        "EMNIST",
        "EMNIST/raw",
        ({"split": "balanced", "train": True}, {"split": "balanced", "train": False}),
        images=lambda data: data.data.transpose(1, 2)[:, None].contiguous(),  # the files hold them on their side
        labels=lambda data: data.targets.long(),
        class_names=tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"),
        mean=(0.1751,),
        std=(0.3332,),
        flip=False,
        crop_padding=2,
    ),
    "stl10": Source(
        "STL-10",
        "STL10",
        "stl10_binary",
        ({"split": "train"}, {"split": "test"}),
        images=lambda data: torch.from_numpy(np.ascontiguousarray(data.data)),
        labels=lambda data: torch.from_numpy(data.labels.astype(np.int64)),
        class_names=("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
        mean=(0.4467, 0.4398, 0.4066),
        std=(0.2603, 0.2566, 0.2713),
        flip=True,
        crop_padding=6,
    ),
}


def load_arrays(name: str, root: Path | None = None) -> Dataset:
    """Load a data set of `SETS`, downloading it if it is not found.

    Args:
        name: a key of `SETS`.
        root: folder to look in first; it holds the files as torchvision lays them out.

    Raises:
        DataError: a file is missing or damaged, or the download failed.
    """
    from torchvision import datasets  # takes seconds

    source = SETS[name]
    kind = getattr(datasets, source.torchvision)
    place = torchvision_root(source.title, kind, source.folder, source.arguments, root)
    try:
        parts = [kind(place, **arguments) for arguments in source.arguments]
        pool, test = (ImageSet(source.images(data), source.labels(data)) for data in parts)
    except (RuntimeError, OSError, ValueError, LookupError, EOFError, AssertionError) as error:
        raise DataError(
            f"{printable(place / source.folder)}: expected the files of {source.title} as published, got "
            f"{type(error).__name__}: {error!s:.300}; delete the folder and run again to download it"
        ) from error
    return Dataset(
        name=name,
        pool=pool,
        test=test,
        class_names=source.class_names,
        mean=source.mean,
        std=source.std,
        flip=source.flip,
        crop_padding=source.crop_padding,
    )


READERS: dict[str, Callable[[Path | None], Dataset]] = {name: partial(load_arrays, name) for name in SETS}
