"""Data: files read as they are, splits that never mix, seeded training sets, crops and flips as torchvision's."""

import gzip
import hashlib
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.transforms import functional as reference

from rlmix.classifier.data import (
    DATASETS,
    NOISES,
    DataError,
    Dataset,
    ImageSet,
    Splits,
    augment,
    downloads,
    idx,
    load_dataset,
    normalise,
    pad_images,
    split,
)

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
TEST_IMAGES, TEST_LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
NUM_TRAIN, NUM_TEST = 30, 20
RAW = Path("FashionMNIST/raw")


# Files


def idx_bytes(array: np.ndarray) -> bytes:
    """The IDX format as published: two zero bytes, 0x08 for unsigned bytes, the rank, big-endian sizes, the values."""
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def small_files() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    return {
        IMAGES: idx_bytes(random.integers(0, 256, (NUM_TRAIN, 28, 28))),
        LABELS: idx_bytes(np.arange(NUM_TRAIN) % 10),
        TEST_IMAGES: idx_bytes(random.integers(0, 256, (NUM_TEST, 28, 28))),
        TEST_LABELS: idx_bytes(np.arange(NUM_TEST) % 10),
    }


def write_files(folder: Path, files: dict[str, bytes], *, gzipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if gzipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty user's data folder, no Debian package, and a download that fails the test."""
    folder = tmp_path / "user"
    monkeypatch.setenv("RLMIX_DATA", str(folder))
    monkeypatch.setattr(idx, "DEBIAN_FOLDER", tmp_path / "debian")

    def no_download(*_: object, **__: object) -> None:
        pytest.fail("tried to download")

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", no_download)
    return folder


@pytest.mark.parametrize("layout", [Path("."), Path("fashion-mnist"), RAW])
@pytest.mark.parametrize("gzipped", [False, True])
def test_fashion_mnist_is_read_as_written(tmp_path: Path, user_folder: Path, layout: Path, gzipped: bool) -> None:
    files = small_files()
    write_files(tmp_path / "root" / layout, files, gzipped=gzipped)
    dataset = load_dataset("fashion_mnist", tmp_path / "root")
    for image_set, images, labels in (
        (dataset.pool, files[IMAGES], files[LABELS]),
        (dataset.test, files[TEST_IMAGES], files[TEST_LABELS]),
    ):
        assert image_set.images.shape == (len(image_set), 1, 28, 28)
        assert image_set.images.numpy().tobytes() == images[16:]
        assert image_set.labels.tolist() == list(labels[8:])
    assert dataset.num_classes == 10
    assert dataset.class_names == tuple(torchvision.datasets.mnist.FashionMNIST.classes)
    assert (dataset.name, dataset.flip, dataset.crop_padding) == ("fashion_mnist", True, 2)


def test_own_reader_agrees_with_torchvision(tmp_path: Path) -> None:
    write_files(tmp_path, small_files())
    images, labels = tmp_path / IMAGES, tmp_path / LABELS
    assert torch.equal(idx.read_images(images).squeeze(1), torchvision.datasets.mnist.read_image_file(str(images)))
    assert torch.equal(idx.read_labels(labels), torchvision.datasets.mnist.read_label_file(str(labels)))


def test_places_are_searched_in_order(tmp_path: Path, user_folder: Path) -> None:
    def brightness() -> int:
        return int(load_dataset("fashion_mnist", tmp_path / "root").pool.images.max())

    for value, folder in ((1, tmp_path / "debian" / "fashion-mnist"), (2, user_folder / RAW), (3, tmp_path / "root")):
        write_files(folder, small_files() | {IMAGES: idx_bytes(np.full((NUM_TRAIN, 28, 28), value))})
        assert brightness() == value


def test_user_folder_is_in_the_home_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("RLMIX_DATA", "")
    assert downloads.user_folder() == Path("/home/somebody/.cache/rlmix/data")
    monkeypatch.setenv("RLMIX_DATA", "~/data")
    assert downloads.user_folder() == Path("/home/somebody/data")


GOOD = small_files()
DAMAGED = {
    "empty": (IMAGES, b""),
    "header cut": (IMAGES, GOOD[IMAGES][:15]),
    "header only": (IMAGES, GOOD[IMAGES][:16]),
    "last byte gone": (IMAGES, GOOD[IMAGES][:-1]),
    "trailing byte": (IMAGES, GOOD[IMAGES] + b"\0"),
    "labels as images": (IMAGES, GOOD[LABELS]),
    "images as labels": (LABELS, GOOD[IMAGES]),
    "wrong type": (IMAGES, b"\0\0\x0d\x03" + GOOD[IMAGES][4:]),
    "little endian": (LABELS, GOOD[LABELS][3::-1] + GOOD[LABELS][4:]),
    "gzipped under a plain name": (IMAGES, gzip.compress(GOOD[IMAGES])),
    "no images": (IMAGES, idx_bytes(np.zeros((0, 28, 28)))),
    "labels empty": (LABELS, b""),
    "labels cut": (LABELS, GOOD[LABELS][:-1]),
    "label 10": (LABELS, idx_bytes(np.array([10] + [0] * (NUM_TRAIN - 1)))),
    "label 255": (TEST_LABELS, idx_bytes(np.array([255] + [0] * (NUM_TEST - 1)))),
    "fewer labels": (LABELS, idx_bytes(np.arange(NUM_TRAIN - 1) % 10)),
    "fewer test labels": (TEST_LABELS, idx_bytes(np.arange(NUM_TEST - 1) % 10)),
}


@pytest.mark.parametrize("place", ["root", "user"])
@pytest.mark.parametrize(("name", "content"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_file_is_an_error_and_not_passed_over(
    tmp_path: Path, user_folder: Path, place: str, name: str, content: bytes
) -> None:
    write_files(tmp_path / "debian", small_files())
    folder = write_files(tmp_path / place, small_files() | {name: content})
    with pytest.raises(DataError, match=r"expected .* got .*") as raised:
        load_dataset("fashion_mnist", tmp_path / "root")
    message = str(raised.value)
    assert str(folder / name) in message
    assert "download" in message and "apt-get install dataset-fashion-mnist" in message and str(folder) in message


@pytest.mark.parametrize("missing", GOOD)
@pytest.mark.parametrize("gzipped", [False, True])
def test_missing_file_is_an_error_and_not_passed_over(
    tmp_path: Path, user_folder: Path, missing: str, gzipped: bool
) -> None:
    write_files(tmp_path / "debian", small_files())
    files = small_files()
    del files[missing]
    folder = write_files(tmp_path / "root", files, gzipped=gzipped)
    with pytest.raises(DataError, match="neither") as raised:
        load_dataset("fashion_mnist", tmp_path / "root")
    assert str(folder / missing) in str(raised.value)


@given(length=st.integers(0, len(GOOD[LABELS]) - 1))
@settings(deadline=None)
def test_labels_cut_anywhere_are_refused(tmp_path_factory: pytest.TempPathFactory, length: int) -> None:
    path = tmp_path_factory.mktemp("cut") / LABELS
    path.write_bytes(GOOD[LABELS][:length])
    with pytest.raises(DataError):
        idx.read_labels(path)


@given(data=st.data())
@settings(deadline=None)
def test_gzip_cut_anywhere_is_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = gzip.compress(GOOD[LABELS])
    path = tmp_path_factory.mktemp("cut") / f"{LABELS}.gz"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(DataError, match=LABELS):
        idx.read_labels(path)


def flipped_byte(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"not gzip at all",
        lambda content: content + b"more",
        lambda content: flipped_byte(content, 0),
        lambda content: flipped_byte(content, 10),  # the compressed stream
        lambda content: flipped_byte(content, len(content) - 8),  # its checksum
        lambda content: flipped_byte(content, len(content) - 1),  # its length
    ],
    ids=["text", "trailing", "magic", "stream", "checksum", "length"],
)
def test_damaged_gzip_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage(gzip.compress(GOOD[IMAGES])))
    with pytest.raises(DataError, match="gzip"):
        idx.read_images(path)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="readable") as raised:
        idx.read_labels(tmp_path / LABELS)
    assert str(tmp_path / LABELS) in str(raised.value)


