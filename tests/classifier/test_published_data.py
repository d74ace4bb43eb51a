"""MNIST, SVHN, (Tiny-)ImageNet: files of the published format read as they are, downloaded whole or not at all."""

import gzip
import hashlib
import io
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SVHN, ImageFolder
from torchvision.datasets import imagenet as torch_imagenet
from torchvision.transforms import functional as reference

from rlmix.classifier.data import (
    DataError,
    Dataset,
    ImageFiles,
    ImageSet,
    dataset,
    imagenet,
    load_dataset,
    resized,
    tiny_imagenet,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Downloads go to a folder of the test's own, and there is no network."""
    folder = tmp_path / "home"
    monkeypatch.setenv("RLMIX_DATA", str(folder))

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", no_network)
    monkeypatch.setattr(torchvision.datasets.utils, "_get_redirect_url", lambda url, **_: url)
    return folder


# MNIST

MNIST_FILES = {"train": 30, "t10k": 20}


def write_mnist(folder: Path, *, seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    arrays = {}
    for part, count in MNIST_FILES.items():
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = random.permutation(np.arange(count) % 10).astype(np.uint8)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + images.tobytes())
        labels_file = struct.pack(">2I", 0x801, count) + labels.tobytes()
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels_file))
        arrays[part] = images, labels
    return arrays


@pytest.mark.parametrize("layout", [".", "mnist", "MNIST/raw"])
def test_mnist_is_read_as_written(tmp_path: Path, layout: str) -> None:
    arrays = write_mnist(tmp_path / "root" / layout)
    data = load_dataset("mnist", tmp_path / "root")
    for part, (images, labels) in zip((data.pool, data.test), arrays.values(), strict=True):
        assert isinstance(part, ImageSet)
        assert torch.equal(part.images, torch.from_numpy(images)[:, None])
        assert part.labels.tolist() == labels.tolist()
    assert data.class_names == tuple("0123456789") and not data.flip
    assert (data.mean, data.std) == ((0.1307,), (0.3081,))


def test_mnist_and_fashion_mnist_are_not_taken_for_each_other(home: Path) -> None:
    # Their files have the same names. Fashion-MNIST's may lie in the user's folder itself.
    fashion = write_mnist(home, seed=1)
    with pytest.raises(DataError, match="MNIST"):
        load_dataset("mnist")
    mnist = write_mnist(home / "mnist", seed=2)
    for name, arrays in (("mnist", mnist), ("fashion_mnist", fashion)):
        pool = load_dataset(name).pool
        assert isinstance(pool, ImageSet)
        assert torch.equal(pool.images[:, 0], torch.from_numpy(arrays["train"][0]))


def test_damaged_mnist_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    path = tmp_path / "mnist" / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="four MNIST files") as refused:
        load_dataset("mnist", tmp_path)
    assert str(path) in str(refused.value) and "apt-get" not in str(refused.value)


def test_missing_mnist_without_network(home: Path) -> None:
    with pytest.raises(DataError, match="train-images-idx3-ubyte") as refused:
        load_dataset("mnist")
    assert str(home / "MNIST/raw") in str(refused.value)
    assert not [path for path in home.rglob("*") if path.is_file()]


# Another size


def pillows(image: torch.Tensor, size: int) -> torch.Tensor:
    """Pillow's bilinear filter, to which torchvision's agrees within one step of 255."""
    resized = reference.resize(reference.to_pil_image(image), [size])
    return reference.pil_to_tensor(reference.center_crop(resized, [size, size]))


def test_image_size_is_a_bilinear_resize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "RESIZE_CHUNK", 7)
    write_mnist(tmp_path / "mnist")
    plain, large = load_dataset("mnist", tmp_path), load_dataset("mnist", tmp_path, image_size=32)
    for before, after in ((plain.pool, large.pool), (plain.test, large.test)):
        assert isinstance(before, ImageSet) and isinstance(after, ImageSet)
        expected = torch.stack([pillows(image, 32) for image in before.images])
        torch.testing.assert_close(after.images, expected, rtol=0, atol=1)
        assert torch.equal(after.labels, before.labels)
    assert large.mean == plain.mean and large.crop_padding == plain.crop_padding
    same = load_dataset("mnist", tmp_path, image_size=28).pool
    assert isinstance(plain.pool, ImageSet) and isinstance(same, ImageSet)
    assert torch.equal(same.images, plain.pool.images)


