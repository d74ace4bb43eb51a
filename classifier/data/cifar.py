"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 colour images of 32x32 pixels, read and checked by torchvision."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.downloads import download_whole, user_folder
from rlmix.classifier.data.image_set import DataError, ImageSet

STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def load_cifar(name: str, root: Path | None = None) -> Dataset:
    """Load CIFAR-10 or CIFAR-100, downloading it if it is not found.

    Args:
        name: `cifar10` or `cifar100`.
        root: folder to look in first; it holds `cifar-10-batches-py` or `cifar-100-python`.

    Raises:
        DataError: a file is missing or damaged (its MD5 is not the published one), or the download failed.
    """
    # Imported here because it takes seconds.
    from torchvision.datasets import CIFAR10, CIFAR100

    kind = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folders = [user_folder()] if root is None else [root, user_folder()]
    folder = next((candidate for candidate in folders if (candidate / kind.base_folder).is_dir()), None)
    if folder is None:
        folder = user_folder()
        _download(kind, name, folder / kind.base_folder)
    try:
        train, test = (kind(folder, train=part) for part in (True, False))
    except (RuntimeError, OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"{folder / kind.base_folder}: expected the files of {name} as published, got {error}; "
            "delete the folder and run again to download it"
        ) from error
    mean, std = STATISTICS[name]
    return Dataset(
        name=name,
        pool=_image_set(train),
        test=_image_set(test),
        class_names=tuple(train.classes),
        mean=mean,
        std=std,
        flip=True,
        crop_padding=2,  # as R-Mix and Puzzle Mix published
    )


load_cifar10 = partial(load_cifar, "cifar10")
load_cifar100 = partial(load_cifar, "cifar100")


def _image_set(data: Any) -> ImageSet:
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(data.targets))


def _download(kind: Any, name: str, target: Path) -> None:
    def fetch(folder: Path) -> Path:
        kind(folder, download=True)  # checks MD5
        return folder / kind.base_folder

    download_whole(
        name,
        target,
        fetch,
        complete=target.is_dir,
        otherwise=f"put the unpacked folder {target.name} in {target.parent}",
    )
