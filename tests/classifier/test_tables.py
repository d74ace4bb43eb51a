"""Data sets in one file of a user's own: MedMNIST's .npz, and a .csv of file and label."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rlmix.classifier.data import DataError, ImageSet, load_dataset, split

Arrays = dict[str, np.ndarray]


def medmnist(channels: int | None, sizes: dict[str, int], *, column: bool = True) -> Arrays:
    """Arrays as the files of MedMNIST hold them: labels are a column of uint8."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in sizes.items():
        shape = (count, 7, 7) if channels is None else (count, 7, 7, channels)
        arrays[f"{part}_images"] = random.integers(0, 256, shape, dtype=np.uint8)
        labels = (np.arange(count) % 3).astype(np.uint8)
        arrays[f"{part}_labels"] = labels[:, None] if column else labels
    return arrays


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_is_read_as_written(tmp_path: Path, channels: int | None, write: Callable[..., Any]) -> None:
    arrays = medmnist(channels, {"train": 20, "val": 6, "test": 9})
    write(tmp_path / "pathmnist.npz", **arrays)
    data = load_dataset(str(tmp_path / "pathmnist.npz"))
    assert data.class_names == ("0", "1", "2")
    assert data.validation is not None
    for name, part in (("train", data.pool), ("val", data.validation), ("test", data.test)):
        assert isinstance(part, ImageSet)
        images = torch.from_numpy(arrays[f"{name}_images"].reshape(len(part), 7, 7, channels or 1))
        assert torch.equal(part.images, images.permute(0, 3, 1, 2))
        assert part.labels.tolist() == arrays[f"{name}_labels"][:, 0].tolist()
    scaled = arrays["train_images"].reshape(-1, channels or 1) / 255
    assert data.mean == pytest.approx(scaled.mean(0)) and data.std == pytest.approx(scaled.std(0))
    assert sorted(split(data).validation.labels.tolist()) == sorted(arrays["val_labels"][:, 0].tolist())
    assert load_dataset(str(tmp_path / "pathmnist.npz"), image_size=14).pool.image_shape == (channels or 1, 14, 14)


@pytest.mark.parametrize(("parts", "sizes"), [({"train": 30}, (24, 6)), ({"train": 30, "val": 9}, (30, 9))])
def test_npz_of_fewer_parts(tmp_path: Path, parts: dict[str, int], sizes: tuple[int, int]) -> None:
    np.savez(tmp_path / "a.npz", **medmnist(None, parts, column=False))
    data = load_dataset(str(tmp_path / "a.npz"))
    assert (len(data.pool), len(data.test), data.validation) == (*sizes, None)


def test_npz_of_classes_with_other_numbers(tmp_path: Path) -> None:
    """From 1, or with gaps (KarhouTam/FL-bench#185): those that are there are the classes."""
    arrays = medmnist(None, {"train": 30, "test": 9})
    for key in ("train_labels", "test_labels"):
        arrays[key] = np.array([1, 4, 9])[arrays[key]]
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_dataset(str(tmp_path / "a.npz"))
    assert data.class_names == ("1", "4", "9") and data.test.labels.tolist() == [0, 1, 2] * 3
    np.savez(tmp_path / "a.npz", **{**arrays, "test_labels": arrays["test_labels"] + 1})
    with pytest.raises(DataError, match="expected test_labels among those of train_labels, got 2, 5, 10"):
        load_dataset(str(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "expected train_images, got train_labels, test_images"),
        ({"test_labels": None}, "expected test_labels"),
        ({"train_images": np.zeros((20, 7, 7))}, r"train_images to be uint8 .*, got float64 \[20, 7, 7\]"),
        ({"train_images": np.zeros((20, 7, 7, 4), np.uint8)}, "1 or 3 channels"),
        ({"train_images": np.zeros((20, 7), np.uint8)}, r"got uint8 \[20, 7\]"),
        ({"train_labels": np.zeros((20, 14), np.uint8)}, "one class for each image in train_labels, got 14 columns"),
        ({"train_labels": np.zeros(20)}, "whole numbers"),
        ({"train_labels": np.arange(19)}, "20 train_images and 19 train_labels"),
        ({"train_labels": np.arange(20) - 1}, "from 0 to below 100,000, got -1 to 18"),
        ({"train_labels": np.zeros(20, int)}, "2 or more classes"),
        ({"test_images": np.zeros((9, 8, 8), np.uint8)}, "of one shape"),
        ({"train_labels": np.array([None] * 20)}, "header"),  # an object: pickled
    ],
)
def test_npz_that_is_wrong_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = medmnist(None, {"train": 20, "test": 9}) | change
    np.savez(tmp_path / "a.npz", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(DataError, match=message) as refused:
        load_dataset(str(tmp_path / "a.npz"))
    assert str(tmp_path / "a.npz") in str(refused.value) and "\n" not in str(refused.value)


def test_npz_header_that_tells_more_than_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, **medmnist(None, {"train": 20}))
    with zipfile.ZipFile(path) as source:
        files = {name: source.read(name) for name in source.namelist()}
    files["train_images.npy"] = (
        files["train_images.npy"].replace(b"(20, 7, 7)", b"(2**9,7,7)").replace(b"2**9", b"9999")
    )
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    with pytest.raises(DataError, match="in its header and 980 bytes"):
        load_dataset(str(path))
    path.write_text("no file of NumPy's")
    with pytest.raises(DataError, match=r"expected a whole \.npz file"):
        load_dataset(str(path))
    with pytest.raises(DataError, match="No such file"):
        load_dataset(str(tmp_path / "absent.npz"))


