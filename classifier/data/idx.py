"""MNIST, KMNIST, Fashion-MNIST: 70,000 grey images of 28x28 pixels each, in 10 classes, published as four IDX files.

MNIST (LeCun et al. 1998) shows digits, KMNIST (Clanuwat et al., arXiv 1812.01718) Japanese characters, Fashion-MNIST
(Xiao, Rasul and Vollgraf, arXiv 1708.07747) clothes. The files are read plain or gzipped, wherever they are found
first: the folder asked for, the user's data folder, the Debian package's folder; else downloaded by torchvision into
the user's data folder.
"""

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.downloads import download_whole, user_folder
from rlmix.classifier.data.image_set import DataError, ImageSet

NUM_CLASSES = 10
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

DEBIAN_FOLDER = Path("/usr/share/datasets")

MAX_BYTES = 2**28  # of a file, unpacked: a few kilobytes of gzip can hold more than any memory

IMAGES_MAGIC = 0x0803  # unsigned bytes in 3 dimensions
LABELS_MAGIC = 0x0801  # unsigned bytes in 1 dimension


@dataclass(frozen=True)
class Source:
    """Properties of one of the data sets.

    Args:
        title: name as its authors write it.
        torchvision: name of its class in `torchvision.datasets`, and of the download's folder.
        layouts: folders to look in, below a given one: Debian's and torchvision's names, or the folder itself. Both
            data sets have files of the same names, so the folder itself comes last where there is no older custom.
        elsewhere: another source of the files, for errors.
    """

    title: str
    torchvision: str
    layouts: tuple[Path, ...]
    class_names: tuple[str, ...]
    mean: float
    std: float
    flip: bool
    elsewhere: str = ""


SOURCES = {
    "mnist": Source(
        title="MNIST",
        torchvision="MNIST",
        layouts=(Path("mnist"), Path("MNIST/raw"), Path(".")),
        class_names=tuple(str(digit) for digit in range(NUM_CLASSES)),
        mean=0.1307,
        std=0.3081,
        flip=False,
    ),
    "kmnist": Source(
        title="KMNIST",
        torchvision="KMNIST",
        layouts=(Path("kmnist"), Path("KMNIST/raw")),
        class_names=("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        mean=0.1918,
        std=0.3483,
        flip=False,
    ),
    "fashion_mnist": Source(
        title="Fashion-MNIST",
        torchvision="FashionMNIST",
        layouts=(Path("."), Path("fashion-mnist"), Path("FashionMNIST/raw")),
        class_names=(
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
        ),
        mean=0.2860,
        std=0.3530,
        flip=True,
        elsewhere="on Debian `apt-get install dataset-fashion-mnist`, or ",
    ),
}


def load_idx(name: str, root: Path | None = None) -> Dataset:
    """Load MNIST, KMNIST or Fashion-MNIST, downloading it if it is not found.

    The first folder that holds any of the four files must hold all of them, whole: a damaged copy is an error, never
    passed over for another.

    Args:
        name: `mnist`, `kmnist` or `fashion_mnist`.
        root: folder to look in first, itself and its `mnist` and `MNIST/raw` (`fashion-mnist`, `FashionMNIST/raw`); of
            KMNIST only `kmnist` and `KMNIST/raw`.

    Raises:
        DataError: a file is missing or damaged, or the download failed.
    """
    source = SOURCES[name]
    # MNIST is not looked for in the user's folder itself: Fashion-MNIST's files, of the same names, may lie there.
    places = [folder / layout for folder in ([] if root is None else [root]) for layout in source.layouts]
    for folder in (user_folder(), DEBIAN_FOLDER):
        places += [folder / layout for layout in source.layouts if name == "fashion_mnist" or layout != Path(".")]
    found = next((place for place in places if any(_find(place, file) for file in FILES)), None)
    folder = found if found is not None else _download(source)
    try:
        pool, test = (_read_image_set(folder, part) for part in ("train", "t10k"))
    except DataError as error:
        raise DataError(
            f"{error}; delete the folder's four {source.title} files and run again to download them, or "
            f"{_otherwise(source, folder)}"
        ) from error
    return Dataset(
        name=name,
        pool=pool,
        test=test,
        class_names=source.class_names,
        mean=(source.mean,),
        std=(source.std,),
        flip=source.flip,
        crop_padding=2,
    )


load_mnist = partial(load_idx, "mnist")
load_kmnist = partial(load_idx, "kmnist")
load_fashion_mnist = partial(load_idx, "fashion_mnist")


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
    if highest >= NUM_CLASSES:
        raise _damaged(path, f"labels from 0 to {NUM_CLASSES - 1}", f"label {highest}")
    return values.long()


def _read_idx(path: Path, magic: int, rank: int) -> tuple[Tensor, tuple[int, ...]]:
    # Read here because torchvision's reader takes no gzipped files and checks by `assert`, without a word.
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(path, "a whole gzip file", str(error)) from error
    except OSError as error:
        raise _damaged(path, "a readable file", str(error)) from error
    if len(content) > MAX_BYTES:
        raise _damaged(path, f"at most {MAX_BYTES:,} bytes, which is five times the published images", "more")
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


def _download(source: Source) -> Path:
    # Imported here because it takes seconds.
    from torchvision import datasets

    target = user_folder() / source.torchvision / "raw"

    def fetch(folder: Path) -> Path:
        getattr(datasets, source.torchvision)(folder, download=True)  # checks MD5
        return folder / source.torchvision / "raw"

    download_whole(
        source.title,
        target,
        fetch,
        complete=lambda: all(_find(target, name) for name in FILES),
        otherwise=_otherwise(source, target),
    )
    return target


def _damaged(path: Path, expected: str, came: str) -> DataError:
    return DataError(f"{path}: expected {expected}, got {came}")


def _otherwise(source: Source, folder: Path) -> str:
    return f"{source.elsewhere}put the four files ({', '.join(FILES)}, plain or .gz) in {folder}"
