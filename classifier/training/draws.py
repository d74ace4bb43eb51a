"""Random draws of a training's updates: a pure function of (seed, number of the update), made a block at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rlmix.classifier.hardware import send
from rlmix.classifier.mixing.draw import MixDraw, seed_from

BLOCK = 32  # updates whose random draws are made and sent to the device at a time
STREAMS = {"data": 0, "mixing": 1, "epoch": 2, "crop": 3}


def stream_seed(seed: int, stream: str, number: int) -> int:
    """Derive the RNG seed of one block of one stream of draws.

    Args:
        seed: RNG seed of the training.
        stream: a name of `STREAMS`.
        number: number of the block, from -1.
    """
    return seed_from(seed, STREAMS[stream], number + 1)


def stream_generator(seed: int, stream: str, number: int) -> torch.Generator:
    """Return the CPU generator of one block of one stream of draws; see `stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, number))


def mixing_block(
    seed: int,
    block: int,
    batch_size: int,
    *,
    generator: torch.Generator,
    part: slice,
    send: Callable[[Tensor], Tensor],
) -> list[MixDraw]:
    """Draw the mixing of a block's updates.

    Args:
        seed: RNG seed of the training.
        block: number of the block, from 0.
        batch_size: number of images in each batch, over all processes.
        generator: the block's generator of the stream `mixing`, at its start.
        part: images of each batch that this process trains on.
        send: moves a tensor from the CPU to the device of the images.
    """
    keys = [(seed, update) for update in range(block * BLOCK, (block + 1) * BLOCK)]
    return MixDraw.sample_block(batch_size, keys, generator=generator, part=part, send=send)


class UpdateDraws:
    """Mixing draws of updates whose batches may have any size; those of one size are a Trainer's.

    Args:
        seed: RNG seed of the training.
        rank: number of this process; it draws for its slice of every batch.
        world: number of processes that train the network.
    """

    def __init__(self, seed: int, *, rank: int = 0, world: int = 1) -> None:
        self._seed, self._rank, self._world = seed, rank, world
        self._blocks: dict[int, tuple[int, list[MixDraw]]] = {}  # by size: number of the block, and its draws

    def draw(self, update: int, size: int, device: torch.device) -> MixDraw:
        """Return the draw of an update.

        Args:
            update: number of the update, from 0.
            size: number of images in this process's batch.
            device: device of the images.
        """
        block, row = divmod(update, BLOCK)
        kept = self._blocks.get(size)
        if kept is None or kept[0] != block:
            # Draws of other sizes from an earlier block will not be asked for again.
            self._blocks = {other: entry for other, entry in self._blocks.items() if entry[0] == block}
            draws = mixing_block(
                self._seed,
                block,
                size * self._world,
                generator=stream_generator(self._seed, "mixing", block),
                part=slice(self._rank * size, (self._rank + 1) * size),
                send=lambda tensor: send(tensor, device),
            )
            self._blocks[size] = kept = (block, draws)
        return kept[1][row]
