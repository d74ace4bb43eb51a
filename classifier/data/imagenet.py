"""ImageNet, ILSVRC 2012 (Russakovsky et al. 2015): 1,331,167 photographs of 1,000 classes, streamed from files."""

import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError

import torch

from rlmix.classifier.data.archives import printable
from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.downloads import user_folder
from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.image_folder import class_folders, image_files
from rlmix.classifier.data.image_set import DataError

FOLDER = "imagenet"
NUM_CLASSES = 1_000
COUNTS = {"train": 1_281_167, "val": 50_000}
SIZE = 224

DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "meta.bin"  # written by torchvision from the devkit
ARCHIVES = (DEVKIT, "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")


def load_imagenet(root: Path | None = None) -> Dataset:
    """Load ImageNet's training and validation files; the latter are the test set, as in the papers.

    It may not be downloaded without an account. A folder holds either `train/WNID/*.JPEG` and `val/WNID/*.JPEG`, or
    the three published archives, which torchvision checks and unpacks there once (another 150 GB). With the devkit's
    archive classes have their English names, without it their WordNet numbers; their order is the same.

    Args:
        root: folder to look in first, itself and its `imagenet`; then `imagenet` in the user's data folder.

    Raises:
        DataError: not found, damaged, or with another number of classes or images than published.
    """
    home = user_folder() / FOLDER
    places = [home] if root is None else [root, root / FOLDER, home]
    known = (*ARCHIVES, META, "train", "val")
    folder = next((place for place in places if any((place / name).exists() for name in known)), None)
    if folder is None:
        raise DataError(
            f"ImageNet: expected its files in {' or '.join(map(printable, places))}, got none; get the archives "
            f"{', '.join(ARCHIVES)} with an account at https://image-net.org/download.php and put them, or train/ and "
            f"val/ unpacked, in {printable(home)}"
        )
    if (folder / DEVKIT).is_file() or (folder / META).is_file():
        wnids, class_names, train, val = _by_torchvision(folder)
    else:
        wnids = class_folders(folder / "train")
        class_names = tuple(wnids)
        val_wnids = class_folders(folder / "val")
        if val_wnids != wnids:
            raise _damaged(
                folder / "val", "the class folders of train", f"{len(val_wnids)} folders of which some differ"
            )
        train, val = (_files(*image_files(folder / part, wnids)) for part in COUNTS)
    if len(wnids) != NUM_CLASSES:
        raise _damaged(folder / "train", f"{NUM_CLASSES} class folders", f"{len(wnids)}")
    for part, files in zip(COUNTS, (train, val), strict=True):
        if len(files) != COUNTS[part]:
            raise _damaged(folder / part, f"{COUNTS[part]} images", f"{len(files)}")
    return Dataset(
        name="imagenet",
        pool=train,
        test=val,
        class_names=class_names,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        flip=True,
        crop_padding=0,  # streamed crops are cut from the whole photograph
    )


def _by_torchvision(folder: Path) -> tuple[list[str], tuple[str, ...], ImageFiles, ImageFiles]:
    # Imported here because it takes seconds.
    from torchvision.datasets import ImageNet

    try:
        train, val = (ImageNet(folder, part) for part in COUNTS)
    except (
        RuntimeError,
        OSError,
        ValueError,
        KeyError,
        EOFError,
        UnpicklingError,
        tarfile.TarError,
        zlib.error,
    ) as error:
        raise _damaged(folder, f"the published archives {', '.join(ARCHIVES)}", str(error)) from error
    if val.wnids != train.wnids:
        raise _damaged(folder / "val", "the class folders of train", f"{len(val.wnids)} folders of which some differ")
    names = tuple(", ".join(names) for names in train.classes)
    files = [
        _files([path for path, _ in part.samples], torch.tensor(part.targets, dtype=torch.int64))
        for part in (train, val)
    ]
    return train.wnids, names, files[0], files[1]


def _files(paths: Iterable[str], labels: torch.Tensor) -> ImageFiles:
    return ImageFiles(tuple(paths), labels, SIZE)


def _damaged(path: Path, expected: str, came: str) -> DataError:
    return DataError(
        f"{printable(path)}: expected {expected}, got {came}; unpack ImageNet again, or load a part of it as a folder "
        "of images, by its path"
    )
