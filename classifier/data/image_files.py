"""Images that are read from their files during training, for data sets that do not fit into memory."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlmix.classifier.data.decoding import RGB, PixelFormat
from rlmix.classifier.data.image_set import DataError, describe


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Labelled image files, seen as squares; `stream_batches` reads their pixels.

    Args:
        paths: N files, on disk or inside zip files.
        labels: `[N]`, int64, class numbers from 0, on the CPU.
        size: side of the square that the network is given, in pixels, 1 or more.
        form: format that the pixels are brought to; optional, defaults to colour.

    Raises:
        DataError: labels of another type or rank, on a device, or not one for each file; a size below 1.
    """

    paths: tuple[str, ...]
    labels: Tensor
    size: int
    form: PixelFormat = RGB

    def __post_init__(self) -> None:
        if self.labels.dtype != torch.int64 or self.labels.ndim != 1 or self.labels.device.type != "cpu":
            raise DataError(
                f"labels: expected int64 [N] on the CPU, got {describe(self.labels)} on {self.labels.device}; "
                "give class numbers, not one-hot rows"
            )
        if len(self.paths) != len(self.labels):
            raise DataError(
                f"expected one label for each file, got {len(self.paths)} files and {len(self.labels)} labels; "
                "check that both were read from the same source"
            )
        if self.size < 1:
            raise DataError(f"expected a size of 1 pixel or more, got {self.size}; 224 is usual for photographs")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of an image as the network gets it."""
        return (self.form.channels, self.size, self.size)

    def take(self, positions: NDArray[np.int64]) -> "ImageFiles":
        """Return the files at these positions, in this order."""
        paths = tuple(self.paths[position] for position in positions.tolist())
        return replace(self, paths=paths, labels=self.labels[torch.from_numpy(positions)])

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Return the same files: only batches are moved to a device."""
        return self
