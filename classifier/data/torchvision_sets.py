"""Published sets of image files that torchvision finds, downloads and checks: a new one is an entry of `SETS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlmix.classifier.data.archives import printable
from rlmix.classifier.data.downloads import torchvision_root
from rlmix.classifier.data.image_set import DataError
from rlmix.classifier.data.listing import Labelled, Listing

Part = tuple[Sequence[str | Path], Sequence[int]]  # files and their classes


@dataclass(frozen=True)
class Source:
    """Properties of one of the data sets.

    Args:
        title: name as its authors write it.
        torchvision: name of its class in `torchvision.datasets`.
        folder: folder of the unpacked files, below the one that torchvision is given.
        parts: published number of images of each part (`train`, `validation`, `test`).
        arguments: arguments of torchvision's class for each part.
        files: returns the files and classes of an object of torchvision's class.
        names: returns the names of the classes.
        flip: whether a mirrored image still shows its class.
    """

    title: str
    torchvision: str
    folder: str
    parts: dict[str, int]
    arguments: dict[str, dict[str, Any]]
    files: Callable[[Any], Part]
    names: Callable[[Any], Sequence[str]]
    flip: bool = True


def _splits(**names: str) -> dict[str, dict[str, Any]]:
    return {part: {"split": name} for part, name in names.items()}


def _samples(data: Any) -> Part:
    paths, labels = zip(*data, strict=True)
    return paths, labels


def _caltech_file(data: Any, place: int) -> Path:
    name = data.categories[data.y[place]]
    return Path(data.root, "101_ObjectCategories", name, f"image_{data.index[place]:04d}.jpg")


SETS = {
    "gtsrb": Source(
        "GTSRB",
        "GTSRB",
        "gtsrb/GTSRB",
        {"train": 26_640, "test": 12_630},
        _splits(train="train", test="test"),
        files=lambda data: _samples(data._samples),
        names=lambda data: [f"{number:05d}" for number in range(43)],
        flip=False,
    ),
    "eurosat": Source(
        "EuroSAT",
        "EuroSAT",
        "eurosat/2750",
        {"train": 27_000},
        {"train": {}},
        files=lambda data: _samples(data.samples),
        names=lambda data: data.classes,
    ),
    "caltech101": Source(
        "Caltech-101",
        "Caltech101",
        "caltech101/101_ObjectCategories",
        {"train": 8_677},
        {"train": {}},
        files=lambda data: ([_caltech_file(data, place) for place in range(len(data))], data.y),
        names=lambda data: data.categories,
    ),
    "flowers102": Source(
        "Flowers-102",
        "Flowers102",
        "flowers-102",
        {"train": 1_020, "validation": 1_020, "test": 6_149},
        _splits(train="train", validation="val", test="test"),
        files=lambda data: (data._image_files, data._labels),
        names=lambda data: data.classes,
    ),
    "oxford_pets": Source(
        "Oxford-IIIT Pet",
        "OxfordIIITPet",
        "oxford-iiit-pet",
        {"train": 3_680, "test": 3_669},
        _splits(train="trainval", test="test"),
        files=lambda data: (data._images, data._labels),
        names=lambda data: data.classes,
    ),
    "food101": Source(
        "Food-101",
        "Food101",
        "food-101",
        {"train": 75_750, "test": 25_250},
        _splits(train="train", test="test"),
        files=lambda data: (data._image_files, data._labels),
        names=lambda data: data.classes,
    ),
}


def list_published(name: str, root: Path | None = None) -> Listing:
    """List the files of a data set of `SETS`, downloading it if it is not found.

    Without a published test set, a fixed stratified fifth is the test set. Mean and std are computed from the images.

    Args:
        name: a key of `SETS`.
        root: folder to look in first; it holds the files as torchvision lays them out.

    Raises:
        DataError: a file is missing or damaged, there are not as many images as published, or the download failed.
    """
    from torchvision import datasets  # takes seconds

    source = SETS[name]
    kind = getattr(datasets, source.torchvision)
    place = torchvision_root(source.title, kind, source.folder, source.arguments.values(), root)
    parts, names = {}, tuple[str, ...]()
    for part, count in source.parts.items():
        try:
            data = kind(place, **source.arguments[part])
            paths, labels = source.files(data)
            names = tuple(source.names(data))
        except (RuntimeError, OSError, ValueError, LookupError, EOFError, TypeError) as error:
            raise _damaged(source, place, f"its {part} images as published", f"{error!s:.300}") from error
        if len(paths) != count:
            raise _damaged(source, place, f"{count:,} {part} images", f"{len(paths):,}")
        parts[part] = Labelled(tuple(map(str, paths)), torch.tensor(labels, dtype=torch.int64))
    return Listing(name, names, parts["train"], parts.get("test"), parts.get("validation"), source.flip)


READERS: dict[str, Callable[[Path | None], Listing]] = {name: partial(list_published, name) for name in SETS}


def _damaged(source: Source, place: Path, expected: str, came: str) -> DataError:
    return DataError(
        f"{printable(place / source.folder)}: expected {expected}, got {came}; delete the folder and run again to "
        "download it"
    )
