"""ResizeMix: mixing data with preserved object information and true labels (Qin et al. 2020), arXiv 2012.11101."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from rlmix.classifier.mixing.blend import blend_targets
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Method, Mixed, MixInput, MixSettings, Option


def resizemix(
    images: Tensor, targets: Tensor, *, partner: Tensor, scale: float, place: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Paste the whole partner, made smaller, into each image (section 3.3); targets follow the pasted area.

    The partner is resized by the mean over the pixels that each of its new pixels covers.

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]`, index of each image's partner.
        scale: side of the pasted image relative to the whole, τ in (0, 1]; cut to whole pixels, at least 1. Drawn from
            U(0.1, 0.8) in the paper.
        place: uniform in [0, 1), row and column: where it is pasted, out of the places that lie inside the image.
    """
    height, width = images.shape[-2:]
    rows, columns = max(int(height * scale), 1), max(int(width * scale), 1)
    top, left = int(place[0] * (height - rows + 1)), int(place[1] * (width - columns + 1))
    mixed = images.clone(memory_format=torch.preserve_format)
    smaller = interpolate(images, (rows, columns), mode="area")
    mixed[:, :, top : top + rows, left : left + columns] = smaller[partner]
    return mixed, blend_targets(targets, partner, 1 - rows * columns / (height * width))


def _mix(batch: MixInput, settings: MixSettings, draw: MixDraw) -> Mixed:
    share, row, column = draw.uniform("resizemix", 3)
    low, high = settings.options["min_scale"], settings.options["max_scale"]
    scale = low + share * (high - low)
    return resizemix(batch.images, batch.targets, partner=draw.partner, scale=scale, place=(row, column))


RESIZEMIX = Method(_mix, options={"min_scale": Option(0.1, 0.01, 1), "max_scale": Option(0.8, 0.01, 1)})
