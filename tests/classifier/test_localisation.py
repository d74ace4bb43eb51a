"""Localisation: perfect and random maps, boxes by hand, canvases whose content is known, and folders with boxes."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from rlmix.classifier.data import DataError, ImageSet
from rlmix.classifier.evaluation import BoxedImages, PixelNetwork, load_boxed_folder, localise, on_canvas
from rlmix.classifier.evaluation.boxes import FRAGMENTS
from rlmix.classifier.evaluation.localisation import (
    boxes_of_maps,
    chance,
    class_activation_maps,
    last_feature_map,
    overlap,
)
from rlmix.classifier.models import build_model, find_last_layer


@pytest.fixture(autouse=True)
def library_and_one_thread() -> Iterator[None]:
    pytest.importorskip("pytorch_grad_cam")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_boxes(count: int, side: int, seed: int = 0) -> Tensor:
    generator = np.random.default_rng(seed)
    edges = np.sort(
        [[generator.choice(side + 1, 2, replace=False) for _ in range(2)] for _ in range(count)], axis=2
    )  # [N, axis, (low, high)]
    return torch.from_numpy(edges[:, [0, 1, 0, 1], [0, 0, 1, 1]]).double()


def maps_of(boxes: Tensor, side: int) -> np.ndarray:
    maps = np.zeros((len(boxes), side, side))
    for values, (top, left, bottom, right) in zip(maps, boxes.int().tolist(), strict=True):
        values[top:bottom, left:right] = 1
    return maps


# Maps, boxes and overlaps


def test_perfect_maps_are_always_right() -> None:
    boxes = random_boxes(100, 20)
    for threshold in (0.05, 0.2, 1.0):
        assert torch.equal(boxes_of_maps(maps_of(boxes, 20), threshold), boxes)
    assert torch.equal(overlap(boxes, boxes), torch.ones(100, dtype=torch.float64))


def test_maps_of_random_places_are_right_by_chance() -> None:
    boxes = random_boxes(4000, 12)
    sides = boxes[:, 2:] - boxes[:, :2]
    place = (torch.rand(4000, 2, generator=torch.Generator().manual_seed(0)) * (13 - sides)).floor()
    guesses = boxes_of_maps(maps_of(torch.cat((place, place + sides), dim=1), 12), 0.2)
    right = float((overlap(guesses, boxes) >= 0.5).double().mean())
    expected = chance(boxes, (12, 12))
    assert 0.1 < expected < 0.9
    assert right == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5)


def test_maps_of_noise_are_the_whole_image() -> None:
    boxes = random_boxes(500, 30)
    noise = np.random.default_rng(0).random((500, 30, 30))
    right = overlap(boxes_of_maps(noise, 0.2), boxes) >= 0.5
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    assert float((right == (areas >= 450)).double().mean()) > 0.98  # the largest part misses an edge at times


def test_chance_by_trying_every_place() -> None:
    boxes = random_boxes(6, 7, seed=1)
    boxes[:, [1, 3]] = (boxes[:, [1, 3]]).clamp(max=5)  # not square: 7 x 6, and boxes of different sides
    boxes[:, 3] = torch.maximum(boxes[:, 3], boxes[:, 1] + 1)
    shares = []
    for top, left, bottom, right in boxes.int().tolist():
        height, width, hits, tries = bottom - top, right - left, 0, 0
        for y, x in itertools.product(range(7 - height + 1), range(6 - width + 1)):
            ours = {(y + i, x + j) for i in range(height) for j in range(width)}
            true = {(i, j) for i in range(top, bottom) for j in range(left, right)}
            hits += len(ours & true) / len(ours | true) >= 0.5
            tries += 1
        shares.append(hits / tries)
    assert chance(boxes, (7, 6)) == pytest.approx(np.mean(shares))


def test_overlaps_by_hand() -> None:
    ours = torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 2, 2], [1, 1, 3, 5]])
    true = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6], [2, 0, 4, 2], [0, 0, 4, 4]])
    assert overlap(ours, true).tolist() == pytest.approx([1, 4 / 28, 0, 6 / 18])


def test_the_box_is_that_of_the_largest_part() -> None:
    values = np.zeros((1, 8, 8))
    values[0, 0, 0] = 1.0  # the highest, but a single pixel
    values[0, 3:5, 2:7] = 0.5
    values[0, 6:8, 6:8] = 0.15  # below a fifth
    values[0, 5, 7] = 0.6  # touches a corner only
    assert boxes_of_maps(values, 0.2).tolist() == [[3, 2, 5, 7]]
    assert boxes_of_maps(values, 0.9).tolist() == [[0, 0, 1, 1]]
    assert boxes_of_maps(np.zeros((1, 8, 8)), 0.2).tolist() == [[0, 0, 8, 8]]


# Class activation maps


class Looks(nn.Module):
    """Two channels, bright and dark; class 0 is read from the first, class 1 from the second."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Conv2d(1, 2, 1)
        self.look.weight.data.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        self.look.bias.data.copy_(torch.tensor([0.0, 1.0]))
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data.copy_(torch.eye(2))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.look(images).mean(dim=(2, 3)))


