"""Images with known object boxes: items on a larger canvas, and folders in the layout of CUB-200-2011."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlmix.classifier.data import DataError, ImageSet
from rlmix.classifier.data.archives import printable
from rlmix.classifier.data.decoding import centre_square, read_image

CANVAS = 2  # side of the canvas over that of the item
FRAGMENTS = 6
FRAGMENT_SIDE = 1 / 3  # of the item's shorter side
BACKGROUND = 25  # values up to a tenth of white are background, around an item
CUB_FILES = ("images.txt", "image_class_labels.txt", "classes.txt", "bounding_boxes.txt")


@dataclass(frozen=True, eq=False)
class BoxedImages:
    """Images of one object each, and the boxes that the objects fill.

    Attributes:
        images: `[N, C, H, W]`, uint8.
        labels: `[N]`, int64.
        boxes: `[N, 4]`, float64: top, left, bottom and right in pixels; bottom and right are just outside.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor

    def split(self, batch_size: int) -> list["BoxedImages"]:
        """Return batches of `batch_size` images; the last one may have fewer."""
        parts = (values.split(batch_size) for values in (self.images, self.labels, self.boxes))
        return [BoxedImages(*part) for part in zip(*parts, strict=True)]


def on_canvas(items: ImageSet, pool: ImageSet, *, generator: torch.Generator) -> BoxedImages:
    """Place each item on a black canvas of twice its sides among fragments of other classes.

    As in the cluttered MNIST of Mnih et al. 2014 (https://arxiv.org/abs/1406.6247): six squares of a third of the
    item's shorter side, cut from random places of random images of other classes, lie anywhere; the item, cut out by
    its own box, lies on top, anywhere within the canvas. An item without anything brighter than the background fills
    its whole image, as a photograph does.

    Args:
        items: N images on the CPU.
        pool: images of the same size, on the CPU, that fragments are cut from; of two classes or more.
        generator: a CPU generator for places, fragments and the images they are cut from.

    Raises:
        DataError: all images of the pool are of one class.
    """
    count = len(items)
    if len(pool.labels.unique()) < 2:
        raise DataError("expected images of at least 2 classes, got 1; fragments are cut from the others")
    sizes = pool.labels.bincount(minlength=int(items.labels.max()) + 1)
    channels, height, width = items.image_shape
    tall, wide = CANVAS * height, CANVAS * width
    side = max(1, round(FRAGMENT_SIDE * min(height, width)))

    def draw(limit: Tensor | int, *shape: int) -> Tensor:
        """Draw whole numbers from 0 to below `limit`."""
        return (torch.rand(shape, generator=generator, dtype=torch.float64) * limit).long()

    # Sorted by class, the images of other classes are those before and those behind a class's own.
    order = pool.labels.argsort(stable=True)
    own, starts = sizes[items.labels], (sizes.cumsum(0) - sizes)[items.labels]
    other = draw((len(pool) - own)[:, None], count, FRAGMENTS)
    source = order[torch.where(other < starts[:, None], other, other + own[:, None])].tolist()
    cut = torch.stack(
        (draw(height - side + 1, count, FRAGMENTS), draw(width - side + 1, count, FRAGMENTS)), dim=2
    ).tolist()
    spot = torch.stack(
        (draw(tall - side + 1, count, FRAGMENTS), draw(wide - side + 1, count, FRAGMENTS)), dim=2
    ).tolist()
    within = _item_boxes(items.images)
    place = draw(torch.tensor((tall + 1, wide + 1)) - (within[:, 2:] - within[:, :2]), count, 2)
    boxes = torch.cat((place, place + within[:, 2:] - within[:, :2]), dim=1)

    pixels, sources = items.images.numpy(), pool.images.numpy()
    canvas = np.zeros((count, channels, tall, wide), dtype=np.uint8)
    for number, (inside, box) in enumerate(zip(within.tolist(), boxes.tolist(), strict=True)):
        image = canvas[number]
        for item, (y, x), (top, left) in zip(source[number], cut[number], spot[number], strict=True):
            image[:, top : top + side, left : left + side] = sources[item, :, y : y + side, x : x + side]
        image[:, box[0] : box[2], box[1] : box[3]] = pixels[number, :, inside[0] : inside[2], inside[1] : inside[3]]
    return BoxedImages(torch.from_numpy(canvas), items.labels, boxes.double())