# Tables of files


def write_images(folder: Path, names: list[str]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (number, 0, 0)).save(path)
    return paths


def table(folder: Path, text: str, *, name: str = "train.csv", encoding: str = "utf-8") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding=encoding)
    return str(folder / name)


def seen(path: str) -> dict[int, str]:
    """The class name of each image, by the number that its colour tells."""
    data = load_dataset(path)
    found = {}
    for part in (data.pool, data.test):
        assert isinstance(part, ImageSet)
        for image, label in zip(part.images, part.labels.tolist(), strict=True):
            found[int(image[0, 0, 0])] = data.class_names[label]
    return found


NAMES = [f"{number}.png" for number in range(10)]
CLASSES = {number: ("dog", "cat")[number % 2] for number in range(10)}


@pytest.mark.parametrize("header", ["", "image_id,label\n", "a,b\n", "\ufeffFile,Class\n"])
@pytest.mark.parametrize("below", [".", "train", "train_images", "images"])
@pytest.mark.parametrize("ending", [".png", ""])
def test_a_table_of_file_and_class(tmp_path: Path, header: str, below: str, ending: str) -> None:
    write_images(tmp_path / below, NAMES)
    lines = "".join(f"{number}{ending},{CLASSES[number]}\n" for number in range(10))
    assert seen(table(tmp_path, header + lines)) == CLASSES


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{CLASSES[number]};{number}.png\n" for number in range(10)),
        "class\tfile\n" + "\n\n".join(f"{CLASSES[number]}\t{number}.png" for number in range(10)),
        "index,label,comment,path\r\n" + "".join(f'7,{CLASSES[n]},"a, b",{n}.png\r\n' for n in range(10)),
    ],
)
def test_other_columns_and_delimiters(tmp_path: Path, text: str) -> None:
    write_images(tmp_path, NAMES)
    assert seen(table(tmp_path, text)) == CLASSES


