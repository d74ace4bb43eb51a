"""Labelled image files of any source, and the data set that they make: in memory, or streamed."""

import math
import statistics
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import torch
from torch import Tensor

from rlmix.classifier.data.dataset import Dataset, Images
from rlmix.classifier.data.decoding import MAX_THREADS, Decoded, PixelFormat, decode_squares, read_size
from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.image_set import DataError, ImageSet
from rlmix.classifier.data.stratify import set_apart
from rlmix.classifier.errors import DataWarning
from rlmix.classifier.limits import available_memory, usable_cores

# Without test images, a fixed fifth of each class is the test set; the seed must never change.
TEST_SEED = 1_797
TEST_SHARE = 0.2

MAX_GUESSED_SIZE = 64  # pixels, where images differ in size: what a search on one machine can afford
SIZE_STEP = 4  # pixels: a guessed size is a multiple of it, so that the patches of every mixing method divide it
MEMORY_SHARE = 0.25  # of the free memory, for the images; the rest is for the network and other copies
SAMPLE = 5_000  # images whose headers, and in streamed sets whose pixels, are read beforehand


@dataclass(frozen=True, eq=False)
class Labelled:
    """Image files with their classes.

    Args:
        paths: N files, on disk or inside zip files.
        labels: `[N]`, int64, class numbers from 0.
    """

    paths: tuple[str, ...]
    labels: Tensor

    def take(self, positions: Tensor) -> "Labelled":
        """Return the files at these positions, in this order."""
        return Labelled(tuple(self.paths[place] for place in positions.tolist()), self.labels[positions])


@dataclass(frozen=True, eq=False)
class Listing:
    """Image files of a data set before any is decoded.

    Args:
        name: name of the data set.
        class_names: name of each class.
        train: files that training, development and, unless it has its own, validation are taken from.
        test: test files; None sets a fixed stratified fifth of `train` apart.
        validation: the data set's own validation files; optional.
        flip: whether a mirrored image still shows its class.
    """

    name: str
    class_names: tuple[str, ...]
    train: Labelled
    test: Labelled | None
    validation: Labelled | None = None
    flip: bool = True


