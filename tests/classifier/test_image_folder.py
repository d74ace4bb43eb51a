"""A user's own folder of images: as torchvision's ImageFolder sees it, whatever lies in it."""

import contextlib
import io
import os
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

from rlmix.classifier.data import (
    DataError,
    Dataset,
    ImageFiles,
    ImageSet,
    listing,
    load_dataset,
    load_image_folder,
    split,
)
from rlmix.classifier.data.decoding import (
    TORCHVISION_ENDINGS,
    PixelFormat,
    centre_square,
    decode_squares,
    read_image,
    read_size,
    readable_endings,
)
from rlmix.classifier.data.listing import mean_and_std
from rlmix.classifier.limits import available_memory

CLASSES = ("cat", "dog", "eel")


def picture(seed: int, size: tuple[int, int] = (20, 20), mode: str = "RGB") -> Image.Image:
    width, height = size
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.frombytes(mode, size, pixels.tobytes())


def write(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def write_classes(folder: Path, counts: tuple[int, ...], *, size: tuple[int, int] | None = (20, 20)) -> Path:
    """A folder for each class; images of different sizes where `size` is none."""
    for label, count in enumerate(counts):
        for number in range(count):
            seed = 100 * label + number
            own = size or (20 + seed % 7, 25 - seed % 5)
            ending = (".png", ".jpg", ".JPEG", ".bmp")[number % 4]
            write(folder / CLASSES[label] / f"{CLASSES[label]} {number}{ending}", picture(seed, own))
    return folder


def reference_images(folder: Path, size: int) -> tuple[torch.Tensor, list[int]]:
    source = ImageFolder(folder, Compose([Resize(size), CenterCrop(size), PILToTensor()]))
    return torch.stack([image for image, _ in source]), source.targets


def images_of(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    assert isinstance(dataset.pool, ImageSet) and isinstance(dataset.test, ImageSet)
    return dataset.pool.images, dataset.test.images


# Layouts


@pytest.mark.parametrize("test_name", ["test", "val"])
@pytest.mark.parametrize("image_size", [9, 16, 31])
def test_images_are_torchvisions(tmp_path: Path, test_name: str, image_size: int) -> None:
    write_classes(tmp_path / "train", (5, 3, 4), size=None)
    write_classes(tmp_path / test_name, (1, 2, 1), size=None)
    write(tmp_path / "train" / "cat" / "below" / "further" / "a.png", picture(7, (40, 12)))
    data = load_dataset(str(tmp_path), image_size=image_size)
    for part, name in ((data.pool, "train"), (data.test, test_name)):
        images, labels = reference_images(tmp_path / name, image_size)
        assert isinstance(part, ImageSet)
        assert torch.equal(part.images, images)
        assert part.labels.tolist() == labels
    assert data.class_names == CLASSES and data.flip
    pool, _ = images_of(data)
    scaled = pool.double() / 255
    assert data.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), abs=1e-12)
    assert data.std == pytest.approx(scaled.std(dim=(0, 2, 3), correction=0).tolist(), abs=1e-12)


@pytest.mark.parametrize("below", [".", "train"])
def test_a_fixed_stratified_fifth_is_the_test_set_where_there_is_none(tmp_path: Path, below: str) -> None:
    write_classes(tmp_path / below, (10, 15, 5))
    data, again = load_image_folder(tmp_path), load_image_folder(tmp_path)
    assert torch.bincount(data.pool.labels).tolist() == [8, 12, 4]
    assert torch.bincount(data.test.labels).tolist() == [2, 3, 1]
    pool, test = images_of(data)
    whole, _ = reference_images(tmp_path / below, 20)
    together = sorted(image.flatten().tolist() for image in torch.cat([pool, test]))
    assert together == sorted(image.flatten().tolist() for image in whole)
    assert torch.equal(pool, images_of(again)[0]) and torch.equal(test, images_of(again)[1])


