"""The registry of mixing methods: a new one is its own file and one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from classifier.mixing.average import average
from classifier.mixing.cutmix import cutmix, cutmix_box
from classifier.mixing.mixup import mixup
from classifier.mixing.rmix import GRIDS, THRESHOLDS, rmix
from classifier.mixing.saliency import patch_saliency

if TYPE_CHECKING:
    from classifier.mixing.policy import MixPolicy


@dataclass(frozen=True)
class MixDraw:
    """What is random about mixing one batch, before a policy gives it its distribution.

    The same draw serves every policy, so that two policies trained from one seed differ by the policy alone.

    Attributes:
        partner: `[B]` long, a permutation of the batch.
        threshold: `[B]` float32, R-Mix thresholds out of `THRESHOLDS`.
        lam_quantile: uniform in [0, 1); the policy's λ distribution turns it into λ.
        centre: row and column of CutMix's box, as fractions in [0, 1).
        grid_choice: uniform in [0, 1), which of R-Mix's patch grids.
    """

    partner: Tensor
    threshold: Tensor
    lam_quantile: float
    centre: tuple[float, float]
    grid_choice: float

    @classmethod
    def sample(cls, batch_size: int, *, generator: torch.Generator, device: torch.device | str = "cpu") -> MixDraw:
        """Draw from a CPU `generator`, tensors then moved to `device`; the same on every kind of device."""
        partner = torch.randperm(batch_size, generator=generator)
        threshold = torch.tensor(THRESHOLDS)[torch.randint(len(THRESHOLDS), (batch_size,), generator=generator)]
        quantile, row, column, grid = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        return cls(partner.to(device), threshold.to(device), quantile, (row, column), grid)


def _clean(
    images: Tensor, targets: Tensor, policy: MixPolicy, draw: MixDraw, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    return images, targets


def _mixup(
    images: Tensor, targets: Tensor, policy: MixPolicy, draw: MixDraw, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    return mixup(images, targets, partner=draw.partner, lam=policy.lam.quantile(draw.lam_quantile))


def _cutmix(
    images: Tensor, targets: Tensor, policy: MixPolicy, draw: MixDraw, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    height, width = images.shape[-2:]
    box = cutmix_box(height, width, lam=policy.lam.quantile(draw.lam_quantile), centre=draw.centre)
    return cutmix(images, targets, partner=draw.partner, box=box)


def _average(
    images: Tensor, targets: Tensor, policy: MixPolicy, draw: MixDraw, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    return average(images, targets, partner=draw.partner, lam=policy.lam.quantile(draw.lam_quantile))


def _rmix(
    images: Tensor, targets: Tensor, policy: MixPolicy, draw: MixDraw, gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    if gradient is None:
        raise ValueError("R-Mix needs the input gradient of the batch it mixes, got none; pass `gradient`")
    height, width = images.shape[-2:]
    grids = [grid for grid in GRIDS if height % grid == 0 and width % grid == 0]
    if not grids:
        raise ValueError(f"R-Mix needs image sides that one of {GRIDS} divides, got {height} x {width} pixels")
    threshold = draw.threshold if policy.threshold is None else torch.full_like(draw.threshold, policy.threshold)
    return rmix(
        images,
        targets,
        partner=draw.partner,
        lam=policy.lam.quantile(draw.lam_quantile),
        saliency=patch_saliency(gradient, grids[int(draw.grid_choice * len(grids))]),
        threshold=threshold,
    )


@dataclass(frozen=True)
class Method:
    """A mixing method as policies name it.

    Attributes:
        mix: `(images, targets, policy, draw, gradient) -> (mixed_images, mixed_targets)`, changing nothing it is given.
        needs_gradient: whether `mix` reads the input gradient of the batch, `[B, C, H, W]`.
    """

    mix: Callable[[Tensor, Tensor, MixPolicy, MixDraw, Tensor | None], tuple[Tensor, Tensor]]
    needs_gradient: bool = False


METHODS = {
    "clean": Method(_clean),
    "mixup": Method(_mixup),
    "cutmix": Method(_cutmix),
    "average": Method(_average),
    "rmix": Method(_rmix, needs_gradient=True),
}
