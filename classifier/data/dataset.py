"""Data sets: images or their files, labels, and properties that training needs."""

import math
from dataclasses import dataclass, replace

import torch

from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.image_set import DataError, ImageSet
from rlmix.classifier.limits import require_memory

Images = ImageSet | ImageFiles  # pixels in memory, or files that are streamed

RESIZE_CHUNK = 4_096  # images resized at once, so that no second copy of the data set is made


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set before it is split.

    Args:
        name: name that it is loaded by.
        pool: images that training, development and, unless it has its own, validation are taken from.
        test: test images.
        class_names: name of each of at least two classes.
        mean: mean of each channel of images scaled to [0, 1].
        std: standard deviation of each channel of images scaled to [0, 1]; above 0.
        flip: whether a mirrored image still shows its class.
        crop_padding: width of the black border for random crops, in pixels; at least 0.
        validation: the data set's own validation images; optional, defaults to a part of the pool.

    Raises:
        DataError: a value that contradicts the images, a label out of range, or a class without an image in the pool.
    """

    name: str
    pool: Images
    test: Images
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int
    validation: Images | None = None

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(
                f"{self.name}: expected 2 or more class names, got {self.num_classes}; name every class in label order"
            )
        parts = {"pool": self.pool, "test": self.test}
        if self.validation is not None:
            parts["validation"] = self.validation
        empty = [part for part, images in parts.items() if not len(images)]
        if empty:
            raise DataError(f"{self.name}: expected images in every part, got none in {', '.join(empty)}; bring some")
        shape = list(self.pool.image_shape)
        for part, images in parts.items():
            if list(images.image_shape) != shape:
                raise DataError(
                    f"{self.name}: expected pool and {part} images of one shape, got {shape} and "
                    f"{list(images.image_shape)}; bring them to one size"
                )
        channels = shape[0]
        usable = all(map(math.isfinite, self.mean)) and all(0 < value < math.inf for value in self.std)
        if len(self.mean) != channels or len(self.std) != channels or not usable:
            raise DataError(
                f"{self.name}: expected mean and std with {channels} value(s), one per channel, std above 0, "
                f"got mean {self.mean} and std {self.std}; compute them on the pool's images divided by 255"
            )
        if self.crop_padding < 0:
            raise DataError(
                f"{self.name}: expected crop_padding of 0 or more, got {self.crop_padding}; 0 turns random crops off"
            )
        for part, labels in ((part, images.labels) for part, images in parts.items()):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
                raise DataError(
                    f"{self.name}: expected {part} labels from 0 to {self.num_classes - 1}, "
                    f"got {int(labels.min())} to {int(labels.max())}; number the classes from 0 and name each of them"
                )
        counts = torch.bincount(self.pool.labels, minlength=self.num_classes).tolist()
        absent = [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]
        if absent:
            raise DataError(
                f"{self.name}: expected pool images of every class, got none of {', '.join(absent)}; "
                "add some or leave the class out"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)


def resized(dataset: Dataset, size: int) -> Dataset:
    """Return the data set with images of `size` x `size` pixels: LaMix trains MNIST at 32 x 32, for example.

    Bilinear and antialiased; of images that are not square, the shorter side becomes `size` and the middle is kept.
    Image files are resized when they are read. Mean, std and crop padding do not change.

    Raises:
        DataError: a size below 1.
    """
    if size < 1:
        raise DataError(f"{dataset.name}: expected an image_size of 1 pixel or more, got {size}; 32 is usual")
    own = None if dataset.validation is None else _resized(dataset.validation, size)
    return replace(dataset, pool=_resized(dataset.pool, size), test=_resized(dataset.test, size), validation=own)


def _resized(images: Images, size: int) -> Images:
    if isinstance(images, ImageFiles):
        return replace(images, size=size)
    channels, height, width = images.image_shape
    if height == width == size:
        return images
    # Imported here because it takes seconds.
    from torchvision.transforms.v2 import functional

    try:
        require_memory(len(images) * channels * size * size, f"{len(images):,} images of {size:,} x {size:,} pixels")
    except ValueError as error:
        raise DataError(f"{error}; use a smaller image_size, or a folder of images, which can be streamed") from None
    out = images.images.new_empty(len(images), channels, size, size)
    for start in range(0, len(images), RESIZE_CHUNK):
        chunk = functional.resize(images.images[start : start + RESIZE_CHUNK], [size], antialias=True)
        out[start : start + RESIZE_CHUNK] = functional.center_crop(chunk, [size, size])
    return ImageSet(out, images.labels)
