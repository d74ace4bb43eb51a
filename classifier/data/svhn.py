"""SVHN (Netzer et al. 2011): 99,289 colour images of house numbers' digits, 32x32 pixels, without the extra set."""

from pathlib import Path

import numpy as np
import torch

from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.downloads import download_whole, user_folder
from rlmix.classifier.data.image_set import DataError, ImageSet

FILES = ("train_32x32.mat", "test_32x32.mat")
FOLDER = "svhn"


def load_svhn(root: Path | None = None) -> Dataset:
    """Load SVHN's training and test set, downloading them if they are not found.

    Labels are as torchvision gives them: the digit 0, which the files number 10, is class 0.

    Args:
        root: folder to look in first, itself and its `svhn`; it holds `train_32x32.mat` and `test_32x32.mat`.

    Raises:
        DataError: a file is missing or damaged (its MD5 is not the published one), or the download failed.
    """
    # Imported here because it takes seconds.
    from torchvision.datasets import SVHN

    home = user_folder() / FOLDER
    places = [home] if root is None else [root, root / FOLDER, home]
    folder = next((place for place in places if any((place / file).is_file() for file in FILES)), None)
    if folder is None:
        folder = home
        _download(folder)
    image_sets = {}
    for part, file in zip(("train", "test"), FILES, strict=True):
        try:
            data = SVHN(folder, split=part)
        except (RuntimeError, OSError, ValueError, KeyError) as error:
            raise DataError(
                f"{folder / file}: expected this file as published, got {error}; delete the folder's .mat files and "
                f"run again to download them, or put {' and '.join(FILES)} there"
            ) from error
        images = torch.from_numpy(np.ascontiguousarray(data.data))
        image_sets[part] = ImageSet(images, torch.from_numpy(data.labels))
    return Dataset(
        name="svhn",
        pool=image_sets["train"],
        test=image_sets["test"],
        class_names=tuple(str(digit) for digit in range(10)),
        mean=(0.4377, 0.4438, 0.4728),
        std=(0.1980, 0.2010, 0.1970),
        flip=False,
        crop_padding=2,
    )


def _download(target: Path) -> None:
    from torchvision.datasets import SVHN

    def fetch(folder: Path) -> Path:
        for part in ("train", "test"):
            SVHN(folder / FOLDER, split=part, download=True)  # checks MD5
        return folder / FOLDER

    download_whole(
        "SVHN",
        target,
        fetch,
        complete=lambda: all((target / file).is_file() for file in FILES),
        otherwise=f"put {' and '.join(FILES)} in {target}",
    )
