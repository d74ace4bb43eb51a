"""Zip files of image folders: read straight from the zip, as the folder would be, and never beyond it."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.classifier.data import DataError, ImageFiles, ImageSet, StreamDraw, archives, load_dataset, stream_batches

SHARED = Path(__file__).parents[2] / "../shared/data"


def write_folder(folder: Path, *, parts: tuple[str, ...] = ("train", "val", "test")) -> Path:
    for number, part in enumerate(parts):
        for label, name in enumerate(("cat", "dog")):
            (folder / part / name / "below").mkdir(parents=True)
            for image in range(3 - number):
                pixels = np.random.default_rng(100 * number + 10 * label + image).integers(0, 256, (8, 8, 3), np.uint8)
                inner = "below/" if image == 1 else ""
                Image.fromarray(pixels).save(folder / part / name / f"{inner}{image}.png")
    return folder


def pack(folder: Path, path: Path, *, below: str = "", sep: str = "/", kind: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", kind) as target:
        for file in sorted(folder.rglob("*")):
            name = below + str(file.relative_to(folder)).replace("/", sep)
            if file.is_file():
                target.writestr(name, file.read_bytes())
            elif sep == "/":
                target.writestr(f"{name}/", b"")
    return path


@pytest.mark.parametrize("kind", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("below", ["", "my set/", "a/b/"])
def test_a_zip_is_the_folder_that_was_packed(tmp_path: Path, kind: int, below: str) -> None:
    folder = write_folder(tmp_path / "folder")
    path = pack(folder, tmp_path / "Set.ZIP", below=below, kind=kind)
    whole, zipped = load_dataset(str(folder)), load_dataset(str(path))
    assert (zipped.class_names, zipped.mean, zipped.std) == (whole.class_names, whole.mean, whole.std)
    assert zipped.name == str(path)
    for part in ("pool", "validation", "test"):
        expected, got = getattr(whole, part), getattr(zipped, part)
        assert isinstance(got, ImageSet)
        assert torch.equal(got.images, expected.images) and torch.equal(got.labels, expected.labels)
    assert sorted(os.listdir(tmp_path)) == ["Set.ZIP", "folder"]  # nothing was unpacked


def test_a_folder_inside_a_zip(tmp_path: Path) -> None:
    path = pack(write_folder(tmp_path / "folder"), tmp_path / "set.zip", below="all/")
    assert load_dataset(f"{path}/all/train").class_names == ("cat", "dog")
    with pytest.raises(DataError, match="no such folder in the zip file"):
        load_dataset(f"{path}/all/none")
    with pytest.raises(DataError, match="2 or more classes, got none"):
        load_dataset(f"{path}/all/train/cat/below")


def test_what_other_programs_put_into_zips(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", parts=("train", "test"))
    path = pack(folder, tmp_path / "windows.zip", sep="\\")
    with zipfile.ZipFile(path, "a") as target:
        target.writestr("__MACOSX/train/cat/._0.png", b"resource fork")
        target.writestr(".DS_Store", b"of macOS")
        target.writestr("train/cat/Thumbs.db", b"of Windows")
        link = zipfile.ZipInfo("train/cat/link.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        target.writestr(link, "/etc/passwd")
    assert len(load_dataset(str(path)).pool) == 6


def test_streamed_from_a_zip_by_workers(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder")
    path = pack(folder, tmp_path / "set.zip")
    draw = StreamDraw(torch.tensor([3, 0, 5]), torch.rand(3, 4, dtype=torch.float64), torch.tensor([True, False, True]))
    batches = []
    for source in (folder, path):
        data = archives_streamed(source)
        assert isinstance(data, ImageFiles)
        batches.append(next(iter(stream_batches(data, [draw] * 3, size=8, workers=2))))
    assert torch.equal(*batches)


def archives_streamed(source: Path) -> object:
    from rlmix.classifier.data import load_image_folder

    return load_image_folder(source, streamed=True).pool


@pytest.mark.parametrize("name", ["../out.png", "train/../../out.png", "/etc/out.png", "C:/out.png", "..\\out.png"])
def test_no_path_leaves_the_zip(tmp_path: Path, name: str) -> None:
    path = pack(write_folder(tmp_path / "folder"), tmp_path / "set.zip")
    with zipfile.ZipFile(path, "a") as target:
        target.writestr(name, b"beyond")
    with pytest.raises(DataError, match="expected paths inside the zip file") as refused:
        load_dataset(str(path))
    assert str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_zip_bombs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = pack(write_folder(tmp_path / "folder"), tmp_path / "set.zip")
    monkeypatch.setattr(archives, "MAX_BYTES", 10_000)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as target:
        target.writestr("train/cat/bomb.png", bytes(10_001))
    with pytest.raises(DataError, match=r"cat/bomb\.png: expected a file of at most 10,000 bytes"):
        load_dataset(str(path))
    deep = tmp_path / "deep.zip"
    with zipfile.ZipFile(deep, "w") as target:
        target.writestr("a/" * 30_000 + "b.png", b"")
    with pytest.raises(DataError, match="at most 64 folders deep"):
        load_dataset(str(deep))


def test_damaged_zips_are_told(tmp_path: Path) -> None:
    path = pack(write_folder(tmp_path / "folder"), tmp_path / "set.zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"set\.zip: expected a whole zip file, got BadZipFile"):
        load_dataset(str(path))
    path.write_text("no zip at all")
    with pytest.raises(DataError, match="expected a whole zip file"):
        load_dataset(str(path))
    with pytest.raises(DataError, match="No such file"):
        load_dataset(str(tmp_path / "absent.zip"))
    place = whole.index(b"IDAT" if b"IDAT" in whole else b"PK", 200)
    path.write_bytes(whole[: place + 10] + bytes(20) + whole[place + 30 :])
    with pytest.raises(DataError, match=r"set\.zip"):
        load_dataset(str(path))


def test_a_zip_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    first = pack(write_folder(tmp_path / "folder"), tmp_path / "set.zip", kind=zipfile.ZIP_STORED)
    assert load_dataset(str(first)).class_names == ("cat", "dog")
    (tmp_path / "folder" / "train" / "dog").rename(tmp_path / "folder" / "train" / "eel")
    (tmp_path / "folder" / "val" / "dog").rename(tmp_path / "folder" / "val" / "eel")
    (tmp_path / "folder" / "test" / "dog").rename(tmp_path / "folder" / "test" / "eel")
    first.unlink()
    pack(tmp_path / "folder", first, kind=zipfile.ZIP_STORED)
    assert load_dataset(str(first)).class_names == ("cat", "eel")


@pytest.mark.skipif(not (SHARED / "omniglot.zip").is_file(), reason="../shared/data is not there")
def test_a_shared_set_straight_from_its_zip() -> None:
    data = load_dataset(str(SHARED / "omniglot.zip"))
    assert (len(data.pool), len(data.test), data.num_classes) == (3_872, 968, 8)
    assert data.pool.image_shape == (1, 32, 32)