def _item_boxes(images: Tensor) -> Tensor:
    """Return the box around all pixels above the background, `[N, 4]`; the whole image where there are none."""
    height, width = images.shape[2:]
    bright = (images > BACKGROUND).any(dim=1)
    bright |= ~bright.any(dim=(1, 2), keepdim=True)
    ends = []
    for axis, length in ((2, height), (1, width)):
        line = bright.any(dim=axis).byte()
        ends.append((line.argmax(dim=1), length - line.flip(1).argmax(dim=1)))
    (top, bottom), (left, right) = ends
    return torch.stack((top, left, bottom, right), dim=1)


def load_boxed_folder(path: str | Path, class_names: Sequence[str], *, size: int, shorter: int) -> BoxedImages:
    """Read a folder in the layout of CUB-200-2011, as a network sees images: the middle square.

    The folder holds `images.txt` (number and path below `images/`), `image_class_labels.txt` (number and class
    number), `classes.txt` (class number and name), `bounding_boxes.txt` (number, x, y, width and height in pixels) and
    `images/`. Where there is a `train_test_split.txt` (number and 1 for training), only the others are read. Boxes are
    cut where the image is; images whose box lies outside the middle square are left out, with a warning.

    Args:
        path: the folder.
        class_names: names of the network's classes, in its order; the folder may have fewer.
        size: side of the square in pixels.
        shorter: length that an image's shorter side is resized to before the square is cut out; at least `size`.

    Raises:
        DataError: a file is missing or damaged, or a class is not the network's.
    """
    folder = Path(path).expanduser()
    files, label_of, names, box_of = (_read_lines(folder / name) for name in CUB_FILES)
    held_out = folder / "train_test_split.txt"
    training = (
        {number for number, fields in _read_lines(held_out).items() if fields == ["1"]} if held_out.exists() else ()
    )
    known = {name: place for place, name in enumerate(class_names)}
    images, labels, boxes, outside = [], [], [], 0
    for number, name in files.items():
        if number in training:
            continue
        try:
            label = known.get(class_name := printable(" ".join(names[label_of[number][0]])))
            x, y, width, height = map(float, box_of[number])
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"{printable(folder)}: expected a class and a box (x, y, width, height) of image {number}, got "
                f"{type(error).__name__}: {error}; correct {', '.join(CUB_FILES[1:])}"
            ) from None
        if label is None:
            raise DataError(
                f"{printable(folder)}: expected a class that the network knows ({', '.join(class_names[:3])}, ...), "
                f"got {class_name!r}; give a folder of the images that it was trained on"
            )
        image = read_image(folder / "images" / " ".join(name))
        box = _in_square((x, y, width, height), image.size, size=size, shorter=shorter)
        if box is None:
            outside += 1
            continue
        images.append(np.asarray(centre_square(image, size, shorter=shorter)).transpose(2, 0, 1))
        labels.append(label)
        boxes.append(box)
    if outside:
        warnings.warn(
            f"{printable(folder)}: left out {outside} images whose box the square does not show", stacklevel=2
        )
    if not images:
        raise DataError(f"{printable(folder)}: expected images with boxes, got none; check train_test_split.txt")
    return BoxedImages(
        torch.from_numpy(np.stack(images)), torch.tensor(labels), torch.tensor(boxes, dtype=torch.float64)
    )


def _read_lines(path: Path) -> dict[str, list[str]]:
    """Return the fields of each line by its first one."""
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{printable(path)}: expected a text file in the layout of CUB-200-2011, got {error}; "
            f"the folder must hold {', '.join(CUB_FILES)} and images/"
        ) from None
    return {row[0]: row[1:] for row in rows}


def _in_square(
    box: tuple[float, float, float, float], image_size: tuple[int, int], *, size: int, shorter: int
) -> tuple[float, float, float, float] | None:
    """Return a box (x, y, width, height) in the middle square of `centre_square`; None if it is outside."""
    width, height = image_size
    scaled = (shorter, int(shorter * height / width)) if width <= height else (int(shorter * width / height), shorter)
    (left, right), (top, bottom) = (
        (
            start * after / before - round((after - size) / 2),
            (start + length) * after / before - round((after - size) / 2),
        )
        for start, length, before, after in zip(box[:2], box[2:], image_size, scaled, strict=True)
    )
    top, left, bottom, right = (min(max(edge, 0.0), float(size)) for edge in (top, left, bottom, right))
    if not all(map(math.isfinite, box)) or bottom <= top or right <= left:
        return None
    return top, left, bottom, right
