"""The registry of mixing methods: a new one is its own file and one line in METHODS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlmix.classifier.mixing.average import average
from rlmix.classifier.mixing.blend import blend_targets
from rlmix.classifier.mixing.cutmix import cutmix, cutmix_box
from rlmix.classifier.mixing.lamix_saliency import lamix_saliency
from rlmix.classifier.mixing.manifold import drawn_stage
from rlmix.classifier.mixing.mixup import mixup
from rlmix.classifier.mixing.puzzlemix import block_counts, graph_cuts, puzzlemix
from rlmix.classifier.mixing.rmix import THRESHOLDS, rmix, rmix_grids
from rlmix.classifier.mixing.saliency import patch_saliency, pixel_saliency
from rlmix.classifier.mixing.saliencymix import fine_grained_saliency, saliencymix

if TYPE_CHECKING:
    from rlmix.classifier.mixing.policy import MixPolicy


@dataclass(frozen=True)
class MixDraw:
    """What is random about mixing one batch, before a policy gives it its distribution.

    The same draw serves every policy, so that two policies trained from one seed differ by the policy alone.

    Attributes:
        partner: `[B]` long, a permutation of the batch.
        threshold: `[B]` float32, R-Mix thresholds out of `THRESHOLDS`.
        lam_quantile: uniform in [0, 1); the policy's λ distribution turns it into λ.
        centre: row and column of CutMix's box, as fractions in [0, 1).
        choice: uniform in [0, 1), which of a method's own alternatives: R-Mix's patch grids, Puzzle Mix's block counts,
            Manifold Mixup's stages.
    """

    partner: Tensor
    threshold: Tensor
    lam_quantile: float
    centre: tuple[float, float]
    choice: float

    @classmethod
    def sample(cls, batch_size: int, *, generator: torch.Generator, device: torch.device | str = "cpu") -> MixDraw:
        """Draw from a CPU `generator`, tensors then moved to `device`; the same on every kind of device."""
        partner = torch.randperm(batch_size, generator=generator)
        threshold = torch.tensor(THRESHOLDS)[torch.randint(len(THRESHOLDS), (batch_size,), generator=generator)]
        quantile, row, column, grid = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        return cls(partner.to(device), threshold.to(device), quantile, (row, column), grid)


@dataclass(frozen=True)
class MixInput:
    """A batch and what methods may want to know of it.

    Attributes:
        images: `[B, C, H, W]`, normalised as the network sees them.
        targets: `[B, K]`, rows summing to 1.
        gradient: `[B, C, H, W]`, gradient of the loss at the images, for methods that need it.
        mean: `[C]`, of colours in [0, 1], what the images were normalised by; for methods that look at colours.
        std: `[C]`, likewise.
    """

    images: Tensor
    targets: Tensor
    gradient: Tensor | None = None
    mean: Tensor | None = None
    std: Tensor | None = None

    def input_gradient(self, method: str) -> Tensor:
        """The gradient, or a ValueError that names the method which needs it."""
        if self.gradient is None:
            raise ValueError(f"{method} needs the input gradient of the batch it mixes, got none; pass `gradient`")
        return self.gradient

    def colour_scale(self, method: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, or a ValueError that names the method which needs them."""
        if self.mean is None or self.std is None:
            raise ValueError(f"{method} looks at colours, got no mean and std of the images; pass `mean` and `std`")
        return self.mean, self.std


Mixed = tuple[Tensor, Tensor]


def _clean(batch: MixInput, policy: MixPolicy, draw: MixDraw) -> Mixed:
    return batch.images, batch.targets


def _mixup(batch: MixInput, policy: MixPolicy, draw: MixDraw) -> Mixed:
    return mixup(batch.images, batch.targets, partner=draw.partner, lam=policy.lam.quantile(draw.lam_quantile))


def _cutmix(batch: MixInput, policy: MixPolicy, draw: MixDraw) -> Mixed:
    height, width = batch.images.shape[-2:]
    box = cutmix_box(height, width, lam=policy.lam.quantile(draw.lam_quantile), centre=draw.centre)
    return cutmix(batch.images, batch.targets, partner=draw.partner, box=box)


def _saliencymix(batch: MixInput, policy: MixPolicy, draw: MixDraw) -> Mixed:
    mean, std = batch.colour_scale("SaliencyMix")
    return saliencymix(
        batch.images,
        batch.targets,
        partner=draw.partner,
        lam=policy.lam.quantile(draw.lam_quantile),
        saliency=fine_grained_saliency(batch.images * std[:, None, None] + mean[:, None, None]),
    )