def test_maps_of_a_network_that_looks_at_brightness() -> None:
    network = PixelNetwork(Looks(), last_layer="head", mean=(0.0,), std=(1.0,))
    images = torch.zeros(2, 1, 10, 12, dtype=torch.uint8)
    images[:, :, 2:7, 3:8] = 255
    maps, answers = class_activation_maps(network, images, torch.tensor([0, 1]))
    assert maps.shape == (2, 10, 12)
    assert np.allclose(maps[0], images[0, 0] / 255, atol=1e-5)
    assert np.allclose(maps[1], 1 - images[1, 0] / 255, atol=1e-5)
    assert answers.tolist() == [1, 1]  # more is dark than bright
    boxed = BoxedImages(images, torch.tensor([0, 0]), torch.tensor([[2.0, 3, 7, 8]] * 2).double())
    found = localise(network, boxed.split(1))
    assert (found.known_class, found.best_known_class, found.overlap) == (1, 1, 1)
    assert (found.top1, found.accuracy, found.whole_image, found.images) == (0, 0, 0, 2)
    assert not network.model.look._forward_hooks


@pytest.mark.parametrize(
    ("name", "layer", "side"), [("search", "norm", 56), ("torchvision/resnet18", "layer4", 64), ("lenet", "stages", 32)]
)
def test_the_last_feature_map_is_found(name: str, layer: str, side: int) -> None:
    model = build_model(name, num_classes=5, in_channels=3)
    last = find_last_layer(model, num_classes=5, image_shape=(3, 32, 32))
    network = PixelNetwork(model, last_layer=last, mean=(0.5,) * 3, std=(0.5,) * 3)
    found = last_feature_map(network, torch.rand(1, 3, side, side))
    assert found is model.get_submodule(layer)


class Tokens(nn.Module):
    """A transformer in little: patches, a layer of attention over them, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(self.patches(images).flatten(2).transpose(1, 2)).mean(dim=1))


def test_networks_without_a_map_are_refused() -> None:
    lenet = build_model("lenet", num_classes=3, in_channels=3)
    for model, side, named in (
        (Tokens(), 32, "expected a feature map before the last layer, got none in Tokens"),
        (lenet, 56, "images of 56 x 56 pixels, got an error from LeNet"),
    ):
        network = PixelNetwork(model, last_layer="head", mean=(0.5,) * 3, std=(0.5,) * 3)
        with pytest.raises(ValueError, match=named):
            last_feature_map(network, torch.rand(1, 3, side, side))


# Canvases


@pytest.fixture
def items() -> ImageSet:
    """Images whose class can be read from every pixel; each item fills a part of its image."""
    generator = np.random.default_rng(0)
    labels = torch.tensor([0, 1, 2, 3] * 15)
    images = torch.zeros(60, 1, 12, 16, dtype=torch.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = generator.integers(0, 4, 2)
        image[:, top : top + 6, left : left + 9] = 60 * (label + 1)
    return ImageSet(images, labels)


def test_an_item_fills_its_box_and_fragments_are_of_other_classes(items: ImageSet) -> None:
    boxed = on_canvas(items, items, generator=torch.Generator().manual_seed(0))
    assert boxed.images.shape == (60, 1, 24, 32) and torch.equal(boxed.labels, items.labels)
    places = set()
    fragments = 0
    for image, label, box in zip(boxed.images, boxed.labels.tolist(), boxed.boxes.int().tolist(), strict=True):
        top, left, bottom, right = box
        assert (bottom - top, right - left) == (6, 9) and top >= 0 and left >= 0 and bottom <= 24 and right <= 32
        assert set(image[0, top:bottom, left:right].flatten().tolist()) == {60 * (label + 1)}
        outside = image.clone()
        outside[0, top:bottom, left:right] = 0
        values = set(outside.flatten().tolist()) - {0}
        assert 60 * (label + 1) not in values and values <= {60, 120, 180, 240}
        fragments += len(values)
        places.add((top, left))
    assert len(places) > 40 and fragments > 60
    assert {place for place, _ in places} >= {0, 18}  # up to both edges


def test_canvases_are_drawn_by_the_generator(items: ImageSet) -> None:
    before = items.images.clone()
    one, same, other = (on_canvas(items, items, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.images, same.images) and torch.equal(one.boxes, same.boxes)
    assert not torch.equal(one.boxes, other.boxes) and torch.equal(items.images, before)
    assert FRAGMENTS == 6


def test_items_without_a_background_and_items_of_one_class() -> None:
    black = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 0, 1, 1]))
    boxed = on_canvas(black, black, generator=torch.Generator().manual_seed(0))
    assert ((boxed.boxes[:, 2:] - boxed.boxes[:, :2]) == 8).all()
    with pytest.raises(DataError, match="at least 2 classes"):
        on_canvas(black, ImageSet(black.images, torch.zeros(4, dtype=torch.long)), generator=torch.Generator())


def test_fragments_come_from_the_pool(items: ImageSet) -> None:
    pool = ImageSet(torch.full((4, 1, 12, 16), 17, dtype=torch.uint8), torch.tensor([0, 0, 9, 9]))
    one = ImageSet(items.images[3:4], items.labels[3:4])
    boxed = on_canvas(one, pool, generator=torch.Generator().manual_seed(0))
    assert set(boxed.images.unique().tolist()) == {0, 17, 240}


# Folders


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three dark images of different shapes, a light box in each; the last one is a training image."""
    shapes = {
        "a/one.png": (60, 40, (10, 12, 20, 18)),
        "b b/two.png": (40, 80, (4, 30, 16, 20)),
        "a/three.png": (40, 40, (1, 1, 5, 5)),
    }
    lines: dict[str, list[str]] = {"images": [], "image_class_labels": [], "bounding_boxes": [], "train_test_split": []}
    for number, (name, (width, height, (x, y, across, down))) in enumerate(shapes.items(), start=1):
        pixels = np.full((height, width, 3), 20, dtype=np.uint8)
        pixels[y : y + down, x : x + across] = 230
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / name)
        lines["images"].append(f"{number} {name}")
        lines["image_class_labels"].append(f"{number} {1 if name.startswith('a') else 2}")
        lines["bounding_boxes"].append(f"{number} {x}.0 {y}.0 {across}.0 {down}.0")
        lines["train_test_split"].append(f"{number} {int(number == 3)}")
    for name, rows in {**lines, "classes": ["1 a", "2 b b"]}.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


