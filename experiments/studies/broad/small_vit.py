"""A small vision transformer: a network of a kind that no agent has learned from."""

from __future__ import annotations

from torch import nn
from torchvision.models import VisionTransformer

SIDE, PATCH = 24, 4  # pixels
WIDTH = 96


def small_vit(num_classes: int, in_channels: int) -> nn.Module:
    """Return torchvision's vision transformer with 4 blocks of width 96, for images of 24 x 24 pixels."""
    network = VisionTransformer(
        image_size=SIDE,
        patch_size=PATCH,
        num_layers=4,
        num_heads=4,
        hidden_dim=WIDTH,
        mlp_dim=2 * WIDTH,
        num_classes=num_classes,
    )
    network.conv_proj = nn.Conv2d(in_channels, WIDTH, kernel_size=PATCH, stride=PATCH)
    return network