@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (9, 12)])
def test_image_size_keeps_the_middle_of_oblong_images(shape: tuple[int, int]) -> None:
    images = torch.randint(256, (5, 3, *shape), dtype=torch.uint8)
    part = ImageSet(images, torch.tensor([0, 1, 0, 1, 0]))
    data = Dataset("own", part, part, ("a", "b"), (0.5,) * 3, (0.2,) * 3, flip=True, crop_padding=0)
    small = resized(data, 9).pool
    assert isinstance(small, ImageSet)
    torch.testing.assert_close(small.images, torch.stack([pillows(image, 9) for image in images]), rtol=0, atol=1)


@pytest.mark.parametrize("image_size", [0, -3])
def test_image_size_out_of_range(image_size: int) -> None:
    with pytest.raises(DataError, match=f"image_size of 1 pixel or more, got {image_size}"):
        load_dataset("digits", image_size=image_size)


# SVHN

SVHN_COUNTS = {"train": 40, "test": 20}


class SVHNFiles:
    """Small .mat files in SVHN's format, which torchvision takes for the published ones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        random = np.random.default_rng(0)
        self.arrays, self.raw = {}, {}
        split_list = {}
        for part, count in SVHN_COUNTS.items():
            pixels = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
            labels = random.permutation(1 + np.arange(count) % 10).astype(np.uint8)[:, None]  # 10 is the digit 0
            stream = io.BytesIO()
            savemat(stream, {"X": pixels, "y": labels}, do_compression=True)
            self.arrays[part], self.raw[f"{part}_32x32.mat"] = (pixels, labels), stream.getvalue()
            split_list[part] = [
                f"http://localhost/{part}",
                f"{part}_32x32.mat",
                hashlib.md5(stream.getvalue()).hexdigest(),
            ]
        monkeypatch.setattr(SVHN, "split_list", split_list)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, raw in self.raw.items():
            (folder / name).write_bytes(raw)
        return folder


@pytest.fixture
def svhn(monkeypatch: pytest.MonkeyPatch) -> SVHNFiles:
    return SVHNFiles(monkeypatch)


@pytest.mark.parametrize("layout", [".", "svhn"])
def test_svhn_is_read_as_written(svhn: SVHNFiles, tmp_path: Path, layout: str) -> None:
    svhn.write(tmp_path / layout)
    data = load_dataset("svhn", tmp_path)
    for part, (pixels, labels) in zip((data.pool, data.test), svhn.arrays.values(), strict=True):
        assert isinstance(part, ImageSet)
        for place in range(len(part)):
            assert np.array_equal(part.images[place].permute(1, 2, 0).numpy(), pixels[..., place])
            digit = int(labels[place, 0])
            assert int(part.labels[place]) == (0 if digit == 10 else digit)
    assert data.class_names == tuple("0123456789") and not data.flip and len(data.mean) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "missing"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_damaged_svhn_is_refused(svhn: SVHNFiles, tmp_path: Path, part: str, damage: str) -> None:
    folder = svhn.write(tmp_path)
    path = folder / f"{part}_32x32.mat"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes({"flipped": bytes(raw), "cut": bytes(raw[:-9]), "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(DataError) as refused:
        load_dataset("svhn", tmp_path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("damage", [False, True])
def test_svhn_download_comes_whole_or_not_at_all(
    svhn: SVHNFiles, home: Path, damage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def retrieve(url: str, path: str, **_: object) -> None:
        raw = svhn.raw[Path(path).name]
        Path(path).write_bytes(raw[:-1] if damage and "test" in url else raw)

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", retrieve)
    if damage:
        with pytest.raises(DataError, match="SVHN"):
            load_dataset("svhn")
        assert list(home.iterdir()) == []
    else:
        first = load_dataset("svhn")
        monkeypatch.delattr(torchvision.datasets.utils, "_urlretrieve")
        assert torch.equal(load_dataset("svhn").pool.labels, first.pool.labels)
        assert [path.name for path in home.iterdir()] == ["svhn"]


# Tiny-ImageNet

WNIDS = ["n02124075", "n01443537", "n07749582"]  # not in alphabetical order, as in the published list
PER_CLASS, NUM_TEST = 4, 6


def jpeg(random: np.random.Generator, *, grey: bool = False) -> bytes:
    shape = (64, 64) if grey else (64, 64, 3)
    stream = io.BytesIO()
    Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(stream, format="JPEG")
    return stream.getvalue()


def write_tiny_imagenet(root: Path) -> Path:
    random = np.random.default_rng(0)
    folder = root / "tiny-imagenet-200"
    for wnid in WNIDS:
        (folder / "train" / wnid / "images").mkdir(parents=True)
        boxes = ""
        for number in range(PER_CLASS):
            name = f"{wnid}_{number}.JPEG"
            (folder / "train" / wnid / "images" / name).write_bytes(jpeg(random, grey=number == 1))
            boxes += f"{name}\t0\t10\t63\t58\n"
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(boxes)
    for part in ("val", "test"):
        (folder / part / "images").mkdir(parents=True)
        for number in range(NUM_TEST):
            (folder / part / "images" / f"{part}_{number}.JPEG").write_bytes(jpeg(random, grey=number == 2))
    (folder / "wnids.txt").write_text("\n".join(WNIDS))
    words = {"n00001740": "entity", **{wnid: f"name of {wnid}, another" for wnid in WNIDS}}
    (folder / "words.txt").write_text("".join(f"{wnid}\t{name}\n" for wnid, name in words.items()))
    annotations = [f"val_{number}.JPEG\t{WNIDS[number % 3]}\t0\t32\t44\t62\n" for number in range(NUM_TEST)]
    (folder / "val" / "val_annotations.txt").write_text("".join(annotations))
    return folder


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small Tiny-ImageNet whose numbers of images are taken for the published ones."""
    for name, value in (("NUM_CLASSES", len(WNIDS)), ("TRAIN_PER_CLASS", PER_CLASS), ("NUM_TEST", NUM_TEST)):
        monkeypatch.setattr(tiny_imagenet, name, value)
    return write_tiny_imagenet(tmp_path / "root")