@pytest.mark.parametrize(("size", "shorter"), [(40, 40), (30, 36)])
def test_boxes_lie_where_the_pixels_are(folder: Path, size: int, shorter: int) -> None:
    boxed = load_boxed_folder(folder, ["b b", "c", "a"], size=size, shorter=shorter)
    assert boxed.images.shape == (2, 3, size, size) and boxed.labels.tolist() == [2, 0]
    light = (boxed.images[:, 0] > 125).double().numpy()
    assert torch.allclose(boxes_of_maps(light, 0.5), boxed.boxes, atol=1.01)
    assert float(overlap(boxes_of_maps(light, 0.5), boxed.boxes).min()) > 0.85


def test_without_a_split_all_images_are_read_and_boxes_are_cut(folder: Path) -> None:
    (folder / "train_test_split.txt").unlink()
    rows = (folder / "bounding_boxes.txt").read_text().splitlines()
    # Of the tall image's 80 rows the middle 40 are shown; the first image's box leaves it on the right.
    (folder / "bounding_boxes.txt").write_text("\n".join([rows[0], "2 0 0 40 30", "3 30 30 100 5"]))
    boxed = load_boxed_folder(folder, ["a", "b b"], size=40, shorter=40)
    assert boxed.boxes[1].tolist() == [0, 0, 10, 40] and boxed.boxes[2].tolist() == [30, 30, 35, 40]
    (folder / "bounding_boxes.txt").write_text("\n".join([rows[0], "2 0 0 40 10", rows[2]]))
    with pytest.warns(UserWarning, match="left out 1 images"):
        assert len(load_boxed_folder(folder, ["a", "b b"], size=40, shorter=40).labels) == 2


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("bounding_boxes.txt", None, "bounding_boxes.txt: expected a text file in the layout"),
        ("bounding_boxes.txt", "1 0 0 5 5", "a box .* of image 2, got KeyError"),
        ("bounding_boxes.txt", "1 0 0 5\n2 0 0 5 5", "a box .* of image 1, got ValueError"),
        ("classes.txt", "1 a\n2 unknown", "expected a class that the network knows .*, got 'unknown'"),
        ("train_test_split.txt", "1 1\n2 1\n3 1", "expected images with boxes, got none"),
    ],
)
def test_damaged_folders_are_refused(folder: Path, name: str, content: str | None, named: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(DataError, match=named):
        load_boxed_folder(folder, ["a", "b b"], size=40, shorter=40)
