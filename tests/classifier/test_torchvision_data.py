"""Data sets by name that torchvision reads: files of the published format as they are, or refused in one line."""

import gzip
import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from rlmix.classifier.data import DataError, ImageSet, load_dataset, torchvision_sets

SIDE = 6


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Downloads go to a folder of the test's own, and there is no network."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RLMIX_DATA", str(folder))

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    for place in (torchvision.datasets.utils, torchvision.datasets.stl10, torchvision.datasets.mnist):
        for function in ("download_url", "download_and_extract_archive", "_urlretrieve"):
            if hasattr(place, function):
                monkeypatch.setattr(place, function, no_network)
    return folder


def picture(path: Path, number: int) -> None:
    """An image whose colour tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (number, 7 * number % 256, 0)).save(
        path, format="PPM" if path.suffix == ".ppm" else "PNG"
    )


def write_gtsrb(root: Path) -> None:
    for number in range(43 * 2):
        picture(root / f"gtsrb/GTSRB/Training/{number % 43:05d}/{number}.ppm", number)
    rows = ["Filename;Width;Height;ClassId"]
    for number in range(3):
        picture(root / f"gtsrb/GTSRB/Final_Test/Images/{number:05d}.ppm", number)
        rows.append(f"{number:05d}.ppm;6;6;{40 + number}")
    (root / "gtsrb/GT-final_test.csv").write_text("\n".join(rows))


def write_eurosat(root: Path) -> None:
    for number in range(20):
        picture(root / f"eurosat/2750/{('Forest', 'River')[number % 2]}/{number}.jpg", number)


def write_caltech101(root: Path) -> None:
    for name, count in (("BACKGROUND_Google", 1), ("ant", 10), ("yin_yang", 10)):
        for number in range(count):
            picture(root / f"caltech101/101_ObjectCategories/{name}/image_{number + 1:04d}.jpg", number)


def write_flowers102(root: Path) -> None:
    for number in range(102 + 4):
        picture(root / f"flowers-102/jpg/image_{number + 1:05d}.jpg", number)
    labels = [*range(1, 103), 102, 1, 2, 3]
    savemat(root / "flowers-102/imagelabels.mat", {"labels": [labels]})
    splits = {"trnid": [list(range(1, 103))], "valid": [[103, 104]], "tstid": [[105, 106]]}
    savemat(root / "flowers-102/setid.mat", splits)


def write_oxford_pets(root: Path) -> None:
    (root / "oxford-iiit-pet/annotations").mkdir(parents=True)
    for split, numbers in (("trainval", range(8)), ("test", range(8, 12))):
        lines = []
        for number in numbers:
            name = f"{('Abyssinian', 'great_pyrenees')[number % 2]}_{number}"
            picture(root / f"oxford-iiit-pet/images/{name}.jpg", number)
            lines.append(f"{name} {number % 2 + 1} 1 1")
        (root / f"oxford-iiit-pet/annotations/{split}.txt").write_text("\n".join(lines) + "\n")


def write_food101(root: Path) -> None:
    (root / "food-101/meta").mkdir(parents=True)
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        files: dict[str, list[str]] = {"waffles": [], "apple_pie": []}
        for number in numbers:
            name = ("apple_pie", "waffles")[number % 2]
            picture(root / f"food-101/images/{name}/{number}.jpg", number)
            files[name].append(f"{name}/{number}")
        (root / f"food-101/meta/{split}.json").write_text(json.dumps(files))


WRITERS: dict[str, tuple[Callable[[Path], None], dict[str, int]]] = {
    "gtsrb": (write_gtsrb, {"train": 86, "test": 3}),
    "eurosat": (write_eurosat, {"train": 20}),
    "caltech101": (write_caltech101, {"train": 20}),
    "flowers102": (write_flowers102, {"train": 102, "validation": 2, "test": 2}),
    "oxford_pets": (write_oxford_pets, {"train": 8, "test": 4}),
    "food101": (write_food101, {"train": 8, "test": 4}),
}


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Path]:
    name = request.param
    write, counts = WRITERS[name]
    write(tmp_path / "root")
    monkeypatch.setitem(torchvision_sets.SETS[name].parts, "train", counts["train"])
    for part, count in counts.items():
        monkeypatch.setitem(torchvision_sets.SETS[name].parts, part, count)
    if name == "flowers102":
        md5 = {
            key: (file, hashlib.md5((tmp_path / "root/flowers-102" / file).read_bytes()).hexdigest())
            for key, (file, _) in datasets.Flowers102._file_dict.items()
            if key != "image"
        }
        monkeypatch.setattr(datasets.Flowers102, "_file_dict", datasets.Flowers102._file_dict | md5)
    return name, tmp_path / "root"


def reference(name: str, root: Path, part: str) -> list[tuple[int, int]]:
    """(red value, class) of each image, as torchvision's own object gives them one by one."""
    source = torchvision_sets.SETS[name]
    data = getattr(datasets, source.torchvision)(root, **source.arguments[part])
    return sorted((image.convert("RGB").getpixel((0, 0))[0], label) for image, label in data)