@pytest.mark.parametrize("inside", [False, True])
def test_tiny_imagenet_is_read_as_written(tiny: Path, inside: bool) -> None:
    data = load_dataset("tiny_imagenet", tiny if inside else tiny.parent)
    folder = ImageFolder(tiny / "train")
    assert isinstance(data.pool, ImageSet) and isinstance(data.test, ImageSet)
    assert data.pool.images.shape == (12, 3, 64, 64)
    for place, (image, label) in enumerate(folder):
        assert torch.equal(data.pool.images[place], reference.pil_to_tensor(image))
        assert int(data.pool.labels[place]) == label
    for number in range(NUM_TEST):
        with Image.open(tiny / "val" / "images" / f"val_{number}.JPEG") as image:
            assert torch.equal(data.test.images[number], reference.pil_to_tensor(image.convert("RGB")))
        assert int(data.test.labels[number]) == folder.class_to_idx[WNIDS[number % 3]]
    assert data.class_names == tuple(f"name of {wnid}, another" for wnid in sorted(WNIDS))
    assert data.flip and len(data.std) == 3


def test_tiny_imagenet_in_another_size(tiny: Path) -> None:
    assert load_dataset("tiny_imagenet", tiny, image_size=32).test.image_shape == (3, 32, 32)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damaged_line(path: Path) -> None:
    path.write_text(path.read_text().replace(WNIDS[1], "n99999999", 1))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("wnids.txt", Path.unlink),
        ("wnids.txt", cut),
        ("wnids.txt", lambda path: path.write_bytes(b"\xff\xfe")),
        ("words.txt", Path.unlink),
        ("words.txt", cut),
        ("val/val_annotations.txt", Path.unlink),
        ("val/val_annotations.txt", cut),
        ("val/val_annotations.txt", damaged_line),
        ("val/images/val_3.JPEG", Path.unlink),
        ("val/images/val_3.JPEG", cut),
        (f"train/{WNIDS[2]}/images/{WNIDS[2]}_0.JPEG", Path.unlink),
        (f"train/{WNIDS[2]}/images/{WNIDS[2]}_0.JPEG", cut),
        (f"train/{WNIDS[2]}/images/{WNIDS[2]}_0.JPEG", lambda path: path.write_bytes(b"")),
    ],
)
def test_damaged_tiny_imagenet_is_refused(tiny: Path, file: str, damage: Callable[[Path], Any]) -> None:
    path = tiny / file
    damage(path)
    with pytest.raises(DataError) as refused:
        load_dataset("tiny_imagenet", tiny.parent)
    assert str(path if path.exists() or path.parent.name != "images" else path.parent) in str(refused.value)


