"""Images in memory, as uint8 tensors with their labels."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlmix.classifier.errors import InputError


class DataError(InputError):
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
                f"images: expected uint8 [N, C, H, W], got {describe(self.images)}; "
                "scale to 0..255, convert with .to(torch.uint8), and give grey images a channel with .unsqueeze(1)"
            )
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1:
            raise DataError(
                f"labels: expected int64 [N], got {describe(self.labels)}; give class numbers, not one-hot rows"
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

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image."""
        _, channels, height, width = self.images.shape
        return (channels, height, width)

    def take(self, positions: NDArray[np.int64]) -> "ImageSet":
        """Return the images at these positions, in this order."""
        index = torch.from_numpy(positions).to(self.labels.device)
        return ImageSet(self.images.index_select(0, index), self.labels.index_select(0, index))

    def to(self, device: torch.device | str) -> "ImageSet":
        """Return the images on `device`; nothing is copied if they are there already."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def describe(tensor: Tensor) -> str:
    """Return type and shape of a tensor, for errors."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
