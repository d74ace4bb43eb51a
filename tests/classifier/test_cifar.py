"""CIFAR: the published files read as they are, checked, downloaded whole or not at all."""

import hashlib
import pickle
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10, CIFAR100, cifar

from rlmix.classifier.data import DataError, load_dataset

PER_BATCH = 20
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]


class Files:
    """Small files in CIFAR's format, with the arrays that went into them.

    Args:
        name: `cifar10` or `cifar100`.
    """

    def __init__(self, name: str) -> None:
        random = np.random.default_rng(0)
        self.name = name
        self.kind: Any = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        self.classes = [f"class {number}" for number in range(10 if name == "cifar10" else 100)]
        batches, count = (BATCHES, PER_BATCH) if name == "cifar10" else (["train", "test"], 200)
        self.pixels = {batch: random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8) for batch in batches}
        self.labels = {batch: random.permutation(np.arange(count) % len(self.classes)).tolist() for batch in batches}
        label_key = "labels" if name == "cifar10" else "fine_labels"
        contents: dict[str, Any] = {
            batch: {"data": self.pixels[batch].reshape(count, 3072), label_key: self.labels[batch]} for batch in batches
        }
        if name == "cifar100":
            for content in contents.values():
                content["coarse_labels"] = [0] * count
        contents[self.kind.meta["filename"]] = {self.kind.meta["key"]: self.classes}
        self.raw = {file: pickle.dumps(content, protocol=2) for file, content in contents.items()}

    def write(self, root: Path) -> Path:
        folder = root / self.kind.base_folder
        folder.mkdir(parents=True)
        for file, raw in self.raw.items():
            (folder / file).write_bytes(raw)
        return folder

    def publish(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let torchvision take these files for the published ones."""

        def md5(file: str) -> str:
            return hashlib.md5(self.raw[file]).hexdigest()

        for part in ("train_list", "test_list"):
            monkeypatch.setattr(self.kind, part, [[file, md5(file)] for file, _ in getattr(self.kind, part)])
        file = self.kind.meta["filename"]
        monkeypatch.setattr(self.kind, "meta", {**self.kind.meta, "md5": md5(file)})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Downloads go to a folder of the test's own, and there is no network."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RLMIX_DATA", str(folder))

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(cifar, "download_and_extract_archive", no_network)
    return folder


@pytest.fixture(params=["cifar10", "cifar100"])
def files(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Files:
    files = Files(request.param)
    files.publish(monkeypatch)
    return files


def test_reads_every_value_in_its_place(files: Files, tmp_path: Path) -> None:
    files.write(tmp_path / "mine")
    data = load_dataset(files.name, tmp_path / "mine")
    *train, test = files.pixels
    for images, labels, batches in (
        (data.pool.images, data.pool.labels, train),
        (data.test.images, data.test.labels, [test]),
    ):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert torch.equal(images, torch.from_numpy(np.concatenate([files.pixels[batch] for batch in batches])))
        assert labels.tolist() == [label for batch in batches for label in files.labels[batch]]
    assert data.name == files.name
    assert list(data.class_names) == files.classes
    assert data.flip and data.crop_padding == 2
    assert len(data.mean) == len(data.std) == 3


def test_looks_in_the_users_folder_too(files: Files, home: Path, tmp_path: Path) -> None:
    files.write(home)
    assert len(load_dataset(files.name).pool) == sum(len(labels) for labels in list(files.labels.values())[:-1])
    assert len(load_dataset(files.name, tmp_path / "empty").test) == len(list(files.labels.values())[-1])


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
@pytest.mark.parametrize("which", [0, -2, -1], ids=["train", "test", "meta"])
def test_damaged_file_is_refused(files: Files, which: int, damage: str, tmp_path: Path) -> None:
    folder = files.write(tmp_path / "mine")
    name = list(files.raw)[which]
    raw = bytearray(files.raw[name])
    raw[len(raw) // 2] ^= 1
    match damage:
        case "flipped":
            (folder / name).write_bytes(raw)
        case "cut":
            (folder / name).write_bytes(files.raw[name][: len(raw) // 2])
        case "empty":
            (folder / name).write_bytes(b"")
        case "missing":
            (folder / name).unlink()
    with pytest.raises(DataError) as refused:
        load_dataset(files.name, tmp_path / "mine")
    assert str(folder) in str(refused.value)


def test_missing_files_without_network(files: Files, home: Path) -> None:
    with pytest.raises(DataError) as refused:
        load_dataset(files.name)
    message = str(refused.value)
    assert str(home) in message and files.kind.base_folder in message and "no network" in message
    assert list(home.iterdir()) == []  # nothing half done that would be taken for the data next time


def test_broken_off_download_leaves_nothing(
    files: Files, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(_url: str, root: str, **_: object) -> None:
        files.write(Path(root))
        (Path(root) / files.kind.base_folder / next(iter(files.raw))).unlink()
        raise URLError("connection lost")

    monkeypatch.setattr(cifar, "download_and_extract_archive", half)
    with pytest.raises(DataError):
        load_dataset(files.name)
    assert list(home.iterdir()) == []


def test_downloads_once(files: Files, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = []

    def download(url: str, root: str, **_: object) -> None:
        downloads.append(url)
        files.write(Path(root))

    monkeypatch.setattr(cifar, "download_and_extract_archive", download)
    first, second = load_dataset(files.name), load_dataset(files.name)
    assert len(downloads) == 1
    assert torch.equal(first.pool.images, second.pool.images)
    assert [path.name for path in home.iterdir()] == [files.kind.base_folder]