@pytest.mark.parametrize("damage", ["none", "flipped"])
def test_tiny_imagenet_download_comes_whole_or_not_at_all(
    tiny: Path, tmp_path: Path, home: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "published.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(tiny.rglob("*")):
            file.write(path, path.relative_to(tiny.parent))
    raw = bytearray(archive.read_bytes())
    monkeypatch.setattr(tiny_imagenet, "MD5", hashlib.md5(raw).hexdigest())
    if damage == "flipped":
        raw[len(raw) // 2] ^= 1

    def retrieve(url: str, path: str, **_: object) -> None:
        assert url == "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
        Path(path).write_bytes(raw)

    monkeypatch.setattr(torchvision.datasets.utils, "_urlretrieve", retrieve)
    if damage == "flipped":
        with pytest.raises(DataError, match="Tiny-ImageNet"):
            load_dataset("tiny_imagenet")
        assert list(home.iterdir()) == []
    else:
        assert torch.equal(load_dataset("tiny_imagenet").pool.labels, load_dataset("tiny_imagenet", tiny).pool.labels)
        assert [path.name for path in home.iterdir()] == ["tiny-imagenet-200"]


# ImageNet

IMAGENET_WNIDS = ["n01440764", "n02012849", "n03126707"]
IMAGENET_COUNTS = {"train": 4, "val": 2}  # of each class


def devkit() -> bytes:
    """The devkit's archive: `meta.mat` with every synset and the ILSVRC numbers of the validation images."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    # Numbered in another order than their WordNet numbers, and with a synset that is no leaf, as in the true file.
    rows = [
        (1, IMAGENET_WNIDS[2], "crane", "lifts", 0),
        (2, IMAGENET_WNIDS[0], "tench, Tinca tinca", "a fish", 0),
        (3, IMAGENET_WNIDS[1], "crane", "a bird", 0),
        (4, "n00001740", "entity", "everything", 3),
    ]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array([[row] for row in rows], dtype=kinds)})
    truth = "".join(f"{number}\n" for number in (2, 1, 3, 3, 2, 1))
    folder = "ILSVRC2012_devkit_t12/data"
    members = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    return tar({f"{folder}/{name}": content for name, content in members.items()}, "w:gz")


def tar(members: dict[str, bytes], mode: Any = "w") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def train_file(wnid: str, number: int) -> tuple[str, bytes]:
    return f"{wnid}_{number}.JPEG", jpeg(np.random.default_rng(number))


def write_imagenet(folder: Path) -> Path:
    for part, each in IMAGENET_COUNTS.items():
        for wnid in IMAGENET_WNIDS:
            (folder / part / wnid).mkdir(parents=True)
            for number in range(each):
                name, content = train_file(wnid, number)
                (folder / part / wnid / name).write_bytes(content)
    return folder


def write_imagenet_archives(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    inner = {f"{wnid}.tar": tar(dict(train_file(wnid, number) for number in range(4))) for wnid in IMAGENET_WNIDS}
    val = {f"ILSVRC2012_val_{number:08}.JPEG": jpeg(np.random.default_rng(number)) for number in range(1, 7)}
    archives = {"devkit": devkit(), "train": tar(inner), "val": tar(val)}
    folder.mkdir(parents=True)
    published = {}
    for kind, content in archives.items():
        name = torch_imagenet.ARCHIVE_META[kind][0]
        (folder / name).write_bytes(content)
        published[kind] = (name, hashlib.md5(content).hexdigest())
    monkeypatch.setattr(torch_imagenet, "ARCHIVE_META", published)
    return folder


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images are taken for the published numbers."""
    monkeypatch.setattr(imagenet, "NUM_CLASSES", 3)
    monkeypatch.setattr(imagenet, "COUNTS", {part: 3 * each for part, each in IMAGENET_COUNTS.items()})


@pytest.mark.parametrize("layout", [".", "imagenet"])
def test_imagenet_unpacked(few: None, tmp_path: Path, layout: str) -> None:
    folder = write_imagenet(tmp_path / layout)
    data = load_dataset("imagenet", tmp_path)
    for part, name in ((data.pool, "train"), (data.test, "val")):
        source = ImageFolder(folder / name)
        assert isinstance(part, ImageFiles)
        assert list(zip(part.paths, part.labels.tolist(), strict=True)) == source.samples
        assert part.image_shape == (3, 224, 224)
    assert data.class_names == tuple(IMAGENET_WNIDS)
    assert (data.mean, data.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert load_dataset("imagenet", tmp_path, image_size=128).test.image_shape == (3, 128, 128)


def test_imagenet_from_its_archives(few: None, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_imagenet_archives(home / "imagenet", monkeypatch)
    data = load_dataset("imagenet")
    assert data.class_names == ("tench, Tinca tinca", "crane", "crane")
    assert isinstance(data.pool, ImageFiles) and isinstance(data.test, ImageFiles)
    names = [Path(path).name for path in data.pool.paths]
    assert names == [f"{wnid}_{number}.JPEG" for wnid in IMAGENET_WNIDS for number in range(4)]
    assert data.pool.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    # By the ground truth 2 1 3 3 2 1, whose numbers are the WordNet numbers' order 0 2 1 1 0 2.
    truth = {f"ILSVRC2012_val_{number:08}.JPEG": label for number, label in enumerate((0, 2, 1, 1, 0, 2), start=1)}
    found = zip((Path(path).name for path in data.test.paths), data.test.labels.tolist(), strict=True)
    assert dict(found) == truth
    # Unpacked once: the devkit's names are kept when the archives are gone.
    for name in imagenet.ARCHIVES:
        (folder / name).unlink()
    again = load_dataset("imagenet")
    assert again.class_names == data.class_names and torch.equal(again.test.labels, data.test.labels)


def test_missing_imagenet_says_where_to_get_it_and_where_to_put_it(few: None, home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"ILSVRC2012_img_train\.tar.*https://image-net\.org") as refused:
        load_dataset("imagenet", tmp_path)
    assert str(home / "imagenet") in str(refused.value) and str(tmp_path) in str(refused.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: next((folder / "train" / IMAGENET_WNIDS[0]).iterdir()).unlink(), "12 images, got 11"),
        (lambda folder: (folder / "val" / IMAGENET_WNIDS[1] / "more.JPEG").write_bytes(b""), "6 images, got 7"),
        (lambda folder: shutil.rmtree(folder / "val"), "val: expected a folder"),
        (lambda folder: shutil.rmtree(folder / "train"), "train: expected a folder"),
        (lambda folder: shutil.rmtree(folder / "val" / IMAGENET_WNIDS[1]), "2 folders of which some differ"),
        (lambda folder: [shutil.rmtree(folder / part / IMAGENET_WNIDS[1]) for part in IMAGENET_COUNTS], "3 class"),
        (lambda folder: (folder / "meta.bin").write_bytes(b"damaged"), "the published archives"),
        (lambda folder: (folder / imagenet.DEVKIT).write_bytes(b"damaged"), "the published archives"),
    ],
)
def test_incomplete_imagenet_is_refused(
    few: None, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = write_imagenet(tmp_path)
    damage(folder)
    with pytest.raises(DataError, match=message) as refused:
        load_dataset("imagenet", tmp_path)
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("kind", ["train", "val", "devkit"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_imagenet_archive_is_refused(
    few: None, home: Path, monkeypatch: pytest.MonkeyPatch, kind: str, damage: str
) -> None:
    folder = write_imagenet_archives(home / "imagenet", monkeypatch)
    path = folder / torch_imagenet.ARCHIVE_META[kind][0]
    if damage == "cut":
        cut(path)
    else:
        path.unlink()
    with pytest.raises(DataError, match="imagenet") as refused:
        load_dataset("imagenet")
    assert str(folder) in str(refused.value)
