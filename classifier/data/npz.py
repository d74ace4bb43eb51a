"""Images in a NumPy file, as MedMNIST (Yang et al. 2023) writes them: `train_images`, `train_labels` and the like.

Read without pickle: nothing in the file can run code.
"""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlmix.classifier.data.archives import printable
from rlmix.classifier.data.dataset import Dataset, resized
from rlmix.classifier.data.image_set import DataError, ImageSet
from rlmix.classifier.data.listing import TEST_SEED, TEST_SHARE, mean_and_std, warn_of_leaks
from rlmix.classifier.data.stratify import set_apart
from rlmix.classifier.limits import require_memory

Array = np.ndarray[Any, Any]

PARTS = ("train", "val", "test")
KEYS = tuple(f"{part}_{kind}" for part in PARTS for kind in ("images", "labels"))
LAYOUT = "train_images uint8 [N, H, W] or [N, H, W, C] with train_labels [N] or [N, 1], and likewise val_* and test_*"
MAX_CLASSES = 100_000


def load_npz(path: str | Path, *, image_size: int | None = None) -> Dataset:
    """Load images and labels from arrays `train_images`, `train_labels`, and optionally `val_*` and `test_*`.

    Labels are whole numbers; those of the training images are the classes. `val_*` gives the validation images beside
    `test_*`, else the test images; without either, a fixed stratified fifth of the training images is the test set.

    Args:
        path: path of the file.
        image_size: side that images are resized to; optional, defaults to their own.

    Raises:
        DataError: a damaged file, arrays that are missing or have another type or shape, labels of several classes for
            one image, or more than fits in memory.
    """
    name = printable(path)
    arrays = _read(path, name)
    parts = {part: _image_set(name, arrays, part) for part in PARTS if part == "train" or f"{part}_images" in arrays}
    return _dataset(name, parts, image_size)


def _dataset(name: str, parts: dict[str, ImageSet], image_size: int | None) -> Dataset:
    classes = parts["train"].labels.unique()
    if len(classes) < 2:
        raise DataError(f"{name}: expected train_labels of 2 or more classes, got one; give images of each class")
    num_classes = len(classes)
    parts = {part: _numbered(name, images, classes, part) for part, images in parts.items()}
    train = parts["train"]
    if "test" not in parts and "val" not in parts:
        remaining, apart = set_apart(train.labels.numpy(), num_classes, share=TEST_SHARE, seed=TEST_SEED)
        train, parts["test"] = train.take(remaining), train.take(apart)
    mean, std = mean_and_std(train.images)
    data = Dataset(
        name=name,
        pool=train,
        test=parts["test" if "test" in parts else "val"],
        class_names=tuple(map(str, classes.tolist())),
        mean=mean,
        std=std,
        flip=True,
        crop_padding=max(1, min(train.image_shape[1:]) // 16),
        validation=parts["val"] if "test" in parts and "val" in parts else None,
    )
    warn_of_leaks(data)
    return data if image_size is None else resized(data, image_size)


def _numbered(name: str, images: ImageSet, classes: Tensor, part: str) -> ImageSet:
    """Return images with the positions of their labels among the training images' labels."""
    if unknown := sorted({*images.labels.tolist()} - {*classes.tolist()}):
        raise DataError(
            f"{name}: expected {part}_labels among those of train_labels, got {', '.join(map(str, unknown)):.80}; give "
            "training images of these classes, or leave them out"
        )
    return ImageSet(images.images, torch.searchsorted(classes, images.labels))


def _image_set(name: str, arrays: dict[str, Array], part: str) -> ImageSet:
    """Return a part's images and labels, checked."""
    for key in (f"{part}_images", f"{part}_labels"):
        if key not in arrays:
            raise DataError(f"{name}: expected {key}, got {', '.join(arrays) or 'none'}; write the arrays as {LAYOUT}")
    images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.size == 0:
        raise _damaged(name, f"{part}_images", "uint8 [N, H, W] or [N, H, W, C]", images)
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        raise _damaged(name, f"{part}_images", "of 1 or 3 channels, the last dimension", images)
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(
            f"{name}: expected one class for each image in {part}_labels, got {labels.shape[1]} columns; images of "
            "several classes at once cannot be trained on"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim not in (1, 2):
        raise _damaged(name, f"{part}_labels", "whole numbers [N] or [N, 1]", labels)
    flat = labels.reshape(-1)
    if len(flat) != len(images):
        raise DataError(
            f"{name}: expected a label for each image, got {len(images)} {part}_images and {len(flat)} "
            f"{part}_labels; check that both were written from the same source"
        )
    if not 0 <= int(flat.min()) <= int(flat.max()) < MAX_CLASSES:
        raise DataError(
            f"{name}: expected {part}_labels from 0 to below {MAX_CLASSES:,}, got {flat.min()} to {flat.max()}; "
            "number the classes from 0"
        )
    return ImageSet(_channels_first(images), torch.from_numpy(flat.astype(np.int64)))


def _channels_first(images: Array) -> Tensor:
    pixels = torch.from_numpy(np.ascontiguousarray(images))
    return (pixels[:, None] if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)).contiguous()


def _read(path: str | Path, name: str) -> dict[str, Array]:
    """Return the file's images and labels; nothing is allocated that does not fit in memory or is not in the file.

    Raises:
        DataError: the file cannot be read, or an array is larger than memory.
    """
    try:
        with zipfile.ZipFile(path) as source:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in source.infolist()}
            needed = {key: entries[key] for key in KEYS if key in entries}
            length = os.path.getsize(path)
            if any(entry.compress_size > length for entry in needed.values()):  # as many bytes would be asked for
                raise zipfile.BadZipFile(f"an array of more bytes than the {length:,} of the file")
            _require_memory(name, 2 * sum(entry.file_size for entry in needed.values()))  # as read, and as tensors
            return {key: _read_array(source, entry) for key, entry in needed.items()}
    except DataError:
        raise
    except Exception as error:  # NumPy's and zipfile's readers raise nearly anything on a damaged file
        raise DataError(
            f"{name}: expected a whole .npz file with {LAYOUT}, got {type(error).__name__}: "
            f"{printable(str(error)):.200}; copy or download it again"
        ) from error


def _read_array(source: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    with source.open(entry) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        told, there = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
        if dtype.hasobject or min(shape, default=0) < 0 or told != there:
            raise ValueError(f"{entry.filename} with {dtype} {list(shape)} in its header and {there:,} bytes")
    with source.open(entry) as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
        return array


def _require_memory(name: str, size: int) -> None:
    try:
        require_memory(size, f"its images, {size:,} bytes")
    except ValueError as error:
        raise DataError(
            f"{name}: {error}; make it smaller, or give a folder of images, which can be streamed"
        ) from None


def _damaged(name: str, key: str, expected: str, came: Array) -> DataError:
    return DataError(
        f"{name}: expected {key} to be {expected}, got {came.dtype} {list(came.shape)}; write the arrays as {LAYOUT}"
    )
