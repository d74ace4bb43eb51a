"""Batches of images that worker processes read from files ahead of training, by given random draws.

The caller draws everything random, so a batch is a pure function of its draw: the same bytes for any number of
workers, in the order of the draws. Batches are uint8 on the host; normalising and mixing stay on the device.
"""

import math
import random
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as MapDataset

from rlmix.classifier.data.decoding import PixelFormat, centre_square, read_image
from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.image_set import DataError

SCALE = (0.08, 1.0)  # share of the image's area, as published for Inception and usual for ImageNet since
RATIO = (3 / 4, 4 / 3)  # width over height
ATTEMPTS = 10


@dataclass(frozen=True, eq=False)
class StreamDraw:
    """Random draws of one batch, on the host.

    Args:
        index: `[B]`, int64, positions of the files.
        crop: `[B, 4]`, float64 in [0, 1]: area, aspect ratio, top and left of each crop.
        flip: `[B]`, bool, whether each crop is mirrored left to right.
    """

    index: Tensor
    crop: Tensor
    flip: Tensor


def stream_batches(
    files: ImageFiles,
    batches: Iterable[StreamDraw],
    *,
    size: int,
    workers: int,
    scale: tuple[float, float] = SCALE,
    pin: bool = False,
) -> Iterator[Tensor]:
    """Yield random crops of image files, each scaled to a square, a batch for each draw, in order.

    Draws are taken ahead of the batches, two for each worker, so `batches` must not depend on the results. Closing or
    dropping the iterator ends its workers.

    Args:
        files: the files.
        batches: the draws, endless or not.
        size: side of the squares in pixels.
        workers: number of processes that read; 0 reads in this one, when a batch is requested.
        scale: lowest and highest share of an image's area that a crop covers.
        pin: whether batches are in pinned memory, for asynchronous copies to a CUDA device.

    Yields:
        `[B, C, size, size]`, uint8, in channels-last memory.

    Raises:
        DataError: an argument out of range (at once), a draw that does not fit the files, or a file that cannot be
            read (at its batch); the message names the file.
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise DataError(f"expected a scale of two rising shares of the area in (0, 1], got {scale}; {SCALE} is usual")
    see = partial(_random_square, size=size, scale=scale, form=files.form)
    return _stream(_items(files, batches), see, (size, files.form.channels), workers, pin)


def stream_evaluation(
    files: ImageFiles, *, size: int, batch_size: int, workers: int, pin: bool = False
) -> Iterator[Tensor]:
    """Yield the middle square of each file, once the shorter side is resized to `size` * 256 / 224 pixels.

    Args:
        files: the files.
        size: side of the squares in pixels.
        batch_size: images in a batch; the last one has what is left.
        workers: processes that read; 0 reads in this one.
        pin: whether batches are in pinned memory.

    Yields:
        `[B, C, size, size]`, uint8, in channels-last memory.

    Raises:
        DataError: an argument out of range (at once), or a file that cannot be read; the message names it.
    """
    if batch_size < 1:
        raise DataError(f"expected a batch_size of 1 or more, got {batch_size}; 256 is usual")
    starts = range(0, len(files), batch_size)
    batches = ([(path,) for path in files.paths[start : start + batch_size]] for start in starts)
    see = partial(_middle_square, size=size, form=files.form)
    return _stream(batches, see, (size, files.form.channels), workers, pin)


def random_crop(
    height: int, width: int, draw: Sequence[float], *, scale: tuple[float, float] = SCALE
) -> tuple[int, int, int, int]:
    """Return the place of a random crop: torchvision's `RandomResizedCrop`, by a draw instead of a global generator.

    Area is uniform over `scale`, the logarithm of width / height over that of 3/4 to 4/3. A crop that is too large
    is drawn again up to nine times, by numbers that follow from the draw; then the middle is taken, as large as the
    ratios allow.

    Args:
        height, width: sides of the image, in pixels.
        draw: four numbers in [0, 1]: area, aspect ratio, top, left.
        scale: lowest and highest share of the area.

    Returns:
        (top, left, height, width) of the crop, in pixels.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for across_area, across_ratio, down, across in _attempts(draw):
        area = height * width * (scale[0] + across_area * (scale[1] - scale[0]))
        ratio = math.exp(low + across_ratio * (high - low))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = min(int(down * (height - crop_height + 1)), height - crop_height)
            left = min(int(across * (width - crop_width + 1)), width - crop_width)
            return top, left, crop_height, crop_width
    crop_height, crop_width = height, width
    if width / height < RATIO[0]:
        crop_height = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        crop_width = round(height * RATIO[1])
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _attempts(draw: Sequence[float]) -> Iterator[Sequence[float]]:
    yield draw
    # Python promises that this stream never changes for one seed.
    more = random.Random(struct.pack("<4d", *draw))
    for _ in range(ATTEMPTS - 1):
        yield [more.random() for _ in range(4)]