# The download: torchvision's own, from a server on this machine


@pytest.fixture
def server(tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that a web server on this machine serves the files from."""
    folder = write_files(tmp_path / "server", small_files(), gzipped=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    class Served(torchvision.datasets.mnist.FashionMNIST):
        mirrors = (f"http://127.0.0.1:{listener.server_port}/",)
        resources = tuple(
            (f"{name}.gz", hashlib.md5((folder / f"{name}.gz").read_bytes()).hexdigest()) for name in GOOD
        )

        @property
        def raw_folder(self) -> str:  # torchvision names the folder after the class
            return str(Path(self.root) / RAW)

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", Served)
    yield folder
    listener.shutdown()
    listener.server_close()


def test_download_comes_whole_and_once(
    tmp_path: Path, user_folder: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "root").mkdir()
    first = load_dataset("fashion_mnist", tmp_path / "root")
    assert first.pool.images.numpy().tobytes() == GOOD[IMAGES][16:]
    assert [path.name for path in user_folder.iterdir()] == ["FashionMNIST"]
    assert not list((tmp_path / "root").iterdir())
    monkeypatch.delattr(torchvision.datasets, "FashionMNIST")
    assert torch.equal(load_dataset("fashion_mnist").pool.images, first.pool.images)


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_failed_download_leaves_nothing_that_could_be_taken_for_whole(
    user_folder: Path, server: Path, damage: str
) -> None:
    last = server / f"{TEST_LABELS}.gz"
    whole = last.read_bytes()
    if damage == "cut":
        last.write_bytes(whole[:-5])
    else:
        last.unlink()
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist") as raised:
        load_dataset("fashion_mnist")
    assert str(user_folder / RAW) in str(raised.value)
    assert not [path for path in user_folder.rglob("*") if path.is_file()]
    last.write_bytes(whole)
    assert len(load_dataset("fashion_mnist").test) == NUM_TEST


def test_download_that_another_process_finished_first_is_taken(
    user_folder: Path, server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = torchvision.datasets.FashionMNIST

    def overtaken(*args: object, **options: object) -> None:
        download(*args, **options)
        write_files(user_folder / RAW, small_files())

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", overtaken)
    assert len(load_dataset("fashion_mnist").pool) == NUM_TRAIN


def test_data_folder_that_cannot_be_made_is_a_data_error(user_folder: Path, server: Path) -> None:
    user_folder.write_text("a file in the way")
    with pytest.raises(DataError, match="download"):
        load_dataset("fashion_mnist")


def test_real_fashion_mnist() -> None:
    folders = (downloads.user_folder(), idx.DEBIAN_FOLDER)
    places = [folder / layout for folder in folders for layout in idx.SOURCES["fashion_mnist"].layouts]
    if not any((place / name).is_file() for place in places for name in (IMAGES, f"{IMAGES}.gz")):
        pytest.skip("no Fashion-MNIST on this machine: set RLMIX_DATA or apt-get install dataset-fashion-mnist")
    dataset = load_dataset("fashion_mnist")
    assert torch.bincount(dataset.pool.labels).tolist() == [6_000] * 10
    assert torch.bincount(dataset.test.labels).tolist() == [1_000] * 10
    scaled = dataset.pool.images.double() / 255
    assert dataset.mean == (round(scaled.mean().item(), 4),)
    assert dataset.std == (round(scaled.std().item(), 4),)
    # Ankle boot, T-shirt, T-shirt, Dress, T-shirt: the first five labels as its authors show them.
    assert dataset.pool.labels[:5].tolist() == [9, 0, 0, 3, 0]
    splits = split(dataset)
    assert (len(splits.train), len(splits.validation), len(splits.development)) == (45_000, 5_000, 10_000)
    assert torch.bincount(splits.train.labels).tolist() == [4_500] * 10


# Digits


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_digits_are_scikit_learns(digits: Dataset) -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    images = torch.cat([digits.pool.images, digits.test.images]).squeeze(1)
    labels = torch.cat([digits.pool.labels, digits.test.labels])
    ours = sorted(
        (image.tolist(), label) for image, label in zip(images.div(255 / 16).round(), labels.tolist(), strict=True)
    )
    theirs = sorted((image.tolist(), int(label)) for image, label in zip(source.images, source.target, strict=True))
    assert ours == theirs
    assert images.max() == 255 and images.min() == 0
    assert len(digits.test) == 359
    share = torch.bincount(digits.test.labels) / torch.bincount(labels)
    assert share.sub(0.2).abs().max() < 0.006  # one image of some 180
    assert (digits.flip, digits.crop_padding) == (False, 1)


def test_digits_mean_and_std_are_the_pools(digits: Dataset) -> None:
    scaled = digits.pool.images.double() / 255
    assert digits.mean == (round(scaled.mean().item(), 4),)
    assert digits.std == (round(scaled.std().item(), 4),)


def test_digits_splits_never_change(digits: Dataset) -> None:
    # Published results stand on these splits: if this fails, the split has moved, and that is the mistake.
    splits = split(digits)
    parts = (splits.train, splits.validation, splits.development, splits.test)
    content = b"".join(part.images.numpy().tobytes() + part.labels.numpy().tobytes() for part in parts)
    assert hashlib.sha256(content).hexdigest() == "ea4d972a0d2470919031dcc6d07662ae723d53d6635be5a415f6bbc8e4ac0258"


# Names


def test_registry_has_the_built_in_data_sets() -> None:
    assert set(DATASETS) == {
        "caltech101",
        "cifar10",
        "cifar100",
        "digits",
        "emnist",
        "eurosat",
        "fashion_mnist",
        "flowers102",
        "food101",
        "gtsrb",
        "imagenet",
        "kmnist",
        "mnist",
        "oxford_pets",
        "stl10",
        "svhn",
        "tiny_imagenet",
    }


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(DataError, match="digits, emnist, eurosat, fashion_mnist"):
        load_dataset("fashion-mnist")


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    package = tmp_path / "someones_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "own_data.py").write_text(
        "from dataclasses import replace\n"
        "from rlmix.classifier.data import load_dataset\n"
        "def load():\n    return replace(load_dataset('digits'), name='own')\n"
        "def nothing():\n    return None\n"
        "def broken():\n    raise ZeroDivisionError('own mistake')\n"
        "value = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "someones_package.own_data"
    for name in [name for name in sys.modules if name.startswith("someones_package")]:
        del sys.modules[name]


def test_own_function_is_called(own_module: str) -> None:
    dataset = load_dataset(f"{own_module}:load")
    assert dataset.name == "own" and len(dataset.pool) == 1438


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("someones_package.own_data:nothing", "return a rlmix.classifier.data.Dataset, got NoneType"),
        ("someones_package.own_data:value", "a function value"),
        ("someones_package.own_data:lod", "a function lod"),
        ("someones_package.other:load", "PYTHONPATH"),
        ("math:no_such_thing", "a function no_such_thing"),
        ("someones_package.own_data:", "package.module:function"),
        (":load", "package.module:function"),
        (".own_data:load", "package.module:function"),
        ("a:b:c", "package.module:function"),
    ],
)
def test_own_function_that_cannot_be_used(own_module: str, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(name)


def test_own_functions_mistake_is_passed_on(own_module: str) -> None:
    with pytest.raises(ZeroDivisionError, match="own mistake"):
        load_dataset(f"{own_module}:broken")


# Values


def tagged(counts: list[int], *, first: int = 0) -> ImageSet:
    """Images `[N, 1, 1, 3]` that each hold a number of their own, in mixed class order."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(len(labels)))]
    numbers = torch.arange(first, first + len(labels))
    images = torch.stack([numbers // 65_536, numbers // 256 % 256, numbers % 256], dim=1)
    return ImageSet(images.to(torch.uint8)[:, None, None, :], labels)


def tags(image_set: ImageSet) -> list[int]:
    return (image_set.images[:, 0, 0].long() @ torch.tensor([65_536, 256, 1])).tolist()


def dataset_of(counts: list[int]) -> Dataset:
    return Dataset(
        name="tagged",
        pool=tagged(counts),
        test=tagged([2] * len(counts), first=1_000_000),
        class_names=tuple(f"class {label}" for label in range(len(counts))),
        mean=(0.5,),
        std=(0.25,),
        flip=True,
        crop_padding=0,
    )


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(4, 1, 2, 2), torch.zeros(4, dtype=torch.long), "uint8 .* float32"),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), r"\[4, 2, 2\]"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), "int64 .* float32"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, 10, dtype=torch.long), r"\[4, 10\]"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.long), "4 images and 3 labels"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.long, device="meta"), "one device"),
    ],
)
def test_image_set_refuses(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(images, labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": ("one",)}, "2 or more class names"),
        ({"class_names": ("a", "b")}, "labels from 0 to 1, got 0 to 2"),
        ({"class_names": ("a", "b", "c", "d")}, "got none of d"),
        ({"pool": ImageSet(torch.zeros(2, 1, 1, 3, dtype=torch.uint8), torch.tensor([-1, 1]))}, "got -1 to 1"),
        ({"test": ImageSet(torch.zeros(1, 1, 1, 3, dtype=torch.uint8), torch.tensor([3]))}, "test labels"),
        ({"test": ImageSet(torch.zeros(1, 1, 1, 4, dtype=torch.uint8), torch.tensor([0]))}, "one shape"),
        ({"mean": (0.5, 0.5)}, "one per channel"),
        ({"std": ()}, "one per channel"),
        ({"std": (0.0,)}, "std above 0"),
        ({"std": (float("nan"),)}, "std above 0"),
        ({"mean": (float("inf"),)}, "mean"),
        ({"crop_padding": -1}, "crop_padding"),
        *(
            ({part: ImageSet(torch.zeros(0, 1, 1, 3, dtype=torch.uint8), torch.zeros(0).long())}, f"none in {part}")
            for part in ("pool", "test", "validation")
        ),
    ],
)
def test_dataset_refuses(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(dataset_of([5, 5, 5]), **change)


def test_to_moves_every_part() -> None:
    splits = split(dataset_of([20, 20])).to("meta")
    for part in (splits.train, splits.validation, splits.development, splits.test):
        assert part.images.device.type == part.labels.device.type == "meta"
    assert splits.num_classes == 2 and splits.name == "tagged"


# Splits


class_counts = st.lists(st.integers(8, 120), min_size=2, max_size=12)


@given(counts=class_counts, data=st.data())
@settings(deadline=None)
def test_split_parts_the_pool_and_keeps_shares(counts: list[int], data: st.DataObject) -> None:
    dataset = dataset_of(counts)
    pool_size = sum(counts)
    validation_size = data.draw(st.integers(1, pool_size // 3))
    development_size = data.draw(st.integers(0, pool_size // 3))
    splits = split(dataset, validation_size=validation_size, development_size=development_size)

    assert (len(splits.validation), len(splits.development)) == (validation_size, development_size)
    parts = [tags(part) for part in (splits.train, splits.validation, splits.development)]
    assert sorted(parts[0] + parts[1] + parts[2]) == list(
        range(pool_size)
    )  # each pool image once, so no two parts share one
    assert splits.test is dataset.test
    true_label = dict(zip(tags(dataset.pool), dataset.pool.labels.tolist(), strict=True))
    for part in (splits.train, splits.validation, splits.development):
        assert part.labels.tolist() == [true_label[tag] for tag in tags(part)]

    for part, tolerance in ((splits.validation, 1), (splits.development, 1), (splits.train, 2)):
        held = np.bincount(part.labels, minlength=len(counts))
        assert np.abs(held - len(part) * np.array(counts) / pool_size).max() < tolerance
    for part in (splits.validation, splits.development):
        final = np.bincount(part.labels, minlength=len(counts))
        for size in range(1, len(part)):
            held = np.bincount(part.labels[:size], minlength=len(counts))
            # Each class is at most half an image early or late; all of them together shift a prefix by K / 2.
            share = final / len(part)
            assert (np.abs(held - size * share) <= 0.5 + share * len(counts) / 2 + 1e-9).all()


def test_prefixes_of_balanced_classes_are_stratified_within_one_image() -> None:
    splits = split(dataset_of([200] * 10))
    for part in (splits.validation, splits.development):
        for size in range(1, len(part) + 1):
            held = torch.bincount(part.labels[:size], minlength=10)
            assert held.max() - held.min() <= 1


def test_split_is_the_same_each_time_and_another_size_moves_no_image_across() -> None:
    dataset = dataset_of([300] * 5)
    first, again = split(dataset), split(dataset)
    for name in ("train", "validation", "development"):
        assert tags(getattr(first, name)) == tags(getattr(again, name))
    smaller = split(dataset, validation_size=50)
    assert tags(smaller.development) == tags(first.development)
    assert set(tags(smaller.validation)) < set(tags(first.validation))
    assert tags(split(dataset, development_size=50).validation) == tags(first.validation)


def test_split_shuffles() -> None:
    labels = torch.arange(1_000) % 2
    pool = ImageSet(tagged([500, 500]).images, labels)
    validation = tags(split(replace(dataset_of([500, 500]), pool=pool)).validation)
    assert validation != sorted(validation)
    assert 350 < np.mean(validation) < 650


@pytest.mark.parametrize(
    ("pool_size", "validation_size", "development_size"), [(1_000, 200, 200), (30_000, 5_000, 6_000)]
)
def test_usual_sizes(pool_size: int, validation_size: int, development_size: int) -> None:
    splits = split(dataset_of([pool_size // 10] * 10))
    assert (len(splits.validation), len(splits.development)) == (validation_size, development_size)


@pytest.mark.parametrize(
    ("validation_size", "development_size", "message"),
    [
        (50, 50, "at most 96"),
        (97, 0, "at most 96"),
        (0, 10, "validation_size of 1 or more"),
        (10, -1, "development_size of 0 or more"),
        (48, 48, "got none of class"),
    ],
)
def test_split_refuses_sizes(validation_size: int, development_size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(dataset_of([48, 48, 2, 2]), validation_size=validation_size, development_size=development_size)


# Drawn training sets


@pytest.fixture(scope="module")
def splits() -> Splits:
    return split(dataset_of([100, 110, 120, 130]))


@given(train_size=st.integers(4, 276), data_seed=st.integers(0, 2**63), label_noise=st.floats(0, 0.999))
@settings(deadline=None)
def test_draw(splits: Splits, train_size: int, data_seed: int, label_noise: float) -> None:
    drawn = splits.draw(train_size, data_seed=data_seed, label_noise=label_noise)
    true_label = dict(zip(tags(splits.train), splits.train.labels.tolist(), strict=True))
    chosen = tags(drawn.train)
    assert len(set(chosen)) == len(chosen) == train_size
    assert chosen == [tag for tag in tags(splits.train) if tag in set(chosen)]

    truth = np.array([true_label[tag] for tag in chosen])
    held = np.bincount(truth, minlength=4)
    share = train_size * np.bincount(splits.train.labels) / len(splits.train)
    assert held.min() >= 1 and np.abs(held - share).max() < 1
    labels = drawn.train.labels.numpy()
    assert (labels != truth).sum() == round(label_noise * train_size)
    assert 0 <= labels.min() <= labels.max() < 4

    again = splits.draw(train_size, data_seed=data_seed, label_noise=label_noise)
    assert tags(again.train) == chosen and torch.equal(again.train.labels, drawn.train.labels)
    assert tags(splits.draw(train_size, data_seed=data_seed).train) == chosen


def test_draw_by_another_seed_is_another_draw(splits: Splits) -> None:
    draws = [splits.draw(60, data_seed=seed, label_noise=0.5) for seed in (0, 1, 2**32, 2**32 + 1)]
    assert len({tuple(tags(drawn.train)) for drawn in draws}) == 4
    noises = [splits.draw(None, data_seed=seed, label_noise=0.5).train.labels for seed in (0, 1, 2**32, 2**32 + 1)]
    assert len({tuple(labels.tolist()) for labels in noises}) == 4


def test_draw_shares_what_it_does_not_change(splits: Splits) -> None:
    before = splits.train.labels.clone()
    drawn = splits.draw(None, data_seed=3, label_noise=0.4)
    assert drawn.train.images is splits.train.images
    assert torch.equal(splits.train.labels, before)
    for name in ("validation", "development", "test", "class_names", "mean", "std"):
        assert getattr(drawn, name) is getattr(splits, name)
    clean = splits.draw(None, data_seed=3)
    assert clean.train is splits.train
    assert torch.equal(
        splits.draw(20, data_seed=3, label_noise=0.02).train.labels, splits.draw(20, data_seed=3).train.labels
    )


def test_draw_of_a_draw_takes_from_it(splits: Splits) -> None:
    half = splits.draw(100, data_seed=0)
    assert set(tags(half.draw(40, data_seed=1).train)) < set(tags(half.train))


def test_wrong_labels_are_spread_evenly() -> None:
    large = split(dataset_of([4_000] * 5))
    noisy = large.draw(None, data_seed=0, label_noise=0.5).train.labels
    kinds = np.zeros((5, 5), dtype=int)
    np.add.at(kinds, (large.train.labels.numpy(), noisy.numpy()), 1)
    assert (np.diag(kinds) > 0).all()
    wrong = kinds[~np.eye(5, dtype=bool)]
    expected = wrong.sum() / 20
    chi_square = ((wrong - expected) ** 2 / expected).sum()
    assert chi_square < 43.8  # 99.9 % of even draws lie below, with 19 degrees of freedom


def test_less_noise_spoils_a_part_of_what_more_noise_spoils(splits: Splits) -> None:
    truth = splits.draw(100, data_seed=5).train.labels
    some, more = (splits.draw(100, data_seed=5, label_noise=share).train.labels for share in (0.2, 0.6))
    assert torch.equal(more[some != truth], some[some != truth])


def test_rare_classes_are_never_left_out() -> None:
    rare = split(dataset_of([1_000, 20, 20, 20]), validation_size=20, development_size=20)
    for train_size in (4, 5, 9, 40):
        counts = torch.bincount(rare.draw(train_size, data_seed=0).train.labels, minlength=4)
        assert counts.min() >= 1 and counts.sum() == train_size


@pytest.mark.parametrize("train_size", [0, 3, 277, -1])
def test_draw_refuses_train_size(splits: Splits, train_size: int) -> None:
    with pytest.raises(DataError, match=rf"from 4 .* to 276 .* got {train_size}; choose"):
        splits.draw(train_size, data_seed=0)


def test_pair_noise_takes_the_next_class_for_the_same_images(splits: Splits) -> None:
    truth = splits.train.labels
    symmetric, pair = (splits.draw(None, data_seed=3, label_noise=0.4, noise=noise).train.labels for noise in NOISES)
    wrong = pair != truth
    assert torch.equal(wrong, symmetric != truth)
    assert torch.equal(pair[wrong], (truth[wrong] + 1) % splits.num_classes)
    assert set(truth[wrong].tolist()) == set(range(splits.num_classes))
    with pytest.raises(DataError, match="noise to be one of symmetric, pair"):
        splits.draw(None, data_seed=3, label_noise=0.4, noise="gaussian")


@pytest.mark.parametrize("label_noise", [-0.1, 1.0, float("nan")])
def test_draw_refuses_label_noise(splits: Splits, label_noise: float) -> None:
    with pytest.raises(DataError, match=r"\[0, 1\), got"):
        splits.draw(20, data_seed=0, label_noise=label_noise)


def test_draw_refuses_negative_seed(splits: Splits) -> None:
    with pytest.raises(DataError, match="data_seed of 0 or above, got -1"):
        splits.draw(20, data_seed=-1)


# Augmentation


def crops(data: st.DataObject) -> tuple[Tensor, int, dict[str, Tensor]]:
    """Images and a drawn crop of each: (images, padding, the arguments of `augment`)."""
    draw = data.draw
    count, channels, padding, batch = draw(st.tuples(*(st.integers(1, high) for high in (5, 4, 4, 7))))
    padding -= 1
    height, width = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1_000)))

    def integers(high: int) -> Tensor:
        return torch.randint(high, (batch,), generator=generator)

    images = torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)
    places = {
        "index": integers(count),
        "top": integers(2 * padding + 1),
        "left": integers(2 * padding + 1),
        "flip": integers(2).bool(),
    }
    return images, padding, places


@given(data=st.data())
@settings(deadline=None)
def test_augment_is_torchvisions_pad_crop_and_flip(data: st.DataObject) -> None:
    images, padding, places = crops(data)
    height, width = images.shape[2:]
    padded = pad_images(images, padding)
    assert torch.equal(padded, torch.stack([reference.pad(image, [padding]) for image in images]))
    before = padded.clone()
    out = augment(padded, **places, size=(height, width))
    assert torch.equal(padded, before)
    assert out.dtype == torch.uint8
    assert out.is_contiguous(memory_format=torch.channels_last)
    for crop, index, top, left, flip in zip(out, *(values.tolist() for values in places.values()), strict=True):
        expected = reference.crop(reference.pad(images[index], [padding]), top, left, height, width)
        assert torch.equal(crop, reference.hflip(expected) if flip else expected)


def test_augment_in_the_middle_gives_the_image_back(digits: Dataset) -> None:
    images = digits.pool.images[:50]
    middle = torch.full((50,), 3)
    out = augment(
        pad_images(images, 3),
        index=torch.arange(50),
        top=middle,
        left=middle,
        flip=torch.zeros(50, dtype=torch.bool),
        size=(8, 8),
    )
    assert torch.equal(out, images)


@given(data=st.data())
@settings(deadline=None)
def test_normalise_is_torchvisions(data: st.DataObject) -> None:
    images, _, _ = crops(data)
    channels = images.shape[1]
    mean = data.draw(st.lists(st.floats(0, 1, width=32), min_size=channels, max_size=channels))
    std = data.draw(st.lists(st.floats(0.0625, 1, width=32), min_size=channels, max_size=channels))
    out = normalise(images, torch.tensor(mean), torch.tensor(std))
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference.normalize(images / 255, mean, std), rtol=1e-5, atol=1e-5)


def test_normalise_keeps_channels_last() -> None:
    images = torch.randint(256, (4, 3, 6, 5), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    out = normalise(images, torch.full((3,), 0.5), torch.full((3,), 0.25))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_augment_and_normalise_stay_on_the_device_without_waiting_for_it() -> None:
    # Pretend tensors hold no values: a copy to the host or a branch on a value raises.
    with FakeTensorMode():
        images = torch.empty(20, 3, 12, 10, dtype=torch.uint8, device="cuda")
        whole = torch.empty(6, dtype=torch.long, device="cuda")
        crop = augment(pad_images(images, 2), index=whole, top=whole, left=whole, flip=whole.bool(), size=(12, 10))
        out = normalise(crop, torch.empty(3, device="cuda"), torch.empty(3, device="cuda"))
    assert crop.device.type == out.device.type == "cuda"
    assert crop.shape == out.shape == (6, 3, 12, 10)


def test_augment_and_normalise_compile_as_one_graph() -> None:
    images = torch.randint(256, (20, 3, 12, 10), dtype=torch.uint8)
    places = {name: torch.randint(5, (6,)) for name in ("index", "top", "left")}
    flip = torch.arange(6) % 2 == 0
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.4])

    def prepare(padded: Tensor) -> Tensor:
        return normalise(augment(padded, **places, flip=flip, size=(12, 10)), mean, std)

    padded = pad_images(images, 2)
    compiled = torch.compile(prepare, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(padded), prepare(padded))
