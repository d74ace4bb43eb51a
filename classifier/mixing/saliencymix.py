"""SaliencyMix: a saliency guided data augmentation strategy (Uddin et al. 2021), https://arxiv.org/abs/2006.01791.

Saliency is computed from the image alone, without a network: the fine-grained saliency of Montabone and Soto (2010) as
OpenCV computes it, which the authors found best.
"""

import math
from collections import Counter

import torch
from torch import Tensor
from torch.nn import functional

from rlmix.classifier.mixing.blend import blend_targets, partners_of
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings

LUMA = (0.299, 0.587, 0.114)  # weight of red, green and blue in an image's intensity
SURROUNDS = (12, 24, 28, 48, 56, 112)  # pixels from the centre to the edge of a pixel's surroundings


def fine_grained_saliency(images: Tensor) -> Tensor:
    """Return each pixel's difference in intensity from its surroundings, at six scales (Montabone and Soto 2010).

    Intensity is smoothed twice and compared with the mean of ever larger squares around the pixel; brighter and darker
    differences are summed over the scales, each relative to its highest value in the image, and added. Values are
    rounded to whole numbers where OpenCV's `StaticSaliencyFineGrained` does.

    Args:
        images: `[B, C, H, W]`, float32 colours in [0, 1]: red, green and blue, or any other number of channels, then
            averaged.

    Returns:
        `[B, H, W]`, whole numbers from 0 to 510; all 0 for an image of one colour.
    """
    channels, height, width = images.shape[1:]
    # Filled on the device: a tensor made of numbers would be copied there, and the copy waited for.
    shares = LUMA if channels == 3 else (1.0 / channels,) * channels
    weights = torch.cat([images.new_full((1,), share) for share in shares])
    grey = (255 * (images * weights[:, None, None]).sum(dim=1).clamp(0, 1)).round()
    for _ in range(2):
        grey = _smoothed(grey)
    # Sums over squares by four corners. Whole numbers are exact up to 8 million pixels, and torch's deterministic
    # algorithms have no cumulative sum of floats on a GPU; int64, which torch would take, is half as slow again.
    whole = grey.int().cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
    corners = functional.pad(whole, (1, 0, 1, 0))
    brighter, darker = torch.zeros_like(grey), torch.zeros_like(grey)
    # From the image's own size on, every square is the whole image.
    for surround, scales in Counter(min(surround, max(height, width)) for surround in SURROUNDS).items():
        (top, bottom), (left, right) = (_window(side, surround, images.device) for side in (height, width))
        bands = corners.index_select(1, bottom) - corners.index_select(1, top)
        sums = (bands.index_select(2, right) - bands.index_select(2, left)).to(grey.dtype)
        others = ((bottom - top)[:, None] * (right - left) - 1).clamp(min=1)
        gap = grey - (sums - grey) / others
        brighter += scales * gap.clamp(min=0).floor()
        darker += scales * (-gap).clamp(min=0).floor()
    return _relative(brighter) + _relative(darker)


def saliencymix(
    images: Tensor, targets: Tensor, *, partner: Tensor, lam: float, saliency: Tensor
) -> tuple[Tensor, Tensor]:
    """Paste a box of the partner, centred on its most salient pixel (section 3.2); targets follow the pasted area.

    The box has CutMix's size and is clipped to the image; each image has its own. Of equally salient pixels the first
    in reading order counts, so that a partner of one colour gives its corner.

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        lam: share of the image that is kept before clipping, in [0, 1]; drawn from Beta(1, 1) in the paper.
        saliency: `[B, H, W]`, of each image.
    """
    height, width = images.shape[-2:]
    side = math.sqrt(1.0 - lam)
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    centre = saliency[partner].flatten(1).argmax(dim=1)
    inside_rows = _within(centre // width, half_height, height)
    inside_columns = _within(centre % width, half_width, width)
    inside = inside_rows[:, :, None] & inside_columns[:, None, :]
    kept = 1 - inside_rows.sum(dim=1) * inside_columns.sum(dim=1) / (height * width)
    mixed = torch.where(inside[:, None], partners_of(images, partner), images)
    return mixed, blend_targets(targets, partner, kept[:, None].to(targets.dtype))


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    saliency = fine_grained_saliency(batch.colours("SaliencyMix"))
    return saliencymix(batch.images, batch.targets, partner=draw.partner, lam=settings.lam, saliency=saliency)


SALIENCYMIX = Method(_mix, needs_colours=True)


def _within(centre: Tensor, half: int, side: int) -> Tensor:
    """Return `[B, side]` bool: places from `half` before the centre to just before `half` after it."""
    place = torch.arange(side, device=centre.device)
    return (place >= centre[:, None] - half) & (place < centre[:, None] + half)


def _smoothed(grey: Tensor) -> Tensor:
    """Return the mean with weights 1, 2, 1 in both directions, mirrored at the edges, rounded."""
    # Fewer than two pixels have nothing to mirror.
    padded = functional.pad(grey[:, None], (1, 1, 1, 1), mode="reflect" if min(grey.shape[1:]) > 1 else "replicate")[
        :, 0
    ]
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    both = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
    return (both / 16 + 0.5).floor()


def _window(side: int, surround: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the first place of each pixel's square, and the first after it, clipped to the image."""
    place = torch.arange(side, device=device)
    return (place - surround + 1).clamp(min=0), (place + surround + 1).clamp(max=side)


def _relative(values: Tensor) -> Tensor:
    highest = values.amax(dim=(1, 2), keepdim=True)
    return (255 * values / highest.clamp(min=1)).floor()