def test_sets_are_read_as_torchvision_reads_them(written: tuple[str, Path]) -> None:
    name, root = written
    data = load_dataset(name, root)
    parts = {"train": data.pool, "test": data.test, "validation": data.validation}
    found = {}
    for part, images in parts.items():
        if images is not None:
            assert isinstance(images, ImageSet)
            found[part] = [(int(x[0, 0, 0]), y) for x, y in zip(images.images, images.labels.tolist(), strict=True)]
    if "test" not in torchvision_sets.SETS[name].parts:
        assert len(found["test"]) == 4
        found["train"] += found.pop("test")
    for part, pairs in found.items():
        assert sorted(pairs) == reference(name, root, part)
    assert data.name == name and data.num_classes == {"gtsrb": 43, "flowers102": 102}.get(name, 2)
    assert load_dataset(name, root, image_size=12).pool.image_shape == (3, 12, 12)


def test_sets_that_are_damaged_are_refused(written: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    name, root = written
    monkeypatch.setitem(torchvision_sets.SETS[name].parts, "train", 5)
    with pytest.raises(DataError, match=r"expected 5 train images, got \d+; delete the folder") as refused:
        load_dataset(name, root)
    assert str(root) in str(refused.value)


@pytest.mark.parametrize("name", [*WRITERS, "emnist", "stl10", "kmnist"])
def test_sets_that_are_absent_say_where_to_put_them(name: str, home: Path) -> None:
    with pytest.raises(DataError, match="run again when the network is there, or put") as refused:
        load_dataset(name)
    assert str(home) in str(refused.value) and "\n" not in str(refused.value)
    assert not [path for path in home.rglob("*") if path.is_file()]


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    magic = 0x0800 + array.ndim
    path.write_bytes(struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes())


def test_emnist_stands_upright(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 94), ("test", 47)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[0] = 0
        images[0, 3, :] = 255  # stored on its side: a vertical line in column 3
        write_idx(tmp_path / f"EMNIST/raw/emnist-balanced-{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"EMNIST/raw/emnist-balanced-{part}-labels-idx1-ubyte", np.arange(count) % 47)
    data = load_dataset("emnist", tmp_path)
    assert isinstance(data.pool, ImageSet)
    assert (len(data.pool), len(data.test), data.num_classes, data.pool.image_shape) == (94, 47, 47, (1, 28, 28))
    assert (data.pool.images[0, 0, :, 3] == 255).all() and data.pool.images[0].count_nonzero() == 28
    assert data.class_names[10] == "A" and data.pool.labels[10] == 10
    (tmp_path / "EMNIST/raw/emnist-balanced-test-labels-idx1-ubyte").write_bytes(b"cut")
    with pytest.raises(DataError, match="expected the files of EMNIST"):
        load_dataset("emnist", tmp_path)


def test_stl10_is_read_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    random = np.random.default_rng(0)
    pixels = {}
    for part, count in (("train", 20), ("test", 10)):
        pixels[part] = random.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8)
        (folder / f"{part}_X.bin").write_bytes(pixels[part].transpose(0, 1, 3, 2).tobytes())  # column by column
        (folder / f"{part}_y.bin").write_bytes((np.arange(count) % 10 + 1).astype(np.uint8).tobytes())
    (folder / "unlabeled_X.bin").write_bytes(b"")
    for own in ("train_list", "test_list"):
        files = [file for file, _ in getattr(datasets.STL10, own)]
        sums = [[file, hashlib.md5((folder / file).read_bytes()).hexdigest()] for file in files]
        monkeypatch.setattr(datasets.STL10, own, sums)
    data = load_dataset("stl10", tmp_path)
    assert isinstance(data.pool, ImageSet)
    assert torch.equal(data.pool.images, torch.from_numpy(pixels["train"]))
    assert data.pool.labels.tolist() == [number % 10 for number in range(20)] and len(data.test) == 10
    (folder / "train_X.bin").write_bytes(b"another")
    with pytest.raises(DataError, match="expected the files of STL-10 as published"):
        load_dataset("stl10", tmp_path)


@pytest.mark.parametrize("layout", ["kmnist", "KMNIST/raw"])
def test_kmnist_is_not_taken_for_mnist(tmp_path: Path, layout: str) -> None:
    random = np.random.default_rng(0)
    for part, count in (("train", 30), ("t10k", 10)):
        write_idx(tmp_path / layout / f"{part}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28)))
        labels = struct.pack(">2I", 0x801, count) + (np.arange(count) % 10).astype(np.uint8).tobytes()
        (tmp_path / layout / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    data = load_dataset("kmnist", tmp_path)
    assert (len(data.pool), len(data.test), data.class_names[1]) == (30, 10, "ki")
    with pytest.raises(DataError, match="MNIST"):
        load_dataset("mnist", tmp_path)
