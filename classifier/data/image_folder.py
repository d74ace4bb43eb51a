"""A user's own folder of images, one sub-folder for each class, in memory or streamed."""

import math
import os
import statistics
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from rlmix.classifier.data.dataset import Dataset, Images
from rlmix.classifier.data.decoding import ENDINGS, MAX_THREADS, decode_squares, printable, read_size
from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.image_set import DataError, ImageSet
from rlmix.classifier.data.stratify import set_apart
from rlmix.classifier.hardware import available_memory

TEST_NAMES = ("test", "val", "valid", "validation")

# Without a test folder, a fixed fifth of each class is the test set; the seed must never change.
TEST_SEED = 1_797
TEST_SHARE = 0.2

MAX_GUESSED_SIZE = 64  # pixels, where images differ in size: what a search on one machine can afford
MEMORY_SHARE = 0.25  # of the free memory, for the images; the rest is for the network and other copies
SAMPLE = 5_000  # images whose headers, and in streamed sets whose pixels, are read beforehand

LAYOUT = "PATH/train/CLASS/*.jpg with PATH/test/CLASS/*.jpg (or val), or PATH/CLASS/*.jpg alone"


def load_image_folder(path: str | Path, *, image_size: int | None = None, streamed: bool | None = None) -> Dataset:
    """Load a folder of images: PATH/train/CLASS/* with PATH/test/CLASS/* (or val), or PATH/CLASS/* alone.

    Without a test folder, a fixed stratified fifth is the test set. Classes are in alphabetical order and images are
    searched in sub-folders too, as by torchvision's `ImageFolder`; hidden files and folders and files with other
    endings are ignored, links are followed but never in circles. Every image becomes RGB, its shorter side
    `image_size`, its middle kept. Mean and std are those of the pool's images (streamed: of up to 5,000 of them).

    Args:
        path: path of the folder.
        image_size: side in pixels; optional, defaults to the images' own if all have one size, else to the median
            shorter side but at most 64, with a warning.
        streamed: whether images stay in their files; optional, defaults to whether they would take more than a quarter
            of the free memory.

    Raises:
        DataError: another layout, one class only, a class without an image, classes in which train and test differ,
            or a file that is no whole image.
    """
    folder = Path(path).expanduser()
    name = printable(folder)
    train_folder, test_folder = _parts(folder)
    classes = class_folders(train_folder)
    if len(classes) < 2:
        raise DataError(
            f"{printable(train_folder)}: expected a folder for each of 2 or more classes, got {classes or 'none'}; "
            f"lay the images out as {LAYOUT}"
        )
    train_paths, train_labels = image_files(train_folder, classes)
    if test_folder is None:
        remaining, apart = set_apart(train_labels.numpy(), len(classes), share=TEST_SHARE, seed=TEST_SEED)
        if len(apart) == 0:
            raise DataError(
                f"{name}: expected enough images to set a fifth apart as test set, got {len(train_paths)}; "
                f"add some, or a test folder: {LAYOUT}"
            )
        test_paths, test_labels = [train_paths[place] for place in apart], train_labels[torch.from_numpy(apart)]
        train_paths = [train_paths[place] for place in remaining]
        train_labels = train_labels[torch.from_numpy(remaining)]
    else:
        other = class_folders(test_folder)
        if other != classes:
            differing = ", ".join(map(printable, sorted(set(classes) ^ set(other))))
            raise DataError(
                f"{printable(test_folder)}: expected the class folders of {printable(train_folder)}, got others: "
                f"{differing} in one of the two only; rename or remove them"
            )
        test_paths, test_labels = image_files(test_folder, classes)
    sample = train_paths[:: math.ceil(len(train_paths) / SAMPLE)]
    if image_size is None:
        image_size = _usual_size(name, sample)
    elif image_size < 1:
        raise DataError(f"{name}: expected an image_size of 1 pixel or more, got {image_size}; 32 or 64 is usual")
    if streamed is None:
        needed = (len(train_paths) + len(test_paths)) * 3 * image_size**2
        streamed = needed > MEMORY_SHARE * available_memory()
    pool: Images
    test: Images
    if streamed:
        pool = ImageFiles(tuple(train_paths), train_labels, image_size)
        test = ImageFiles(tuple(test_paths), test_labels, image_size)
        mean, std = mean_and_std(decode_squares(sample, image_size))
    else:
        pixels = decode_squares(train_paths, image_size)
        mean, std = mean_and_std(pixels)
        pool, test = ImageSet(pixels, train_labels), ImageSet(decode_squares(test_paths, image_size), test_labels)
    return Dataset(
        name=name,
        pool=pool,
        test=test,
        class_names=tuple(map(printable, classes)),
        mean=mean,
        std=std,
        flip=True,
        crop_padding=max(1, image_size // 16),  # 2 at 32 pixels, 4 at 64, as published for CIFAR and Tiny-ImageNet
    )


def class_folders(folder: Path) -> list[str]:
    """Return the names of a folder's own folders in alphabetical order, without hidden ones.

    Raises:
        DataError: the folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(
            f"{printable(folder)}: expected a folder with one folder for each class, got {error.strerror}; "
            f"check the path, and lay the images out as {LAYOUT}"
        ) from error


def image_files(folder: Path, classes: Sequence[str]) -> tuple[list[str], Tensor]:
    """Return the image files of each class folder and below, in the order of torchvision's `ImageFolder`.

    Returns:
        N paths and their labels `[N]`, int64.

    Raises:
        DataError: a class without an image, or a folder that cannot be read.
    """
    paths: list[str] = []
    counts = []
    for name in classes:
        found = _images_below(folder / name)
        if not found:
            raise DataError(
                f"{printable(folder / name)}: expected images of this class ({', '.join(ENDINGS)}), got none; add some "
                f"or remove the folder, and check the layout: {LAYOUT}"
            )
        paths += found
        counts.append(len(found))
    return paths, torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images `[N, C, H, W]` scaled to [0, 1].

    Exact, from each channel's histogram. A channel of one value gets the deviation 1 / 255.
    """
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for chunk in images[:, channel].split(10_000):
            counts += torch.bincount(chunk.flatten(), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ values)
        means.append(mean)
        stds.append(max(math.sqrt(float(share @ (values - mean).square())), 1 / 255))
    return tuple(means), tuple(stds)


def _parts(folder: Path) -> tuple[Path, Path | None]:
    """Return the folders of training and test classes; None where the test set is a part of the training folder."""
    names = class_folders(folder)
    tests = [name for name in TEST_NAMES if name in names]
    if "train" in names and tests:
        if len(tests) > 1:
            warnings.warn(
                f"{printable(folder)}: {tests[0]} is the test set; {', '.join(tests[1:])} is not used, as validation "
                "images are taken from train",
                stacklevel=3,
            )
        return folder / "train", folder / tests[0]
    if names == ["train"]:
        return folder / "train", None
    return folder, None


def _images_below(folder: Path) -> list[str]:
    found = []
    seen = set()
    open_folders = [str(folder)]
    while open_folders:
        current = open_folders.pop()
        real = os.path.realpath(current)
        if real in seen:  # a link to a folder that was searched already
            continue
        seen.add(real)
        try:
            with os.scandir(current) as entries:
                visible = [(entry, _is_folder(entry)) for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise DataError(
                f"{printable(current)}: expected a readable folder, got {error.strerror}; "
                "let this user read it, or remove it"
            ) from error
        open_folders += [entry.path for entry, is_folder in visible if is_folder]
        images = sorted(
            entry.name for entry, is_folder in visible if not is_folder and entry.name.lower().endswith(ENDINGS)
        )
        found.append((current, images))
    return [os.path.join(current, name) for current, images in sorted(found) for name in images]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


def _usual_size(name: str, paths: Sequence[str]) -> int:
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        sizes = list(pool.map(read_size, paths))
    shorter = [min(size) for size in sizes]
    if len(set(sizes)) == 1:
        return shorter[0]
    size = min(MAX_GUESSED_SIZE, int(statistics.median(shorter)))
    warnings.warn(
        f"{name}: the images' shorter sides are {min(shorter)} to {max(shorter)} pixels long; all are made {size} x "
        f"{size}: the shorter side is scaled to {size} and the middle kept; image_size asks for another size",
        stacklevel=3,
    )
    return size
