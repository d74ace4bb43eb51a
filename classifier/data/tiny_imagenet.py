"""Tiny-ImageNet (Stanford CS231n 2015): 110,000 images of 64x64 pixels from 200 of ImageNet's classes.

The labels of its test images were never published; as in the papers, its `val` images are the test set here.
"""

from pathlib import Path

import torch

from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.decoding import decode_squares
from rlmix.classifier.data.downloads import download_whole, user_folder
from rlmix.classifier.data.image_set import DataError, ImageSet

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
FOLDER = "tiny-imagenet-200"

NUM_CLASSES = 200
TRAIN_PER_CLASS = 500
NUM_TEST = 10_000
SIZE = 64


def load_tiny_imagenet(root: Path | None = None, *, image_size: int = SIZE) -> Dataset:
    """Load Tiny-ImageNet, downloading it (237 MB) if it is not found.

    Classes are ordered by their WordNet numbers, as torchvision's `ImageFolder` orders them.

    Args:
        root: folder to look in first; it is or holds `tiny-imagenet-200`, unpacked.
        image_size: side of the images in pixels.

    Raises:
        DataError: a file is missing or damaged, or the download failed.
    """
    folders = [user_folder()] if root is None else [root, user_folder()]
    candidates = [candidate for folder in folders for candidate in (folder / FOLDER, folder)]
    is_there = next((folder for folder in candidates if (folder / "wnids.txt").is_file()), None)
    # A copy without its list is damaged, not absent: it is never passed over for a download.
    folder = is_there or next((folder for folder in candidates if folder.name == FOLDER and folder.is_dir()), None)
    if folder is None:
        folder = user_folder() / FOLDER
        _download(folder)
    wnids = sorted(_lines(folder / "wnids.txt"))
    if len(set(wnids)) != NUM_CLASSES or len(wnids) != NUM_CLASSES:
        raise _damaged(folder / "wnids.txt", f"{NUM_CLASSES} different WordNet numbers", f"{len(set(wnids))}")
    train = [(path, label) for label, wnid in enumerate(wnids) for path in _train_files(folder / "train" / wnid)]
    test = _test_files(folder / "val", {wnid: label for label, wnid in enumerate(wnids)})
    return Dataset(
        name="tiny_imagenet",
        pool=_image_set(train, image_size),
        test=_image_set(test, image_size),
        class_names=_class_names(folder / "words.txt", wnids),
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
        flip=True,
        crop_padding=4,  # as Puzzle Mix published
    )


def _train_files(folder: Path) -> list[Path]:
    files = sorted((folder / "images").glob("*.JPEG"))
    if len(files) != TRAIN_PER_CLASS:
        raise _damaged(folder / "images", f"{TRAIN_PER_CLASS} .JPEG files", f"{len(files)}")
    return files


def _test_files(folder: Path, labels: dict[str, int]) -> list[tuple[Path, int]]:
    annotations = folder / "val_annotations.txt"
    lines = _lines(annotations)
    if len(lines) != NUM_TEST:
        raise _damaged(annotations, f"{NUM_TEST} lines", f"{len(lines)}")
    files = []
    for number, line in enumerate(lines, start=1):
        name, wnid, *_ = [*line.split("\t"), ""]  # then the corners of a box
        if wnid not in labels or "/" in name:
            raise _damaged(annotations, f"a file name, a tab and a class of wnids.txt in line {number}", repr(line))
        files.append((folder / "images" / name, labels[wnid]))
    return files


def _class_names(path: Path, wnids: list[str]) -> tuple[str, ...]:
    words = dict(line.split("\t", 1) for line in _lines(path) if "\t" in line)
    absent = next((wnid for wnid in wnids if wnid not in words), None)
    if absent is not None:
        raise _damaged(path, f"a line for {absent}", "none")
    return tuple(words[wnid] for wnid in wnids)


def _image_set(files: list[tuple[Path, int]], size: int) -> ImageSet:
    paths, labels = zip(*files, strict=True)
    return ImageSet(decode_squares(paths, size).pixels, torch.tensor(labels))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, "a readable text file", str(error)) from error


def _damaged(path: Path, expected: str, came: str) -> DataError:
    return DataError(
        f"{path}: expected {expected}, got {came}; delete the {FOLDER} folder and run again to download it, "
        f"or unpack {URL} there"
    )


def _download(target: Path) -> None:
    # Imported here because it takes seconds.
    from torchvision.datasets.utils import download_and_extract_archive

    def fetch(folder: Path) -> Path:
        download_and_extract_archive(URL, str(folder), md5=MD5, remove_finished=True)
        return folder / FOLDER

    download_whole(
        "Tiny-ImageNet",
        target,
        fetch,
        complete=(target / "wnids.txt").is_file,
        otherwise=f"unpack {URL} in {target.parent}",
    )
