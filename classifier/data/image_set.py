"""What a data set is here: images as uint8 tensors, their labels, and what is needed to train on them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class DataError(ValueError):
    """Data or a request for data that cannot be used: says what was expected, what came and what to do."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images, all of one size, on one device.

    Args:
        images: `[N, C, H, W]`, uint8, 0 to 255.
        labels: `[N]`, int64, class numbers from 0.

    Raises:
        DataError: wrong type or rank, different lengths, or two devices.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise DataError(
                f"images: expected uint8 [N, C, H, W], got {_describe(self.images)}; "
                "scale to 0..255, convert with .to(torch.uint8), and give grey images a channel with .unsqueeze(1)"
            )
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise DataError(
                f"labels: expected int64 [N], got {_describe(self.labels)}; give class numbers, not one-hot rows"
            )
        if len(self.images) != len(self.labels):
            raise DataError(
                f"expected one label for each image, got {len(self.images)} images and {len(self.labels)} labels; "
                "check that both were read from the same source"
            )
        if self.images.device != self.labels.device:
            raise DataError(
                f"expected images and labels on one device, got {self.images.device} and {self.labels.device}; "
                "move both with .to(device)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same images on `device`; nothing is copied if they are there already."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Everything known of a data set before it is split.

    Args:
        name: the name it is loaded by.
        pool: the images that training, validation and development are taken from.
        test: the images that are kept apart.
        class_names: one name for each class, two classes or more.
        mean: per channel, of images scaled to [0, 1].
        std: per channel, of images scaled to [0, 1]; above 0.
        flip: whether a mirrored image still shows its class.
        crop_padding: pixels of black border that random crops are taken from; 0 or more.

    Raises:
        DataError: a value that contradicts the images, a label out of range, or a class without an image in the pool.
    """

    name: str
    pool: ImageSet
    test: ImageSet
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(
                f"{self.name}: expected 2 or more class names, got {self.num_classes}; name every class in label order"
            )
        shape, test_shape = list(self.pool.images.shape[1:]), list(self.test.images.shape[1:])
        if shape != test_shape:
            raise DataError(
                f"{self.name}: expected pool and test images of one shape, got {shape} and {test_shape}; "
                "bring them to one size"
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
        for part, labels in (("pool", self.pool.labels), ("test", self.test.labels)):
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
        """How many classes there are, K."""
        return len(self.class_names)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
