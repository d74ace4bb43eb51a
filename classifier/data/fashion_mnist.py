"""Fashion-MNIST (Xiao, Rasul and Vollgraf, arXiv 1708.07747): 70,000 grey images of clothes, 28x28 pixels, 10 classes.

Read from the four IDX files, plain or gzipped, wherever they are found first: the folder asked for, the user's data
folder, the Debian package's folder; else downloaded by torchvision into the user's data folder.
"""

import gzip
import math
import os
import struct
import tempfile
import zlib
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from classifier.data.image_set import DataError, Dataset, ImageSet

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

DEBIAN_FOLDER = Path("/usr/share/datasets")
LAYOUTS = (Path("."), Path("fashion-mnist"), Path("FashionMNIST/raw"))  # Debian's and torchvision's names

IMAGES_MAGIC = 0x0803  # unsigned bytes in 3 dimensions
LABELS_MAGIC = 0x0801  # unsigned bytes in 1 dimension


def load_fashion_mnist(root: Path | None = None) -> Dataset:
    """Load Fashion-MNIST, downloading it if it is nowhere to be found.

    The first folder that holds any of the four files must hold all of them, whole: a damaged copy is an error, never
    passed over for another.

    Args:
        root: folder to look in first, itself and its `fashion-mnist` and `FashionMNIST/raw`.

    Raises:
        DataError: a file is missing or damaged, or the download failed.
    """
    folders = [user_folder(), DEBIAN_FOLDER] if root is None else [root, user_folder(), DEBIAN_FOLDER]
    candidates = (folder / layout for folder in folders for layout in LAYOUTS)
    found = next((folder for folder in candidates if any(_find(folder, name) for name in FILES)), None)
    folder = found if found is not None else _download(user_folder())
    return Dataset(
        name="fashion_mnist",
        pool=_read_image_set(folder, "train"),
        test=_read_image_set(folder, "t10k"),
        class_names=CLASS_NAMES,
        mean=(0.2860,),
        std=(0.3530,),
        flip=True,
        crop_padding=2,
    )


def user_folder() -> Path:
    """Where downloaded data is kept: `$RLMIX_DATA`, or `~/.cache/rlmix/data` where that is not set."""
    return Path(os.environ.get("RLMIX_DATA") or "~/.cache/rlmix/data").expanduser()


def read_images(path: Path) -> Tensor:
    """Read an IDX file of images, gzipped if its name ends in .gz.

    Returns:
        `[N, 1, H, W]`, uint8.

    Raises:
        DataError: the file cannot be read, is no image file, or is cut or too long.
    """
    values, shape = _read_idx(path, IMAGES_MAGIC, rank=3)
    return values.view(shape).unsqueeze(1)


def read_labels(path: Path) -> Tensor:
    """Read an IDX file of labels, gzipped if its name ends in .gz.

    Returns:
        `[N]`, int64, each from 0 to 9.

    Raises:
        DataError: the file cannot be read, is no label file, is cut or too long, or has another label.
    """
    values, _ = _read_idx(path, LABELS_MAGIC, rank=1)
    highest = int(values.max())
    if highest >= len(CLASS_NAMES):
        raise _damaged(path, f"labels from 0 to {len(CLASS_NAMES) - 1}", f"label {highest}")
    return values.long()


def _read_idx(path: Path, magic: int, rank: int) -> tuple[Tensor, tuple[int, ...]]:
    # Read here because torchvision's reader takes no gzipped files and checks by `assert`, without a word.
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, "a whole gzip file", str(error)) from error
    except OSError as error:
        raise _damaged(path, "a readable file", str(error)) from error
    header_size = 4 * (1 + rank)
    if len(content) < header_size:
        raise _damaged(path, f"a header of {header_size} bytes", f"{len(content)} bytes in all")
    found_magic, *shape = struct.unpack(f">{1 + rank}I", content[:header_size])
    if found_magic != magic:
        raise _damaged(path, f"an IDX file that begins with 0x{magic:08x}", f"0x{found_magic:08x}")
    size = math.prod(shape)
    if size == 0:
        raise _damaged(path, "at least one value", f"dimensions {shape}")
    if len(content) != header_size + size:
        raise _damaged(
            path, f"{size} bytes after the header (dimensions {shape})", f"{len(content) - header_size} bytes"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header_size), tuple(shape)


def _read_image_set(folder: Path, part: str) -> ImageSet:
    paths = {}
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        path = _find(folder, name)
        if path is None:
            raise _damaged(folder / name, "this file or its .gz beside the others", "neither")
        paths[name] = path
    images_path, labels_path = paths.values()
    images, labels = read_images(images_path), read_labels(labels_path)
    if len(images) != len(labels):
        raise _damaged(labels_path, f"{len(images)} labels, as many as {images_path.name} has images", f"{len(labels)}")
    return ImageSet(images, labels)


def _find(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _download(folder: Path) -> Path:
    # Here, not above: it takes seconds, and only a first download needs it.
    from torchvision.datasets import FashionMNIST

    target = folder / "FashionMNIST" / "raw"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside its final place, then renamed: the files are there all at once or not at all. torchvision checks MD5.
        with tempfile.TemporaryDirectory(prefix=".fashion-mnist-", dir=folder) as partial:
            FashionMNIST(partial, download=True)
            try:
                (Path(partial) / "FashionMNIST" / "raw").rename(target)
            except OSError:
                # Another process may have finished the same download in the meantime; its copy is as good.
                if not all(_find(target, name) for name in FILES):
                    raise
    except (RuntimeError, OSError, HTTPException, EOFError, zlib.error) as error:
        raise DataError(
            f"Fashion-MNIST: expected its files in a known folder or a download to {target}, got no files and "
            f"{type(error).__name__}: {error}; run again when the network is there, {_elsewhere(target)}"
        ) from error
    return target


def _damaged(path: Path, expected: str, came: str) -> DataError:
    return DataError(
        f"{path}: expected {expected}, got {came}; delete the folder's four Fashion-MNIST files and run again to "
        f"download them, {_elsewhere(path.parent)}"
    )


def _elsewhere(folder: Path) -> str:
    return (
        "or on Debian `apt-get install dataset-fashion-mnist`, "
        f"or put the four files ({', '.join(FILES)}, plain or .gz) in {folder}"
    )
