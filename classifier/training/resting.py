"""RestingBatches: clean batches whose saliency serves a saliency update to come, after a rest.

Two updates in a row on one batch take nearly the same step twice, and the network sees half as many different images at
a time: in 600 updates (10 passes) of a residual network on CIFAR-10, R-Mix on half of them lost 4 points against
exact saliency, and nothing that three seeds can tell with a rest of 16 updates
(experiments/results/recycled_saliency_rest).
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import torch
from torch import Tensor

from rlmix.classifier.mixing.saliency import pixel_saliency

REST = 16  # updates, at least, between a clean update and the saliency update on its batch
STALE = 64  # updates after which a gradient is too old
Kept = TypeVar("Kept")


def resting_saliency(gradient: Tensor) -> Tensor:
    """Return what saliency methods read of an input gradient, in little memory.

    Args:
        gradient: `[B, C, H, W]`.

    Returns:
        Saliency of each pixel relative to its image's largest gradient, `[B, 1, H, W]` float16; methods take it in
        place of the gradient.
    """
    return pixel_saliency(gradient)[:, None].to(torch.float16)


class RestingBatches(Generic[Kept]):
    """Clean batches in the order of their updates, each given once.

    Attributes:
        entries: number of the update, and its batch.
    """

    def __init__(self) -> None:
        self.entries: deque[tuple[int, Kept]] = deque()

    def keep(self, update: int, batch: Kept) -> None:
        """Keep the batch of a clean update."""
        self.entries.append((update, batch))

    def forget_stale(self, update: int) -> None:
        """Forget batches that are too old at an update."""
        while self.entries and update - self.entries[0][0] > STALE:
            self.entries.popleft()

    def give(self, update: int) -> Kept | None:
        """Return the oldest batch that is not too old at an update and has rested; None where there is none."""
        self.forget_stale(update)
        if self.entries and update - self.entries[0][0] >= REST:
            return self.entries.popleft()[1]
        return None