def test_class_of_one_image_is_trained_on(tmp_path: Path) -> None:
    write_classes(tmp_path, (40, 1))
    data = load_image_folder(tmp_path)
    assert torch.bincount(data.pool.labels).tolist() == [32, 1]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("TRAIN", "valid", "TEST"),
        ("training_set", "val images", "test-data"),
    ],
)
def test_parts_of_any_spelling(tmp_path: Path, train: str, validation: str, test: str) -> None:
    write_classes(tmp_path / train, (4, 4))
    write_classes(tmp_path / test, (1, 2))
    write_classes(tmp_path / validation, (3, 2))
    data = load_image_folder(tmp_path)
    assert (len(data.pool), len(data.test)) == (8, 3)
    assert data.class_names == ("cat", "dog")
    splits = split(data)
    images, _ = reference_images(tmp_path / validation, 20)
    assert isinstance(splits.validation, ImageSet)
    assert sorted(map(str, splits.validation.images.tolist())) == sorted(map(str, images.tolist()))
    assert torch.bincount(splits.validation.labels).tolist() == [3, 2]
    assert len(splits.train) + len(splits.development) == 8
    assert torch.bincount(split(data, validation_size=2).validation.labels).tolist() == [1, 1]
    with pytest.raises(DataError, match="at most 5, the data set's own validation images, got 6"):
        split(data, validation_size=6)


@pytest.mark.parametrize("names", [("Training", "Testing"), ("training", "validation"), ("Train", "Val")])
def test_two_parts(tmp_path: Path, names: tuple[str, str]) -> None:
    write_classes(tmp_path / names[0], (4, 4))
    write_classes(tmp_path / names[1], (1, 2))
    data = load_image_folder(tmp_path)
    assert (len(data.pool), len(data.test), data.validation) == (8, 3, None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test"), "2 or more classes, got none"),  # images where class folders should be
        (("testing", "validation"), "testing, validation is called like a part"),
        (("cat", "dog", "test"), "test is called like a part; rename it if it is a class"),
        (("train", "training", "test"), "one folder of train images, got train and training"),
    ],
)
def test_classes_called_like_parts_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        for number in range(3):
            write(tmp_path / name / f"{number}.png", picture(number))
    with pytest.raises(DataError, match=message):
        load_image_folder(tmp_path)


def test_a_training_part_beside_other_folders_is_asked_about(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", (3, 3))
    write_classes(tmp_path / "extra", (3, 3))
    with pytest.raises(DataError, match="train is called like a part"):
        load_image_folder(tmp_path)
    with pytest.raises(DataError, match="got test, train, which are called like parts"):
        write_classes(tmp_path / "nested" / "train" / "train", (3, 3))
        write_classes(tmp_path / "nested" / "train" / "test", (3, 3))
        write_classes(tmp_path / "nested" / "test" / "test", (3, 3))
        load_image_folder(tmp_path / "nested")


@pytest.mark.parametrize("wrapped", [("images",), ("annotations", "images")])
def test_the_folder_that_was_meant_is_named(tmp_path: Path, wrapped: tuple[str, ...]) -> None:
    for name in wrapped:
        (tmp_path / name).mkdir()
    write_classes(tmp_path / "images", (3, 3))
    with pytest.raises(DataError, match=rf"did you mean {tmp_path}/images\?"):
        load_image_folder(tmp_path)


def test_classes_called_train_and_another(tmp_path: Path) -> None:
    for name in ("train", "plane"):
        for number in range(3):
            write(tmp_path / name / f"{number}.png", picture(number))
    assert load_image_folder(tmp_path).class_names == ("plane", "train")


def test_what_is_passed_over(tmp_path: Path) -> None:
    write_classes(tmp_path, (5, 5))
    before = load_image_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "dog" / "folder.png").mkdir()
    after = load_image_folder(tmp_path)
    assert after.class_names == before.class_names
    assert torch.equal(images_of(after)[0], images_of(before)[0])


