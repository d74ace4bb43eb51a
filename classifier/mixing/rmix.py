"""R-Mix: expeditious saliency-guided mix-up by random thresholding (Luu et al. 2022), https://arxiv.org/abs/2212.04875."""

import torch
from torch import Tensor

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing.blend import blend_pixels, blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings
from rlmix.classifier.mixing.saliency import patch_saliency

GRIDS = (4, 2)  # patches per side, one drawn per batch: 8 and 16 pixels at 32 px, as published


def rmix_grids(height: int, width: int) -> list[int]:
    """Return the grids of `GRIDS` that divide an image, finest first; one is drawn for each batch.

    Raises:
        ValueError: none of them does.
    """
    grids = [grid for grid in GRIDS if height % grid == 0 and width % grid == 0]
    if not grids:
        raise InputError(
            f"R-Mix needs image sides that one of {GRIDS} divides, got {height} x {width} pixels; resize them to a "
            "multiple of 4 (commands: --image-size N)"
        )
    return grids


def salient_patches(saliency: Tensor, threshold: Tensor) -> Tensor:
    """Return the mask of patches at or above their image's saliency quantile `threshold` (interpolated).

    Args:
        saliency: `[B, h, w]`.
        threshold: `[B]`, quantile in [0, 1].

    Returns:
        `[B, h, w]` bool, at least one patch of every image true.
    """
    patches = saliency.flatten(1)
    ordered = patches.sort(dim=1).values
    position = threshold.to(patches.dtype) * (patches.shape[1] - 1)
    below = position.floor().clamp(0, patches.shape[1] - 1).long()
    above = (below + 1).clamp(max=patches.shape[1] - 1)
    lower, upper = ordered.gather(1, below[:, None]), ordered.gather(1, above[:, None])
    quantile = lower + (upper - lower) * (position - below)[:, None]
    # Rounding must not lift the quantile above the largest patch: that would leave an image without any salient patch.
    return (patches >= torch.minimum(quantile, ordered[:, -1:])).view_as(saliency)


def rmix(
    images: Tensor, targets: Tensor, *, partner: Tensor, lam: float, saliency: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix each image with its partner by thresholded saliency (R-Mix, section 3.1).

    Patches at or above an image's own saliency quantile are salient (mask `m`, the partner's `m'`):
    `x~ = [m = m'](lam x + (1 - lam) x') + [m != m'](m x + m' x')`, and targets take the same weights by area.

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        lam: weight of the image where the masks agree, in [0, 1].
        saliency: `[B, h, w]` patch saliency; h divides H and w divides W.
        threshold: `[B]`, quantile in [0, 1) from which a patch is salient.

    Raises:
        ValueError: the patch grid does not divide the image.
    """
    height, width = images.shape[-2:]
    rows, columns = saliency.shape[-2:]
    if height % rows or width % columns:
        raise ValueError(
            f"the patch grid must divide the image, got {rows} x {columns} patches for {height} x {width} pixels; "
            "pool the saliency to a grid that does"
        )
    mask = salient_patches(saliency, threshold)
    weight = torch.where(mask == mask[partner], lam, mask.to(images.dtype))
    area = weight.mean(dim=(1, 2))
    per_pixel = weight.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)[:, None]
    return blend_pixels(images, partner, per_pixel), blend_targets(targets, partner, area[:, None].to(targets.dtype))


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    gradient = batch.input_gradient("R-Mix")
    grids = rmix_grids(*batch.images.shape[-2:])
    threshold = draw.threshold if settings.threshold is None else torch.full_like(draw.threshold, settings.threshold)
    return rmix(
        batch.images,
        batch.targets,
        partner=draw.partner,
        lam=settings.lam,
        saliency=patch_saliency(gradient, grids[int(draw.choice * len(grids))]),
        threshold=threshold,
    )


RMIX = Method(_mix, needs_gradient=True, needs_threshold=True, fits=rmix_grids)
