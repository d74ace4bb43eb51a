"""Random draws of mixing, the same for all policies that are trained from one seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

THRESHOLDS = tuple(0.99 * step / 9 for step in range(10))  # of R-Mix: linspace(0, 0.99, 10), as published


def seed_from(*words: int) -> int:
    """Derive an RNG seed from whole numbers, each from 0; other numbers give an independent stream."""
    state = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return int(state[0]) << 31 | int(state[1]) >> 1


@dataclass(frozen=True)
class MixDraw:
    """Random numbers for mixing one batch, before a policy gives them its distributions.

    The same draw serves every policy, so that two policies trained from one seed differ by the policy alone. A method
    that needs more random numbers takes them by `uniform` or `generator`, under a name of its own: they are made only
    when they are asked for, and leave all others as they are.

    Attributes:
        partner: `[B]` long, a permutation of the batch.
        threshold: `[B]` float32, R-Mix thresholds out of `THRESHOLDS`.
        lam_quantile: uniform in [0, 1); the policy's λ distribution turns it into λ.
        centre: row and column of CutMix's box, as fractions in [0, 1).
        choice: uniform in [0, 1), for a method's own alternatives: R-Mix's patch grids, Puzzle Mix's block counts,
            Manifold Mixup's stages, FMix's rounding.
        key: whole numbers from 0, seed of `generator`, e.g. (seed, number of the update).
    """

    partner: Tensor
    threshold: Tensor
    lam_quantile: float
    centre: tuple[float, float]
    choice: float
    key: tuple[int, ...] = ()

    @classmethod
    def sample(cls, batch_size: int, *, generator: torch.Generator, device: torch.device | str = "cpu") -> MixDraw:
        """Draw for one batch from a CPU `generator`; the same on every kind of device."""
        key = (int(torch.randint(2**62, (), generator=generator)),)
        (draw,) = cls.sample_block(batch_size, [key], generator=generator, send=lambda tensor: tensor.to(device))
        return draw

    @classmethod
    def sample_block(
        cls,
        batch_size: int,
        keys: Sequence[tuple[int, ...]],
        *,
        generator: torch.Generator,
        part: slice = slice(None),
        send: Callable[[Tensor], Tensor],
    ) -> list[MixDraw]:
        """Draw for several batches at once, one for each of `keys`.

        Args:
            batch_size: number of images in each batch.
            keys: the draws' `key`.
            generator: a CPU generator.
            part: images of each batch that this process trains on; partners are found among them.
            send: moves a tensor from the CPU to the device of the images.
        """
        shape = (len(keys), batch_size)
        partner = send(torch.rand(shape, generator=generator)[:, part].argsort(dim=1))
        level = torch.randint(len(THRESHOLDS), shape, generator=generator)[:, part]
        threshold = send(torch.tensor(THRESHOLDS)[level])
        numbers = torch.rand(len(keys), 4, generator=generator, dtype=torch.float64).tolist()
        return [
            cls(own_partner, own_threshold, quantile, (down, across), choice, key)
            for own_partner, own_threshold, key, (quantile, down, across, choice) in zip(
                partner.unbind(), threshold.unbind(), keys, numbers, strict=True
            )
        ]

    def generator(self, name: str) -> torch.Generator:
        """Return a new CPU generator that follows from `key` and `name` alone.

        Every process of a distributed training gets the same one: draw what holds for the whole batch.

        Args:
            name: name of the method, and of what it draws where that is more than one thing.
        """
        return torch.Generator().manual_seed(seed_from(*self.key, *name.encode()))

    def uniform(self, name: str, count: int) -> list[float]:
        """Return `count` numbers, uniform in [0, 1), that follow from `key` and `name` alone."""
        return torch.rand(count, generator=self.generator(name), dtype=torch.float64).tolist()