def test_files_of_other_kinds_are_counted(tmp_path: Path) -> None:
    write_classes(tmp_path, (5, 5))
    for number in range(3):
        (tmp_path / "cat" / f"{number}.HEIC").write_bytes(b"not readable here")
    (tmp_path / "dog" / "notes").write_text("no ending")
    (tmp_path / "dog" / "Thumbs.db").write_bytes(b"of Windows")
    (tmp_path / "dog" / "desktop.ini").write_bytes(b"of Windows")
    with pytest.warns(UserWarning, match=r"4 files are no images .*: 3 \.heic, 1 without an ending;"):
        assert len(load_image_folder(tmp_path).pool) == 8
    (tmp_path / "eel").mkdir()
    (tmp_path / "eel" / "a.heic").write_bytes(b"not readable here")
    with pytest.raises(DataError, match=r"got 1 \.heic"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize(("ending", "kind"), [("jfif", "JPEG"), ("gif", "GIF"), ("avif", "AVIF"), ("tga", "TGA")])
def test_what_pillow_reads_beyond_torchvision(tmp_path: Path, ending: str, kind: str) -> None:
    if f".{ending}" not in readable_endings():
        pytest.skip(f"this Pillow does not read {kind}")
    write_classes(tmp_path, (5, 5))
    (tmp_path / "cat" / f"a.{ending}").write_bytes(encoded(picture(1), kind))
    data = load_image_folder(tmp_path)
    assert len(data.pool) + len(data.test) == 11


def test_of_an_animation_the_first_frame_is_seen(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "a.gif").getpixel((3, 3)) == (255, 0, 0)


def test_links_to_folders_above_and_to_other_classes_add_nothing(tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "train", (5, 5))
    write_classes(tmp_path / "data" / "test", (2, 2))
    (tmp_path / "data" / "train" / "cat" / "above").symlink_to(tmp_path / "data" / "train")
    (tmp_path / "data" / "train" / "cat" / "top").symlink_to(tmp_path)
    (tmp_path / "data" / "train" / "dog" / "other").symlink_to(tmp_path / "data" / "train" / "cat")
    data = load_image_folder(tmp_path / "data")
    assert torch.bincount(data.pool.labels).tolist() == [5, 5]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_classes(tmp_path / "data", (5, 5))
    write(tmp_path / "elsewhere" / "a.png", picture(3))
    (tmp_path / "data" / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "loop").symlink_to(tmp_path / "data" / "cat")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data" / "cat")
    data = load_image_folder(tmp_path / "data")
    assert len(data.pool) + len(data.test) == 11


def test_names_that_are_no_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9\n")
    for name in (odd, "schön 猫"):
        for number in range(3):
            write(tmp_path / name / f"{number}.png", picture(number))
    data = load_image_folder(tmp_path)
    assert data.class_names == ("caf\\xe9\\x0a", "schön 猫")
    (tmp_path / odd / "0.png").write_bytes(b"")
    with pytest.raises(DataError) as refused:
        load_image_folder(tmp_path)
    str(refused.value).encode()  # can be printed
    assert "caf\\xe9\\x0a/0.png" in str(refused.value)


def test_paths_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path / "pets", (5, 5))
    write_classes(tmp_path / "digits", (5, 5))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("pets", "./pets", f"{tmp_path}/pets", "~/pets", "pets/"):
        assert load_dataset(name).class_names == ("cat", "dog")
    assert load_dataset("digits").num_classes == 10  # a built-in name is never a folder that happens to lie here
    assert load_dataset("./digits").num_classes == 2
    with pytest.raises(DataError, match=r"^absent: expected a folder .* No such file"):
        load_dataset("./absent")
    with pytest.raises(DataError, match="path of a folder of images"):
        load_dataset("absent")
    with pytest.raises(DataError, match="data set ''"):
        load_dataset("")


# Sizes