@pytest.mark.parametrize(
    ("file", "named"),
    [
        ("IMG{}.PNG", "IMG{}"),
        ("IMG{}.PNG", "img{}.png"),
        ("{}.jpeg", "{}.jpg"),
        ("{}.jpg", "{}.JPEG"),
        ("cafe\u0301{}.png", "caf\u00e9{}.png"),
    ],
)
def test_files_spelt_otherwise_than_in_the_table(tmp_path: Path, file: str, named: str) -> None:
    """AtharvaTaras/Dog-Breeds-Dataset#1, mcdougallab/modeldb#198: a table written on another system, or by hand."""
    for below in ("images", "other"):
        for number, path in enumerate(tmp_path / below / file.format(number) for number in range(10)):
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (6, 6), (16 * number + 8,) * 3).save(path, quality=100)
    lines = "".join(f"{named.format(number)},{CLASSES[number]}\n" for number in range(10))
    found = {value // 16: name for value, name in seen(table(tmp_path, lines)).items()}
    assert found == CLASSES


def test_files_that_a_name_could_mean_several_of_are_asked_about(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{number}{ending}" for number in range(10) for ending in (".JPG", ".JPEG")])
    with pytest.raises(DataError, match=r"line 2: expected an image file, got '0\.jpg'"):
        load_dataset(
            table(tmp_path, "file,label\n" + "".join(f"{number}.jpg,{CLASSES[number]}\n" for number in range(10)))
        )


def test_numbers_are_classes_in_the_order_of_their_values(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    path = table(tmp_path, "id,target\n" + "".join(f"{number},{(2, 10, 1)[number % 3]}.0\n" for number in range(10)))
    assert load_dataset(path).class_names == ("1", "2", "10")
    assert seen(path) == {number: ("2", "10", "1")[number % 3] for number in range(10)}


def test_a_column_of_parts(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    parts = ["train", "TRAIN", "training", "train", "Valid", "val", "test", "Testing", "train", "train"]
    path = table(tmp_path, "file,label,split\n" + "".join(f"{n}.png,{CLASSES[n]},{parts[n]}\n" for n in range(10)))
    data = load_dataset(path)
    assert (len(data.pool), len(data.test)) == (6, 2)
    assert data.validation is not None and data.validation.labels.tolist() == [1, 0]


def test_a_table_inside_a_zip(tmp_path: Path) -> None:
    paths = write_images(tmp_path / "images", NAMES)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as target:
        target.writestr("train.csv", "".join(f"{number}.png,{CLASSES[number]}\n" for number in range(10)))
        for path in paths:
            target.write(path, f"train/{path.name}")
    assert seen(str(tmp_path / "all.zip" / "train.csv")) == CLASSES


GOOD = "".join(f"{number}.png,{CLASSES[number]}\n" for number in range(4))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got no line"),
        ("0.png,cat\n", "got one line"),
        (GOOD + "absent.png,cat\n", r"line 5: expected an image file, got 'absent\.png', which is not in "),
        (GOOD + "../secret.png,cat\n", r"line 5: expected a path below .* got '\.\./secret\.png'"),
        (GOOD + "/etc/passwd,cat\n", "line 5: expected a path below"),
        (GOOD + "a/../../b.png,cat\n", "line 5: expected a path below"),
        (GOOD + "..\\b.png,cat\n", "line 5: expected a path below"),
        (GOOD + "C:\\b.png,cat\n", "line 5: expected a path below"),
        (GOOD + "4.png\n", "line 5: expected 2 columns, got 1"),
        (GOOD + "\n4.png,\n", "line 6: expected a class"),
        (GOOD + "0.png,cat\n", r"line 5: expected every file once, got .*0\.png again, after line 1"),
        (GOOD + '"4.png,cat\n', "line 5: expected a file and its class"),
        ("a,b,c\n" + GOOD, "line 1: expected two columns"),
        ("".join(f"{number}.png,same\n" for number in range(4)), "2 or more classes that several images share, got 1"),
        ("".join(f"{number}.png,{number}\n" for number in range(4)), "got 4 for 4 training images"),
        ("file,label,split\n0.png,a,train\n1.png,b,later\n", "line 3: .* got part 'later'"),
        (
            "file,label,split\n0.png,a,train\n1.png,b,train\n2.png,b,train\n3.png,c,test\n",
            "line 5: expected a class of",
        ),
    ],
)
def test_lines_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    write_images(tmp_path / "set", NAMES)
    write_images(tmp_path, ["secret.png", "b.png"])
    path = table(tmp_path / "set", text)
    with pytest.raises(DataError, match=message) as refused:
        load_dataset(path)
    assert path in str(refused.value) and "\n" not in str(refused.value)


def test_tables_that_are_no_text(tmp_path: Path) -> None:
    write_images(tmp_path, NAMES)
    with pytest.raises(DataError, match=r"line 1: .* UTF-8"):
        load_dataset(table(tmp_path, GOOD + "é,cat\n", encoding="utf-16"))
    with pytest.raises(DataError, match="No such file"):
        load_dataset(str(tmp_path / "absent.csv"))
