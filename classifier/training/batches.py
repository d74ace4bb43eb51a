"""BatchSource: the batches, views and mixing draws of one training, each a pure function of (seed, number).

Two trainings from one seed see the same batches, crops, partners and ratios whatever their policies, on every kind of
device, and a training needs no generator's state to be resumed. Draws are made on the host in blocks and sent ahead,
so that nothing is copied from the device within a segment of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.data import ImageFiles, Splits, StreamDraw, augment, normalise, pad_images, stream_batches
from rlmix.classifier.errors import InputError
from rlmix.classifier.hardware import send
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.methods import METHODS
from rlmix.classifier.mixing.policy import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.draws import BLOCK, mixing_block, stream_generator
from rlmix.classifier.training.resting import resting_saliency


@dataclass(frozen=True)
class Views:
    """Crops and flips of a batch's images, as `augment` takes them.

    Attributes:
        top: `[B]` int64, first row of each crop.
        left: `[B]` int64, first column of each crop.
        flip: `[B]` bool, whether each crop is mirrored left to right.
    """

    top: Tensor
    left: Tensor
    flip: Tensor

    def __getitem__(self, row: int) -> Views:
        return Views(self.top[row], self.left[row], self.flip[row])


@dataclass
class Batch:
    """A batch on the device, before it is mixed.

    Attributes:
        images: `[B, C, H, W]` float32, normalised.
        index: `[B]` int64, positions in the training set.
        views: the crops and flips through which the images are seen.
        gradient: `[B, C, H, W]`, input gradient of the loss at `images`, or their saliency `[B, 1, H, W]`, which serves
            as well; None until it has been taken.
        logits: `[B, K]` float32 of an exact saliency pass; None without one.
        pixels: `[B, 3, H, W]` uint8 of streamed images, before they were normalised; None for others.
    """

    images: Tensor
    index: Tensor
    views: Views
    gradient: Tensor | None = None
    logits: Tensor | None = None
    pixels: Tensor | None = None

    def state(self) -> dict[str, Any]:
        """Return the batch as plain tensors, for `from_state`."""
        views = [self.views.top, self.views.left, self.views.flip]
        return {
            "images": self.images,
            "index": self.index,
            "views": views,
            "gradient": self.gradient,
            "logits": self.logits,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Batch:
        """Rebuild a batch from `state`, on any device."""
        logits = state.get("logits")
        return cls(
            _channels_last(state["images"].to(device)),
            state["index"].to(device),
            Views(*(tensor.to(device) for tensor in state["views"])),
            _channels_last(state["gradient"].to(device)),
            None if logits is None else logits.to(device),
        )


@dataclass(frozen=True)
class RestingBatch:
    """A clean batch that a saliency update will mix, without what can be made again.

    Attributes:
        index: `[B]` int64, positions in the training set.
        views: the crops and flips through which the saliency was taken.
        saliency: `[B, 1, H, W]` float16, as `resting_saliency` gives it.
        pixels: those of a streamed `Batch`; None for others.
    """

    index: Tensor
    views: Views
    saliency: Tensor
    pixels: Tensor | None

    @classmethod
    def of(cls, batch: Batch) -> RestingBatch:
        """Return a batch, whose gradient is there, as it rests."""
        assert batch.gradient is not None
        return cls(batch.index, batch.views, resting_saliency(batch.gradient), batch.pixels)

    def state(self) -> dict[str, Any]:
        """Return the batch as plain tensors, for `from_state`."""
        views = [self.views.top, self.views.left, self.views.flip]
        return {"index": self.index, "views": views, "saliency": self.saliency, "pixels": self.pixels}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> RestingBatch:
        """Rebuild a batch from `state`, on any device."""
        index, views, saliency, pixels = (state[name] for name in ("index", "views", "saliency", "pixels"))
        return cls(
            index.to(device),
            Views(*(tensor.to(device) for tensor in views)),
            saliency.to(device),
            None if pixels is None else pixels.to(device),
        )


class BatchSource:
    """Batches of one training, numbered from 0, and the random draws of its updates.

    Only caches change between calls: a number always gives the same batch or draw. Ascending numbers are fast.

    Attributes:
        class_weights: `[K]` float32, factors of the loss where the setting balances it; else None.

    Args:
        config: setting of the training.
        data: the images, on `device`.
        seed: RNG seed for data order, crops, flips and mixing draws.
        device: device of the batches.
        rank: number of this process; it gets its slice of every batch.
        world: number of processes that train the network.

    Raises:
        ValueError: a crop's border is larger than the images, streamed images without augmentation, or a batch size
            that is not divisible by the number of processes.
    """

    def __init__(
        self, config: TrainConfig, data: Splits, *, seed: int, device: torch.device, rank: int = 0, world: int = 1
    ) -> None:
        share, rest = divmod(config.batch_size, world)
        if rest or share < 2:
            raise InputError(
                f"batch_size must be divisible by {world} processes, with at least 2 images each, "
                f"got {config.batch_size}"
            )
        streamed = isinstance(data.train, ImageFiles)
        if streamed and not config.augmentation:
            raise InputError("augmentation must be on for streamed images, which are always cropped at random, got off")
        padding = data.crop_padding if config.crop_padding is None else config.crop_padding
        side = min(data.train.image_shape[1:])
        self._padding = padding if config.augmentation else 0
        if self._padding > side:
            raise InputError(f"crop_padding must be at most the images' side ({side}), got {self._padding}")
        self._config, self._data, self._device = config, data, device
        self._slice = slice(rank * share, (rank + 1) * share)
        self._size = data.train.image_shape[1:]
        self._padded = None if isinstance(data.train, ImageFiles) else pad_images(data.train.images, self._padding)
        self._labels = data.train.labels.to(device)
        weights = _balancing_weights(data) if config.balance != "none" else None
        self.class_weights = None if weights is None or config.balance != "weights" else weights.float().to(device)
        # Of each image; None for permutations, in which every image comes once an epoch.
        self._chances = (
            weights[data.train.labels.cpu()] if weights is not None and config.balance == "sampler" else None
        )
        self.mean = torch.tensor(data.mean, device=device)
        self.std = torch.tensor(data.std, device=device)
        self.seed = seed
        self._data_blocks: dict[int, tuple[Tensor, Views]] = {}
        self._mixing_blocks: dict[int, tuple[list[MixDraw], Views]] = {}
        self._stream: Iterator[Tensor] | None = None
        self._stream_next = (0, 0)  # number and side of the batch that the stream gives next

    def reset(self, seed: int) -> None:
        """Start over with another seed."""
        self.seed = seed
        self._data_blocks, self._mixing_blocks = {}, {}
        self.end_readers()

    def end_readers(self) -> None:
        """End the processes that read streamed images ahead; another batch would start them again."""
        self._stream = None

    def batch(self, number: int, *, side: int | None = None) -> Batch:
        """Return batch `number`, not mixed.

        Args:
            number: number of the batch in the data order, from 0.
            side: side of streamed images in pixels; optional, defaults to the data set's own.

        Raises:
            DataError: an image file cannot be read.
        """
        block, row = divmod(number, BLOCK)
        if block not in self._data_blocks:
            index, views = self._draw_data(block)
            self._data_blocks = {block: (self._send(index), self._send_views(views))}
        index, views = self._data_blocks[block]
        if self._padded is None:
            pixels = self._streamed(number, self._size[-1] if side is None else side)
            return Batch(normalise(pixels, self.mean, self.std), index[row], views[row], pixels=pixels)
        return self._view(self._padded, index[row], views[row])

    def labels(self, batch: Batch) -> Tensor:
        """Return the batch's training labels, `[B]` int64."""
        return self._labels[batch.index]

    def draw(self, update: int) -> MixDraw:
        """Return the mixing draw of an update, whichever batch it mixes."""
        draws, _, row = self._mixing(update)
        return draws[row]

    def seen_anew(self, batch: RestingBatch, update: int) -> Batch:
        """Return a batch's images through an update's own crops and flips, the saliency moved along with them.

        Without this a recycled batch shows the network the same pixels twice, half as many different views in all:
        that cost 0.56 ± 0.23 points against exact saliency (experiments/results/recycled_saliency_same_view).

        Args:
            batch: the batch.
            update: number of the update that trains on it again.
        """
        _, blocks, row = self._mixing(update)
        views, saliency = blocks[row], batch.saliency.float()
        if batch.pixels is not None:
            # Another crop would need the file again: only a flip is possible with these pixels.
            mirrored = (views.flip ^ batch.views.flip)[:, None, None, None]
            pixels, saliency = (torch.where(mirrored, tensor.flip(-1), tensor) for tensor in (batch.pixels, saliency))
            views = replace(batch.views, flip=views.flip)
            return Batch(normalise(pixels, self.mean, self.std), batch.index, views, saliency, pixels=pixels)
        assert self._padded is not None
        anew = self._view(self._padded, batch.index, views)
        # Two crops are at most twice the padding apart; pixels outside the first one have no saliency.
        margin = 2 * self._padding
        across = views.left - batch.views.left
        anew.gradient = augment(
            pad_images(saliency, margin),
            index=torch.arange(len(batch.index), device=self._device),
            top=views.top - batch.views.top + margin,
            left=torch.where(batch.views.flip, -across, across) + margin,
            flip=views.flip ^ batch.views.flip,
            size=self._size,
        )
        return anew

    def _view(self, padded: Tensor, index: Tensor, views: Views) -> Batch:
        pixels = augment(padded, index=index, top=views.top, left=views.left, flip=views.flip, size=self._size)
        return Batch(normalise(pixels, self.mean, self.std), index, views)

    def _streamed(self, number: int, side: int) -> Tensor:
        """Return the pixels of batch `number`, `[B, 3, side, side]` uint8, read ahead while numbers ascend."""
        if self._stream is None or self._stream_next != (number, side):
            files, readers = self._data.train, self._config.readers
            assert isinstance(files, ImageFiles)
            pin = self._device.type == "cuda"
            self._stream = stream_batches(files, self._stream_draws(number), size=side, workers=readers, pin=pin)
        self._stream_next = (number + 1, side)
        return next(self._stream).to(self._device, non_blocking=True)

    def _stream_draws(self, number: int) -> Iterator[StreamDraw]:
        """Yield the draws of batch `number` and all that follow it, on the host."""
        while True:
            block, row = divmod(number, BLOCK)
            index, views = self._draw_data(block)
            generator = self._generator("crop", block)
            crop = torch.rand(BLOCK, self._config.batch_size, 4, generator=generator, dtype=torch.float64)
            crop = crop[:, self._slice]
            for place in range(row, BLOCK):
                yield StreamDraw(index[place], crop[place], views.flip[place])
            number = (block + 1) * BLOCK

    def _draw_data(self, block: int) -> tuple[Tensor, Views]:
        """Draw a block's images, `[BLOCK, B]` positions in the training set, and their views; on the host."""
        size = self._config.batch_size
        views = self._draw_views(self._generator("data", block))
        count = len(self._data.train)
        positions = torch.arange(block * BLOCK * size, (block + 1) * BLOCK * size)
        index = torch.empty_like(positions)
        # Batches follow each other through one long row of epochs, each drawn for itself.
        for epoch in range(int(positions[0]) // count, int(positions[-1]) // count + 1):
            order = self._epoch(self._generator("epoch", epoch))
            inside = positions // count == epoch
            index[inside] = order[positions[inside] % count]
        return index.view(BLOCK, size)[:, self._slice], views

    def _epoch(self, generator: torch.Generator) -> Tensor:
        """Draw an epoch's images, as many positions as the training set holds."""
        if self._chances is None:
            return torch.randperm(len(self._data.train), generator=generator)
        return torch.multinomial(self._chances, len(self._chances), replacement=True, generator=generator)

    def _draw_views(self, generator: torch.Generator) -> Views:
        shape = (BLOCK, self._config.batch_size)
        top, left = torch.randint(2 * self._padding + 1, (2, *shape), generator=generator)
        flip = torch.rand(shape, generator=generator) < 0.5
        if not (self._config.augmentation and self._data.flip):
            flip = torch.zeros_like(flip)
        return Views(top[:, self._slice], left[:, self._slice], flip[:, self._slice])

    def _mixing(self, update: int) -> tuple[list[MixDraw], Views, int]:
        """Return the draws and second views of an update's block, and the update's row in it."""
        block, row = divmod(update, BLOCK)
        if block not in self._mixing_blocks:
            self._mixing_blocks = {block: self._draw_mixing(block)}
        return *self._mixing_blocks[block], row

    def _draw_mixing(self, block: int) -> tuple[list[MixDraw], Views]:
        """Draw a block's mixing, and the views through which its updates see a batch for the second time."""
        generator = self._generator("mixing", block)
        draws = mixing_block(
            self.seed, block, self._config.batch_size, generator=generator, part=self._slice, send=self._send
        )
        return draws, self._send_views(self._draw_views(generator))

    def _send_views(self, views: Views) -> Views:
        return Views(*(self._send(tensor) for tensor in (views.top, views.left, views.flip)))

    def _send(self, tensor: Tensor) -> Tensor:
        return send(tensor, self._device)

    def _generator(self, stream: str, number: int) -> torch.Generator:
        return stream_generator(self.seed, stream, number)


def _balancing_weights(data: Splits) -> Tensor:
    """Return each class's inverse frequency, `[K]` float64, with a mean of 1 over the training images."""
    counts = torch.bincount(data.train.labels.cpu(), minlength=data.num_classes)
    return len(data.train) / (data.num_classes * counts.clamp(min=1).double())


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def recycled_updates(plan: Sequence[str], policy: MixPolicy) -> list[bool]:
    """Return for each update whether its gradient is reused: a clean one with a saliency method before the next.

    The updates after the plan are not known: its last clean update counts if the policy has a saliency method at all.
    """
    wanted = any(METHODS[method].needs_gradient for method in policy.shares)
    flags = []
    for method in reversed(plan):
        flags.append(method == "clean" and wanted)
        if method == "clean" or METHODS[method].needs_gradient:
            wanted = METHODS[method].needs_gradient
    return flags[::-1]