@pytest.mark.parametrize("size", [(20, 20), (96, 96), (30, 24), (30, 30), (3, 3)])
def test_images_of_one_size_keep_it(tmp_path: Path, size: tuple[int, int]) -> None:
    write_classes(tmp_path, (5, 5), size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_image_folder(tmp_path).pool.image_shape == (3, min(size), min(size))


@pytest.mark.parametrize(("size", "expected"), [((33, 33), 32), ((50, 45), 44), ((99, 99), 96), ((5, 5), 4)])
def test_images_of_one_odd_size_get_a_multiple_of_4_and_it_is_said(
    tmp_path: Path, size: tuple[int, int], expected: int
) -> None:
    write_classes(tmp_path, (5, 5), size=size)
    with pytest.warns(
        UserWarning, match=rf"sides are {min(size)} pixels long; all are made {expected} x .*--image-size N"
    ):
        assert load_image_folder(tmp_path).pool.image_shape == (3, expected, expected)
    assert load_image_folder(tmp_path, image_size=min(size)).pool.image_shape == (3, min(size), min(size))


@pytest.mark.parametrize(
    ("sides", "expected"),
    [((10, 30, 12, 16, 200), 16), ((10, 30, 12, 19, 200), 16), ((10, 300, 200, 140, 99), 64), ((1, 3, 9, 2, 4), 3)],
)
def test_images_of_many_sizes_get_a_multiple_of_4_by_their_median_up_to_64_and_it_is_said(
    tmp_path: Path, sides: tuple[int, ...], expected: int
) -> None:
    for name in ("cat", "dog"):
        for number, side in enumerate(sides):
            write(tmp_path / "train" / name / f"{number}.png", picture(number, (side, side + 5)))
            write(tmp_path / "val" / name / f"{number}.png", picture(number, (side, side)))
    with pytest.warns(UserWarning, match=rf"{min(sides)} to {max(sides)} pixels long; all are made {expected} x"):
        data = load_image_folder(tmp_path)
    assert data.pool.image_shape == data.test.image_shape == (3, expected, expected)


def test_image_size_out_of_range(tmp_path: Path) -> None:
    write_classes(tmp_path, (5, 5))
    with pytest.raises(DataError, match="image_size of 1 pixel or more, got 0"):
        load_dataset(str(tmp_path), image_size=0)


@given(width=st.integers(1, 60), height=st.integers(1, 60), shorter=st.integers(1, 40), data=st.data())
@settings(deadline=None)
def test_centre_square_is_torchvisions(width: int, height: int, shorter: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, shorter))
    image = picture(width + 61 * height, (width, height))
    expected = Compose([Resize(shorter), CenterCrop(size)])(image)
    assert np.array_equal(np.asarray(centre_square(image, size, shorter=shorter)), np.asarray(expected))


# Kinds of images