def _manifold(batch: MixInput, policy: MixPolicy, draw: MixDraw) -> Mixed:
    lam = policy.lam.quantile(draw.lam_quantile)
    if drawn_stage(draw.choice) == 0:
        return mixup(batch.images, batch.targets, partner=draw.partner, lam=lam)
    return batch.images, blend_targets(batch.targets, draw.partner, lam)


def _average(batch: MixInput, policy: MixPolicy, draw: MixDraw) -> Mixed:
    return average(batch.images, batch.targets, partner=draw.partner, lam=policy.lam.quantile(draw.lam_quantile))


def _rmix(batch: MixInput, policy: MixPolicy, draw: MixDraw, lam: float | None = None) -> Mixed:
    gradient = batch.input_gradient("R-Mix")
    grids = rmix_grids(*batch.images.shape[-2:])
    threshold = draw.threshold if policy.threshold is None else torch.full_like(draw.threshold, policy.threshold)
    return rmix(
        batch.images,
        batch.targets,
        partner=draw.partner,
        lam=policy.lam.quantile(draw.lam_quantile) if lam is None else lam,
        saliency=patch_saliency(gradient, grids[int(draw.choice * len(grids))]),
        threshold=threshold,
    )


def _puzzlemix(
    batch: MixInput, policy: MixPolicy, draw: MixDraw, lam: float | None = None, *, transport: bool = True
) -> Mixed:
    gradient = batch.input_gradient("Puzzle Mix")
    mean, std = batch.colour_scale("Puzzle Mix")
    counts = block_counts(*batch.images.shape[-2:])
    return puzzlemix(
        batch.images,
        batch.targets,
        partner=draw.partner,
        lam=policy.lam.quantile(draw.lam_quantile) if lam is None else lam,
        saliency=pixel_saliency(gradient),
        blocks=counts[int(draw.choice * len(counts))],
        mean=mean,
        std=std,
        transport=transport,
    )


def _lamix_over(mix: Callable[[MixInput, MixPolicy, MixDraw, float], Mixed]) -> Callable[..., Mixed]:
    def mixed(batch: MixInput, policy: MixPolicy, draw: MixDraw) -> Mixed:
        return lamix_saliency(
            batch.targets,
            partner=draw.partner,
            lam=policy.lam.quantile(draw.lam_quantile),
            mixer=partial(mix, batch, policy, draw),
        )

    return mixed


@dataclass(frozen=True)
class Method:
    """A mixing method as policies name it.

    Attributes:
        mix: `(batch, policy, draw) -> (mixed_images, mixed_targets)`, changing nothing it is given.
        needs_gradient: whether `mix` reads the input gradient of the batch.
        gradient_in_eval: whether that gradient, where it is taken by a pass of its own, is that of the network in
            evaluation mode, as Puzzle Mix has it; R-Mix takes it with batch statistics.
        needs_threshold: whether `mix` reads R-Mix's threshold.
        stage: for methods that mix hidden states: a uniform draw to the stage, 0 the images themselves (which `mix`
            then has mixed), i the output of the network's stage i (which is left to the caller).
        library: imports what `mix` needs beyond this project's dependencies; raises ImportError where it is absent.
        fits: takes an image's height and width; raises ValueError where `mix` has no grid for such images.
    """

    mix: Callable[[MixInput, MixPolicy, MixDraw], Mixed]
    needs_gradient: bool = False
    gradient_in_eval: bool = False
    needs_threshold: bool = False
    stage: Callable[[float], int] | None = None
    library: Callable[[], object] | None = None
    fits: Callable[[int, int], object] | None = None


# Puzzle Mix, or what is mixed as it is: its saliency, its graph cuts, its blocks.
_over_blocks = partial(Method, needs_gradient=True, gradient_in_eval=True, library=graph_cuts, fits=block_counts)

METHODS = {
    "clean": Method(_clean),
    "mixup": Method(_mixup),
    "cutmix": Method(_cutmix),
    "average": Method(_average),
    "rmix": Method(_rmix, needs_gradient=True, needs_threshold=True, fits=rmix_grids),
    "manifold": Method(_manifold, stage=drawn_stage),
    "saliencymix": Method(_saliencymix),
    "puzzlemix": _over_blocks(_puzzlemix),
    "puzzlemix_no_transport": _over_blocks(partial(_puzzlemix, transport=False)),
    "lamix_rmix": Method(_lamix_over(_rmix), needs_gradient=True, needs_threshold=True, fits=rmix_grids),
    "lamix_puzzlemix": _over_blocks(_lamix_over(_puzzlemix)),
}
