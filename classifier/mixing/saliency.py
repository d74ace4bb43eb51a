"""Input gradients, and the patch saliency that R-Mix and Puzzle Mix read from them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d


def pixel_saliency(gradient: Tensor) -> Tensor:
    """Return each pixel's saliency `S = sqrt(mean over channels of g^2)`, relative to the image's largest gradient.

    Args:
        gradient: `[B, C, H, W]`, gradient of the loss at the input.

    Returns:
        `[B, H, W]` float32, from 0; all 0 for an image without any gradient.
    """
    # A gradient of 1e-25 is still a direction, but its square is zero in float32: scale before squaring.
    gradient = gradient.float()
    largest = gradient.abs().amax(dim=(1, 2, 3), keepdim=True)
    gradient = gradient / largest.clamp(min=torch.finfo(torch.float32).tiny)
    return gradient.square().mean(dim=1).sqrt()


def patch_saliency(gradient: Tensor, grid: int) -> Tensor:
    """Return the saliency of each patch: the mean over its pixels, summing to 1 per image.

    An image without any gradient (the network is sure of it) gets a uniform map.

    Args:
        gradient: `[B, C, H, W]`, gradient of the loss at the input; `grid` divides H and W.
        grid: patches per side.

    Returns:
        `[B, grid, grid]` float32, each map summing to 1.

    Raises:
        ValueError: `grid` does not divide the image's sides.
    """
    batch, _, height, width = gradient.shape
    if height % grid or width % grid:
        raise ValueError(
            f"the patch grid must divide the image, got {grid} patches per side for {height} x {width} pixels"
        )
    return summing_to_one(
        pixel_saliency(gradient).view(batch, grid, height // grid, grid, width // grid).mean(dim=(2, 4))
    )


def pooled_saliency(gradient: Tensor, grid: int) -> Tensor:
    """Return the saliency averaged over patches, not normalised.

    Where `grid` does not divide the image, neighbouring patches overlap by a pixel (adaptive pooling).

    Args:
        gradient: `[B, C, H, W]`, gradient of the loss at the input.
        grid: patches per side.

    Returns:
        `[B, grid, grid]` float32, from 0.
    """
    largest = gradient.float().abs().amax(dim=(1, 2, 3))
    return adaptive_avg_pool2d(pixel_saliency(gradient), grid) * largest[:, None, None]


def summing_to_one(maps: Tensor) -> Tensor:
    """Return maps `[B, h, w]`, each divided by its sum; uniform where the sum is 0 or not finite."""
    total = maps.sum(dim=(1, 2), keepdim=True)
    usable = (total > 0) & total.isfinite()
    return torch.where(usable, maps / total.where(usable, 1.0), 1.0 / maps[0].numel())


@contextmanager
def buffers_unchanged(model: nn.Module) -> Iterator[None]:
    """Restore every buffer of `model` (BatchNorm's running statistics) when the block ends."""
    buffers = list(model.buffers())
    saved = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(buffers, saved, strict=True):
                buffer.copy_(before)


def input_gradient(loss: Callable[[Tensor], Tensor], images: Tensor, model: nn.Module) -> Tensor:
    """Return the gradient of a loss at the input; the model's own gradients and running statistics do not change.

    This is the *exact* pass of the R-Mix paper: a second forward and backward through the network.

    Args:
        loss: maps images `[B, C, H, W]` to a scalar, calling `model`.
        images: `[B, C, H, W]`, floating point.
        model: the network, whose buffers are restored.

    Returns:
        `[B, C, H, W]`.
    """
    leaf = images.detach().requires_grad_()
    with buffers_unchanged(model), torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    return gradient