def test_endings_are_torchvisions() -> None:
    assert set(TORCHVISION_ENDINGS) == set(IMG_EXTENSIONS)


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGB", "png"),
        ("RGB", "jpg"),
        ("RGB", "webp"),
        ("RGB", "bmp"),
        ("RGB", "ppm"),
        ("RGB", "tiff"),
        ("L", "png"),
        ("L", "jpg"),
        ("L", "pgm"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
        ("CMYK", "jpg"),
        ("CMYK", "tiff"),
        ("YCbCr", "jpg"),
        ("1", "png"),
        ("P", "png"),
        ("P with transparency", "png"),
    ],
)
def test_every_kind_is_seen_as_torchvision_sees_it(tmp_path: Path, mode: str, ending: str) -> None:
    path = tmp_path / "cat" / f"a.{ending}"
    if mode.startswith("P"):
        image = picture(0).quantize(16)
        if "transparency" in mode:
            image.info["transparency"] = bytes(range(16))
    elif mode == "1":
        image = picture(0, mode="L").convert("1")
    else:
        image = picture(0, mode=mode)
    write(path, image)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.asarray(ImageFolder(tmp_path)[0][0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(read_image(path)), expected)
    assert expected.std() > 10


@pytest.mark.parametrize("ending", ["png", "tiff"])
@pytest.mark.parametrize(("bits", "highest"), [(16, 65_535), (16, 40_000), (12, 4_095), (10, 600), (8, 200)])
def test_grey_of_16_bits_is_scaled_to_8_by_the_bits_that_the_set_uses(
    tmp_path: Path, ending: str, bits: int, highest: int
) -> None:
    random = np.random.default_rng(0)
    pool = []
    for part, count in (("train", 3), ("test", 1)):
        for number in range(2 * count):
            values = random.integers(0, highest, (6, 6), dtype=np.uint16)
            if part == "train":
                pool.append(values)
                values[0, 0] = highest if number == 3 else 0
            else:
                values[0, 0] = 65_535  # does not count: the scale is the pool's
            path = tmp_path / part / CLASSES[number % 2] / f"{number}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    with warnings.catch_warnings(record=True) as said:
        data = load_image_folder(tmp_path)
    told = [str(warning.message) for warning in said]
    assert len(told) == (bits < 16) and all(f"{highest:,}: their values are taken as {bits} bits" in x for x in told)
    images, test = images_of(data)
    expected = torch.from_numpy(np.stack(pool[0::2] + pool[1::2]).astype(np.int64) * 256 // 2**bits)
    assert torch.equal(images[:, 0].long(), expected)
    assert (test[:, 0, 0, 0] == 255).all()


def test_grey_of_16_bits_alone_is_taken_as_16(tmp_path: Path) -> None:
    values = np.array([[0, 255, 256, 300], [12_345, 32_768, 65_279, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png", PixelFormat("L"))), values // 256)


# Grey or colour


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("ending", ["png", "jpg", "bmp"])  # these JPEG files have three equal channels
def test_grey_images_have_one_channel(tmp_path: Path, ending: str, streamed: bool) -> None:
    for part, count in (("train", 6), ("test", 2)):
        for number in range(2 * count):
            image = picture(number, (12, 12), mode="L")
            write(
                tmp_path / part / CLASSES[number % 2] / f"{number}.{ending}",
                image.convert("RGB") if ending == "jpg" else image,
            )
    data = load_image_folder(tmp_path, streamed=streamed)
    assert data.pool.image_shape == data.test.image_shape == (1, 12, 12)
    assert len(data.mean) == len(data.std) == 1
    if isinstance(data.pool, ImageSet):
        grey, _ = reference_images(tmp_path / "train", 12)
        assert torch.equal(data.pool.images, grey[:, :1])
    # One coloured image of the pool makes all of them coloured; one of the test set is seen in grey.
    write(tmp_path / "test" / "cat" / "0.png", picture(1, (12, 12)))
    assert load_image_folder(tmp_path, streamed=streamed).test.image_shape == (1, 12, 12)
    write(tmp_path / "train" / "cat" / "0.png", picture(1, (12, 12)))
    assert load_image_folder(tmp_path, streamed=streamed).test.image_shape == (3, 12, 12)


# Orientation


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_seen_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a"
    picture(3, (20, 12)).save(path, format=kind, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert read_size(path) == expected.shape[:2] == ((12, 20) if orientation < 5 else (20, 12))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_a_damaged_exif_block_is_ignored(tmp_path: Path) -> None:
    exif = b"Exif\0\0" + b"MM\0*" + b"\xff" * 40
    picture(3, (20, 12)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (20, 12)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_of_32_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "a.tiff"
    Image.fromarray(np.full((4, 4), 70_000, dtype=dtype)).save(path)
    with pytest.raises(DataError, match="of 8 or 16 bits") as refused:
        read_image(path)
    assert str(path) in str(refused.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_of_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", (2**14, 5462)).save(path)  # in a file of a few kilobytes
    with pytest.raises(DataError, match="at most 89,478,485 pixels, got 16,384 x 5,462"):
        read_image(path)


def test_a_length_that_a_damaged_file_tells_is_not_allocated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first chunk of pixels of a PNG says that 4 GB follow; Pillow asks for as many."""
    whole = encoded(picture(0), "PNG")
    start = whole.index(b"IDAT") - 4
    path = tmp_path / "a.png"
    path.write_bytes(whole[:start] + (2**32 - 1).to_bytes(4, "big") + whole[start + 4 :])
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def encoded(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind)
    return stream.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of a cut TIFF's header
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "WEBP", "TIFF"])
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_cut_files_are_refused(tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject) -> None:
    whole = encoded(picture(0), kind)
    path = tmp_path_factory.mktemp("cut") / "a.png"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) * 3 // 4))])
    with pytest.raises(DataError, match="expected a whole image") as refused:
        read_image(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no image at all"),
        lambda path: path.write_bytes(encoded(picture(0), "PNG")[:300]),
        lambda path: (path.unlink(), path.symlink_to(path.parent / "nowhere.png")),
        lambda path: (path.unlink(), path.symlink_to(path)),
    ],
    ids=["empty", "text", "cut", "broken link", "link to itself"],
)
@pytest.mark.parametrize("image_size", [None, 20])
def test_bad_file_is_named(tmp_path: Path, damage: Callable[[Path], object], image_size: int | None) -> None:
    write_classes(tmp_path / "train", (5, 5))
    write_classes(tmp_path / "test", (2, 2))
    path = tmp_path / "train" / "dog" / "dog 0.png"
    damage(path)
    with pytest.raises(DataError, match="replace or remove this file") as refused:
        load_image_folder(tmp_path, image_size=image_size)
    assert str(path) in str(refused.value)


def test_first_of_several_bad_files_is_named(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{number}.png", picture(number)) for number in range(40)]
    for number in (33, 11, 20):
        paths[number].write_bytes(b"")
    with pytest.raises(DataError, match=r"11\.png"):
        decode_squares(paths, 8)


# Layouts that cannot be used


def test_one_class_only(tmp_path: Path) -> None:
    write_classes(tmp_path, (5,))
    with pytest.raises(DataError, match=r"2 or more classes, got \['cat'\]; lay the images out as"):
        load_image_folder(tmp_path)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 or more classes, got none"):
        load_image_folder(tmp_path)
    path = write(tmp_path / "a.png", picture(0))
    with pytest.raises(DataError, match="Not a directory"):
        load_image_folder(path)


@pytest.mark.parametrize("part", ["train", "test"])
def test_class_without_an_image(tmp_path: Path, part: str) -> None:
    write_classes(tmp_path / "train", (3, 3))
    write_classes(tmp_path / "test", (3, 3))
    for file in (tmp_path / part / "dog").iterdir():
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(DataError, match=r"got 3 \.txt; add some or remove the folder") as refused:
        load_image_folder(tmp_path)
    assert str(tmp_path / part / "dog") in str(refused.value)


def test_a_test_set_may_lack_classes_but_not_have_others(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", (3, 3, 3))
    write_classes(tmp_path / "test", (0, 2, 1))
    with pytest.warns(UserWarning, match=r"test: no images of cat; measures are of the other classes"):
        data = load_image_folder(tmp_path)
    assert data.test.labels.tolist() == [1, 1, 2] and data.class_names == CLASSES
    (tmp_path / "test" / "eel").rename(tmp_path / "test" / "elk")
    with pytest.raises(DataError, match="got elk; rename or remove them") as refused:
        load_image_folder(tmp_path)
    assert str(tmp_path / "test") in str(refused.value)


def test_classes_of_a_test_set_may_be_spelt_as_other_systems_spell_them(tmp_path: Path) -> None:
    """macOS decomposes accents, Windows knows no case: haiwen/seadroid#1153, sindresorhus/filenamify#40."""
    for number, name in enumerate(("caf\u00e9", "tea", "Tea")):
        write(tmp_path / "train" / name / "0.png", picture(number))
    for number, name in enumerate(("cafe\u0301", "CAF\u00c9", "tea")):
        write(tmp_path / "test" / name / "0.png", picture(10 + number))
    with pytest.raises(DataError, match="got"):  # tea or Tea?
        load_image_folder(tmp_path)
    (tmp_path / "train" / "Tea").rename(tmp_path / "train" / "rum")
    with pytest.warns(UserWarning, match="no images of rum"):
        data = load_image_folder(tmp_path)
    assert data.class_names == ("caf\u00e9", "rum", "tea") and data.test.labels.tolist() == [0, 0, 2]


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_held_out_images_that_are_trained_on_are_told(tmp_path: Path, kind: str) -> None:
    """joojs/fairface#21, stefyste/RIAWELC#2, tqwei05/PlantSeg#11: thousands of them in published sets."""
    for part, first in (("train", 0), ("val", 5), ("test", 20)):
        for number in range(10):
            write(tmp_path / part / CLASSES[number % 2] / f"{part} {number}.{kind}", picture(first + number))
    with pytest.warns(UserWarning) as told:
        load_image_folder(tmp_path)
    (line,) = (str(warning.message) for warning in told)
    assert line.startswith(f"{tmp_path}: 5 of the 10 validation images are training images too")


def test_training_images_that_are_there_twice_are_told(tmp_path: Path) -> None:
    """One of a pair may be held out to validate."""
    for number in range(20):
        write(tmp_path / CLASSES[number % 2] / f"{number}.png", picture(min(number, 16)))
    with pytest.warns(UserWarning) as told:
        load_image_folder(tmp_path)
    lines = [str(warning.message) for warning in told]
    assert sum("training images are copies of others" in line for line in lines) == 1


def test_too_few_images_for_a_test_set(tmp_path: Path) -> None:
    write_classes(tmp_path, (1, 1))
    with pytest.raises(DataError, match="set a fifth apart"):
        load_image_folder(tmp_path)


@pytest.mark.parametrize("own", [False, True])
def test_few_shot_sets(tmp_path: Path, own: bool) -> None:
    for label in range(30):
        for part in ("train", "val", "test") if own else (".",):
            for number in range(2):
                write(tmp_path / part / f"class {label}" / f"{number}.png", picture(label, (8, 8)))
    data = split(load_image_folder(tmp_path))
    assert torch.bincount(data.train.labels, minlength=30).min() == 1
    assert len(data.validation) == 60 if own else 1 <= len(data.validation) <= 10
    assert len(data.development) >= 1
    assert len(data.train) + len(data.development) + (0 if own else len(data.validation)) == (60 if own else 48)


# Numbers


@given(st.lists(st.integers(0, 255), min_size=1, max_size=50))
@settings(deadline=None)
def test_mean_and_std(values: list[int]) -> None:
    mean, std = mean_and_std(torch.tensor(values, dtype=torch.uint8)[:, None, None, None])
    assert mean[0] == pytest.approx(np.mean(values) / 255, abs=1e-12)
    assert std[0] == pytest.approx(max(np.std(values), 1) / 255, abs=1e-12)


# In memory or in files


def test_large_folders_stay_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, (10, 10))
    needed = 20 * 3 * 20 * 20
    for free, kind in ((4 * needed, ImageSet), (4 * needed - 1, ImageFiles)):
        monkeypatch.setattr(listing, "available_memory", lambda free=free: free)
        assert type(load_image_folder(tmp_path).pool) is kind
        assert type(load_image_folder(tmp_path, streamed=True).test) is ImageFiles
        assert type(load_image_folder(tmp_path, streamed=False).test) is ImageSet


def test_files_and_memory_are_the_same_data_set(tmp_path: Path) -> None:
    write_classes(tmp_path, (20, 30, 10), size=None)
    inside = load_image_folder(tmp_path, image_size=16, streamed=False)
    files = load_image_folder(tmp_path, image_size=16, streamed=True)
    for name in ("class_names", "mean", "std", "name", "crop_padding", "flip"):
        assert getattr(files, name) == getattr(inside, name)
    first = split(inside).draw(20, data_seed=3, label_noise=0.2)
    second = split(files).draw(20, data_seed=3, label_noise=0.2)
    for name in ("train", "validation", "development", "test"):
        images, paths = getattr(first, name), getattr(second, name)
        assert isinstance(images, ImageSet) and isinstance(paths, ImageFiles)
        assert torch.equal(decode_squares(paths.paths, 16).pixels, images.images)
        assert torch.equal(paths.labels, images.labels)
        assert paths.image_shape == images.image_shape
    assert second.to("meta").train is second.train


def test_streamed_statistics_are_of_a_sample_over_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SAMPLE", 10)
    write_classes(tmp_path / "train", (20, 5, 5))
    write_classes(tmp_path / "test", (1, 1, 1))
    data = load_image_folder(tmp_path, streamed=True)
    images, _ = reference_images(tmp_path / "train", 20)
    assert data.mean == mean_and_std(images[::3])[0]


@pytest.mark.parametrize(
    ("paths", "labels", "size", "message"),
    [
        (("a", "b"), torch.tensor([0]), 8, "2 files and 1 labels"),
        (("a",), torch.tensor([0.0]), 8, "int64"),
        (("a",), torch.tensor([[0]]), 8, "int64"),
        (("a",), torch.zeros(1, dtype=torch.long, device="meta"), 8, "on the CPU"),
        (("a",), torch.tensor([0]), 0, "1 pixel or more, got 0"),
    ],
)
def test_image_files_refuses(paths: tuple[str, ...], labels: torch.Tensor, size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageFiles(paths, labels, size)


def test_available_memory() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < available_memory() <= total
