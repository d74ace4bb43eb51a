"""Image files to RGB pixels: every kind that Pillow reads, brought to one size, or an error that names the file.

Pixels are those of torchvision's `ImageFolder` with its `Resize` and `CenterCrop`, bit for bit: Pillow's arithmetic is
the same on every machine. `torchvision.io` is a little faster (1.1 against 1.5 ms for a photograph) but reads fewer
kinds and is deprecated from torchvision 0.29 on.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rlmix.classifier.data.image_set import DataError

# torchvision.datasets.folder.IMG_EXTENSIONS, without the seconds that its import takes
ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")

MAX_THREADS = 32
MAX_BYTES = 2**28
MAX_PIXELS = 89_478_485  # where Pillow begins to warn; what it lets through beyond may take a gigabyte


def printable(path: str | Path) -> str:
    """Return a path that can be printed, with \\x.. for line ends and bytes that are not UTF-8."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\x0a").replace("\r", "\\x0d")


def read_rgb(path: str | Path) -> Image.Image:
    """Decode a file as torchvision's `ImageFolder` does: first frame, transparency and orientation tags ignored.

    Grey images of 16 bits, which Pillow would clip, are scaled to 8.

    Raises:
        DataError: the file cannot be read, is no image, is cut or damaged, or has values that are no colours.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES:
                raise DataError(f"{printable(path)}: expected a file of at most {MAX_BYTES:,} bytes; make it smaller")
            content = file.read()
        # From memory, since Pillow asks a file for as many bytes as a damaged header tells.
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{printable(path)}: expected an image of at most {MAX_PIXELS:,} pixels, got {image.width:,} x "
                    f"{image.height:,}; make it smaller"
                )
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # older Pillow: "I"
                return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
            if image.mode in ("I", "F"):
                raise DataError(
                    f"{printable(path)}: expected an image of 8 or 16 bits for each value, got 32 (mode {image.mode}); "
                    "convert it to PNG or JPEG"
                )
            # A palette with transparency loses it without a warning only by way of RGBA.
            return (image.convert("RGBA") if image.mode == "P" else image).convert("RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) from a file's header alone.

    Raises:
        DataError: the file cannot be read or is no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DataError:
    """Return the error for a file that is not a whole image."""
    if isinstance(error, UnidentifiedImageError):
        came = "no kind of image that Pillow knows"
    else:
        came = printable(str(error)) or type(error).__name__
    return DataError(
        f"{printable(path)}: expected a whole image, got {type(error).__name__}: {came}; replace or remove this file"
    )


def centre_square(image: Image.Image, size: int, *, shorter: int) -> Image.Image:
    """Resize the shorter side to `shorter` pixels (bilinear, antialiased); return the middle `size` x `size`.

    As `torchvision.transforms.Resize(shorter)` and `CenterCrop(size)`; `size` is at most `shorter`.
    """
    width, height = image.size
    if width <= height:
        scaled = (shorter, int(shorter * height / width))
    else:
        scaled = (int(shorter * width / height), shorter)
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)
    left, top = (round((side - size) / 2) for side in scaled)
    return image.crop((left, top, left + size, top + size))


def decode_squares(paths: Sequence[str | Path], size: int) -> Tensor:
    """Decode files in a thread for each core; the shorter side becomes `size`, and the middle is kept.

    Returns:
        `[N, 3, size, size]`, uint8.

    Raises:
        DataError: a file cannot be decoded; the first one is named.
    """
    pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8)

    def decode(place: int) -> None:
        square = centre_square(read_rgb(paths[place]), size, shorter=size)
        pixels[place] = np.asarray(square).transpose(2, 0, 1)

    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as pool:
        try:
            for _ in pool.map(decode, range(len(paths))):
                pass
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    return torch.from_numpy(pixels)
