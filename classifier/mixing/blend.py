"""Formula that most mixers share: image and partner blended by a weight per pixel."""

from torch import Tensor


def blend_pixels(images: Tensor, partner: Tensor, weight: Tensor | float) -> Tensor:
    """Return `weight * x + (1 - weight) * x[partner]` as a new tensor in the memory format of `images`.

    Args:
        images: `[B, C, H, W]`, floating point.
        partner: `[B]` long, index of each image's partner.
        weight: weight of the image itself in [0, 1], a number or broadcastable to `images`.
    """
    return images[partner].lerp_(images, weight)


def blend_targets(targets: Tensor, partner: Tensor, weight: Tensor | float) -> Tensor:
    """Return `weight * y + (1 - weight) * y[partner]`.

    Args:
        targets: `[B, K]`, rows summing to 1.
        partner: `[B]` long.
        weight: weight of the image's own target in [0, 1], a number or broadcastable to `targets`.
    """
    return targets[partner].lerp(targets, weight)
