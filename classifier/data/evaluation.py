"""Held-out images in chunks, as they are evaluated: without augmentation, from memory or from files."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rlmix.classifier.data.dataset import Images
from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.streaming import stream_evaluation


def evaluation_chunks(
    part: Images, *, count: int, batch_size: int, device: torch.device, workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first `count` images of a split and their labels, in order.

    Args:
        part: the split.
        count: number of images, at least 1 and at most all of them.
        batch_size: number of images in a chunk; the last one may have fewer.
        device: device that chunks are sent to.
        workers: number of processes that read images from files; 0 reads in this one.

    Yields:
        Images `[B, C, H, W]`, uint8, and labels `[B]`.

    Raises:
        DataError: a file cannot be read; the message names it.
    """
    if isinstance(part, ImageFiles):
        pin = device.type == "cuda"
        files = part.take(np.arange(count))
        chunks = stream_evaluation(files, size=part.size, batch_size=batch_size, workers=workers, pin=pin)
    else:
        chunks = iter(part.images[:count].split(batch_size))
    labels = part.labels[:count].to(device).split(batch_size)
    for chunk, answers in zip(chunks, labels, strict=True):
        yield chunk.to(device, non_blocking=True), answers
