"""CutMix (Yun et al. 2019), https://arxiv.org/abs/1905.04899."""

import math

import torch
from torch import Tensor

from rlmix.classifier.mixing.blend import blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings

Box = tuple[int, int, int, int]  # top, bottom, left, right; bottom and right are one past the last pixel


def cutmix_box(height: int, width: int, *, lam: float, centre: tuple[float, float]) -> Box:
    """Return the box of area ratio `1 - lam` around `centre`, clipped to the image (CutMix, eq. 2 and appendix A).

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        lam: share of the image that is kept, before clipping, in [0, 1].
        centre: row and column as fractions of height and width, each in [0, 1).
    """
    side = math.sqrt(1.0 - lam)
    box_height, box_width = int(height * side), int(width * side)
    row, column = int(centre[0] * height), int(centre[1] * width)
    top, left = row - box_height // 2, column - box_width // 2
    return (
        max(top, 0),
        min(row + box_height // 2, height),
        max(left, 0),
        min(column + box_width // 2, width),
    )


def cutmix(images: Tensor, targets: Tensor, *, partner: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Paste the partner's pixels inside `box`; the target follows the pasted area.

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        box: (top, bottom, left, right) in pixels, `0 <= top <= bottom <= H` and `0 <= left <= right <= W`.

    Raises:
        ValueError: the box leaves the image.
    """
    top, bottom, left, right = box
    height, width = images.shape[-2:]
    if not (0 <= top <= bottom <= height and 0 <= left <= right <= width):
        raise ValueError(
            f"box must be (top, bottom, left, right) inside an image of {height} x {width} pixels, got {box}; "
            "clip it as cutmix_box does"
        )
    mixed = images.clone(memory_format=torch.preserve_format)
    inside = images[:, :, top:bottom, left:right]
    # The faster one: index_select would give pixels of interleaved channels back channel by channel.
    pasted = inside[partner] if images.stride(1) == 1 else inside.index_select(0, partner)
    mixed[:, :, top:bottom, left:right] = pasted
    kept = 1.0 - (bottom - top) * (right - left) / (height * width)
    return mixed, blend_targets(targets, partner, kept)


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    box = cutmix_box(*batch.images.shape[-2:], lam=settings.lam, centre=draw.centre)
    return cutmix(batch.images, batch.targets, partner=draw.partner, box=box)


CUTMIX = Method(_mix)