def load_listing(listing: Listing, *, image_size: int | None = None, streamed: bool | None = None) -> Dataset:
    """Return the data set of listed files.

    Every image's shorter side becomes `image_size`, and its middle is kept. Images have one channel if all of the
    pool's are grey (streamed: all of up to 5,000), else three. Grey images of 16 bits are scaled by the number of bits
    that the pool's values use. Mean and std are those of the pool's images (streamed: of up to 5,000).

    Args:
        listing: the files.
        image_size: side in pixels; optional, defaults to the images' own if all have one size, else to the median
            shorter side but at most 64. With a warning, a median or an odd side is rounded down to a multiple of 4.
        streamed: whether images stay in their files; optional, defaults to whether they would take more than a quarter
            of the free memory.

    Raises:
        DataError: too few images, a size below 1, or a file that is no whole image.
    """
    train, test = (listing.train, listing.test) if listing.test is not None else _test_set_apart(listing)
    sample = train.paths[:: math.ceil(len(train.paths) / SAMPLE)]
    if image_size is None:
        image_size = _usual_size(listing.name, sample)
    elif image_size < 1:
        raise DataError(f"{listing.name}: expected an image_size of 1 pixel or more, got {image_size}; 32 is usual")
    if streamed is None:
        parts = (train, test) if listing.validation is None else (train, test, listing.validation)
        needed = sum(len(part.paths) for part in parts) * 3 * image_size**2
        streamed = needed > MEMORY_SHARE * available_memory()
    pixels, form = _decode(listing.name, sample if streamed else train.paths, image_size)

    def images(part: Labelled) -> Images:
        if streamed:
            return ImageFiles(part.paths, part.labels, image_size, form)
        return ImageSet(decode_squares(part.paths, image_size, form).pixels, part.labels)

    mean, std = mean_and_std(pixels)
    data = Dataset(
        name=listing.name,
        pool=images(train) if streamed else ImageSet(pixels, train.labels),
        test=images(test),
        class_names=listing.class_names,
        mean=mean,
        std=std,
        flip=listing.flip,
        crop_padding=max(1, image_size // 16),  # 2 at 32 pixels, 4 at 64, as published for CIFAR and Tiny-ImageNet
        validation=None if listing.validation is None else images(listing.validation),
    )
    if not streamed:
        warn_of_leaks(data)
    return data


def warn_of_leaks(data: Dataset) -> None:
    """Warn of images in memory that are there twice, pixel by pixel: among those to train on, or held out too."""
    pool = _digests(data.pool)
    known = {*pool}
    if copies := len(pool) - len(known):
        warnings.warn(
            f"{data.name}: {copies:,} of the {len(pool):,} training images are copies of others, so that measures of "
            "those held out of them are too good; keep one of each",
            DataWarning,
            stacklevel=4,
        )
    for part, held_out in (("test", data.test), ("validation", data.validation)):
        digests = _digests(held_out)
        if twice := sum(digest in known for digest in digests):
            warnings.warn(
                f"{data.name}: {twice:,} of the {len(digests):,} {part} images are training images too, so that "
                "measures of them are too good; keep one of each",
                DataWarning,
                stacklevel=4,
            )


def _digests(images: Images | None) -> list[bytes]:
    if not isinstance(images, ImageSet):
        return []
    return [blake2b(image.numpy(), digest_size=16).digest() for image in images.images]


def mean_and_std(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel of uint8 images `[N, C, H, W]` scaled to [0, 1].

    Exact, from each channel's histogram. A channel of one value gets the deviation 1 / 255.
    """
    means, stds = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.float64)
        for chunk in images[:, channel].split(10_000):
            counts += torch.bincount(chunk.flatten(), minlength=256)
        share = counts / counts.sum()
        mean = float(share @ values)
        means.append(mean)
        stds.append(max(math.sqrt(float(share @ (values - mean).square())), 1 / 255))
    return tuple(means), tuple(stds)


def _test_set_apart(listing: Listing) -> tuple[Labelled, Labelled]:
    """Return the files that remain for training, and a stratified fifth."""
    whole = listing.train
    remaining, apart = set_apart(whole.labels.numpy(), len(listing.class_names), share=TEST_SHARE, seed=TEST_SEED)
    if len(apart) == 0:
        raise DataError(
            f"{listing.name}: expected enough images to set a fifth apart as test set, got {len(whole.paths)}; "
            "add some, or give test images of their own"
        )
    return whole.take(torch.from_numpy(remaining)), whole.take(torch.from_numpy(apart))


def _decode(name: str, paths: Sequence[str], size: int) -> tuple[Tensor, PixelFormat]:
    """Decode the pool's images, or a sample of them; return them with the format that suits them."""
    form = PixelFormat()
    decoded: Decoded = decode_squares(paths, size, form)
    bits = max(decoded.highest.bit_length(), 8)
    if decoded.highest and bits < 16:
        warnings.warn(
            f"{name}: the highest value of its images of 16 bits is {decoded.highest:,}: their values are taken as "
            f"{bits} bits",
            DataWarning,
            stacklevel=4,
        )
        form = PixelFormat(bits=bits)
        decoded = decode_squares(paths, size, form)
    if _all_grey(decoded.pixels):
        return decoded.pixels[:, :1].contiguous(), PixelFormat("L", form.bits)
    return decoded.pixels, form


def _all_grey(pixels: Tensor) -> bool:
    """Return whether red, green and blue are equal in every pixel of images `[N, 3, H, W]`."""
    return all(
        torch.equal(chunk[:, 0], chunk[:, 1]) and torch.equal(chunk[:, 0], chunk[:, 2]) for chunk in pixels.split(1_000)
    )


def _usual_size(name: str, paths: Sequence[str]) -> int:
    with ThreadPoolExecutor(min(MAX_THREADS, usable_cores())) as pool:
        sizes = list(pool.map(read_size, paths))
    shorter = [min(size) for size in sizes]
    one_size = len(set(sizes)) == 1
    usual = shorter[0] if one_size else min(MAX_GUESSED_SIZE, int(statistics.median(shorter)))
    size = usual - usual % SIZE_STEP or usual  # what is smaller than a step stays
    if one_size and (usual % 2 == 0 or size == usual):
        return usual
    found = f"{usual}" if one_size else f"{min(shorter)} to {max(shorter)}"
    warnings.warn(
        f"{name}: the images' shorter sides are {found} pixels long; all are made {size} x {size}: the shorter side is "
        f"scaled to {size} and the middle kept; image_size (--image-size N) asks for another size",
        DataWarning,
        stacklevel=4,
    )
    return size