# Worker processes are sent only this module's functions, sizes, and each batch's paths and draws: so they start
# quickly, also where they are spawned, and do not each hold a list of a million paths.


class _Squares(MapDataset[Tensor]):
    def __init__(self, see: Callable[..., Image.Image], shape: tuple[int, int]) -> None:
        self._see = see
        self._size, self._channels = shape

    def __getitems__(self, items: Sequence[tuple[Any, ...]]) -> Tensor | DataError:
        shape = (self._size, self._size, self._channels)
        pixels = np.empty((len(items), *shape), dtype=np.uint8)
        try:
            for place, item in enumerate(items):
                pixels[place] = np.asarray(self._see(*item)).reshape(shape)
        except DataError as error:
            return error  # raised by `_in_turn`: DataLoader would wrap it in the worker's traceback
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def _random_square(
    path: str, draw: Sequence[float], flip: bool, *, size: int, scale: tuple[float, float], form: PixelFormat
) -> Image.Image:
    image = read_image(path, form)
    top, left, height, width = random_crop(image.height, image.width, draw, scale=scale)
    crop = image.crop((left, top, left + width, top + height)).resize((size, size), Image.Resampling.BILINEAR)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else crop


def _middle_square(path: str, *, size: int, form: PixelFormat) -> Image.Image:
    return centre_square(read_image(path, form), size, shorter=round(size * 256 / 224))


def _items(files: ImageFiles, batches: Iterable[StreamDraw]) -> Iterator[list[tuple[str, list[float], bool]]]:
    for draw in batches:
        index, crop, flip = draw.index, draw.crop, draw.flip
        if len(index) == 0 or crop.shape != (len(index), 4) or flip.shape != index.shape:
            raise DataError(
                f"expected a draw of index [B], crop [B, 4] and flip [B], B above 0, got {list(index.shape)}, "
                f"{list(crop.shape)} and {list(flip.shape)}; draw each for every image of the batch"
            )
        if not 0 <= int(index.min()) <= int(index.max()) < len(files) or not 0 <= crop.min() <= crop.max() <= 1:
            raise DataError(
                f"expected an index from 0 to {len(files) - 1} and crop numbers in [0, 1], got "
                f"{int(index.min())} to {int(index.max())} and {float(crop.min())} to {float(crop.max())}; "
                "draw them for these files"
            )
        yield [
            (files.paths[place], numbers, mirrored)
            for place, numbers, mirrored in zip(index.tolist(), crop.tolist(), flip.tolist(), strict=True)
        ]


def _stream(
    batches: Iterable[list[Any]], see: Callable[..., Image.Image], shape: tuple[int, int], workers: int, pin: bool
) -> Iterator[Tensor]:
    """Yield the batches as `see` shows each item; `shape` is the squares' side and number of channels."""
    if shape[0] < 1 or workers < 0:
        raise DataError(f"expected a size of 1 or more and 0 workers or more, got {shape[0]} and {workers}")
    loader = DataLoader(
        _Squares(see, shape),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        generator=torch.Generator(),  # otherwise it draws an unneeded seed from the global one
    )
    return _in_turn(iter(loader))


def _as_it_is(batch: Any) -> Any:
    return batch


def _in_turn(batches: Iterator[Tensor | DataError]) -> Iterator[Tensor]:
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    finally:
        del batches  # ends the workers, which an error's traceback would keep alive
