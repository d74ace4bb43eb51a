"""Image files to pixels: every kind that Pillow reads, brought to one size, or an error that names the file.

Pixels are those of torchvision's `ImageFolder` with its `Resize` and `CenterCrop`, bit for bit: Pillow's arithmetic is
the same on every machine. `torchvision.io` is a little faster (1.1 against 1.5 ms for a photograph) but reads fewer
kinds and is deprecated from torchvision 0.29 on.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from rlmix.classifier.data.archives import open_file, printable
from rlmix.classifier.data.image_set import DataError
from rlmix.classifier.limits import usable_cores

# torchvision.datasets.folder.IMG_EXTENSIONS, without the seconds that its import takes
TORCHVISION_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# What cameras, phones and browsers also write; read where the Pillow that is installed can
MORE_ENDINGS = (".jfif", ".jpe", ".gif", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".pbm", ".pnm", ".tga")

# Kinds that are tried first, whatever the ending says: to try all of them takes longer than to decode a small image.
COMMON = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")

MAX_THREADS = 32
MAX_PIXELS = 89_478_485  # where Pillow begins to warn; what it lets through beyond may take a gigabyte

ORIENTATION = 0x0112  # the EXIF tag
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class PixelFormat:
    """Format that all images of a data set are brought to.

    Args:
        mode: `RGB`, or `L` for grey images of one channel.
        bits: bits, 8 to 16, that the values of grey images of 16 bits use: 12-bit values, as of X-ray images, are
            divided by 16.
    """

    mode: Literal["RGB", "L"] = "RGB"
    bits: int = 16

    @property
    def channels(self) -> int:
        """Number of channels."""
        return len(self.mode)


RGB = PixelFormat()


class Decoded(NamedTuple):
    """Decoded images.

    Attributes:
        pixels: `[N, C, size, size]`, uint8.
        highest: highest value of the grey images of 16 bits; 0 without one.
    """

    pixels: Tensor
    highest: int


def readable_endings() -> tuple[str, ...]:
    """Return the endings, in lower case, of the kinds of files that are read as images."""
    Image.init()
    known = Image.registered_extensions()
    return TORCHVISION_ENDINGS + tuple(ending for ending in MORE_ENDINGS if known.get(ending) in Image.OPEN)


def read_image(path: str | Path, form: PixelFormat = RGB) -> Image.Image:
    """Decode a file: the first frame, turned upright as its EXIF orientation says, without transparency.

    Else as torchvision's `ImageFolder` does, which ignores the orientation and clips grey images of 16 bits.

    Raises:
        DataError: the file cannot be read, is no image, is cut or damaged, or has values that are no colours.
    """
    return _read(path, form)[0]


def _read(path: str | Path, form: PixelFormat) -> tuple[Image.Image, int]:
    """Return the image, and its highest value if it is grey of 16 bits, else 0."""
    try:
        with open_file(path) as file:
            content = file.read()
        # From memory, since Pillow asks a file for as many bytes as a damaged header tells.
        with _open(BytesIO(content)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{printable(path)}: expected an image of at most {MAX_PIXELS:,} pixels, got {image.width:,} x "
                    f"{image.height:,}; make it smaller"
                )
            image.load()
            turn = UPRIGHT.get(_orientation(image))
            highest = 0
            if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # older Pillow: "I"
                values = np.asarray(image)
                highest = int(values.max())
                seen = Image.fromarray((values >> (form.bits - 8)).clip(0, 255).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise DataError(
                    f"{printable(path)}: expected an image of 8 or 16 bits for each value, got 32 (mode {image.mode}); "
                    "convert it to PNG or JPEG"
                )
            else:
                # A palette with transparency loses it without a warning only by way of RGBA.
                seen = image.convert("RGBA") if image.mode == "P" else image
            seen = seen.convert("RGB").convert(form.mode)
            return (seen if turn is None else seen.transpose(turn)), highest
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        raise unreadable(path, error) from error


def read_size(path: str | Path) -> tuple[int, int]:
    """Return (height, width) of the upright image, from a file's header alone.

    Raises:
        DataError: the file cannot be read or is no image.
    """
    try:
        with open_file(path) as file, _open(file) as image:
            # Pillow turns TIFF files itself.
            lies = image.format != "TIFF" and _orientation(image) >= 5
            return (image.width, image.height) if lies else (image.height, image.width)
    except DataError:
        raise
    except Exception as error:
        raise unreadable(path, error) from error


def _open(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file, formats=COMMON)
    except UnidentifiedImageError:
        file.seek(0)
        return Image.open(file)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, upright, where there is none or it cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # viewers show an image whose EXIF block is damaged all the same
        return 1


def unreadable(path: str | Path, error: Exception) -> DataError:
    """Return the error for a file that is not a whole image."""
    if isinstance(error, UnidentifiedImageError):
        came = "no kind of image that Pillow knows"
    else:
        came = printable(str(error)) or type(error).__name__
    return DataError(
        f"{printable(path)}: expected a whole image, got {type(error).__name__}: {came:.300}; replace or remove this "
        "file"
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


def decode_squares(paths: Sequence[str | Path], size: int, form: PixelFormat = RGB) -> Decoded:
    """Decode files in a thread for each core; the shorter side becomes `size`, and the middle is kept.

    Raises:
        DataError: a file cannot be decoded; the first one is named.
    """
    pixels = np.empty((len(paths), form.channels, size, size), dtype=np.uint8)

    def decode(place: int) -> int:
        image, highest = _read(paths[place], form)
        square = np.asarray(centre_square(image, size, shorter=size))
        pixels[place] = square.reshape(size, size, form.channels).transpose(2, 0, 1)
        return highest

    with ThreadPoolExecutor(min(MAX_THREADS, usable_cores())) as pool:
        try:
            highest = max(pool.map(decode, range(len(paths))), default=0)
        except DataError:
            pool.shutdown(cancel_futures=True)
            raise
    return Decoded(torch.from_numpy(pixels), highest)
