"""A small vision transformer: a network of a kind that no agent has learned from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torchvision.models import VisionTransformer

SIDE, PATCH = 24, 4  # pixels
WIDTH, BLOCKS, HEADS = 64, 3, 4


class SmallViT(VisionTransformer):
    """torchvision's vision transformer whose attention is computed step by step.

    On a CPU the fused kernel's backward pass takes two thirds of an update of so few tokens.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of images `[B, C, 24, 24]`, `[B, K]`."""
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(x)


def small_vit(num_classes: int, in_channels: int) -> nn.Module:
    """Return torchvision's vision transformer with 3 blocks of width 64, for images of 24 x 24 pixels."""
    network = SmallViT(
        image_size=SIDE,
        patch_size=PATCH,
        num_layers=BLOCKS,
        num_heads=HEADS,
        hidden_dim=WIDTH,
        mlp_dim=2 * WIDTH,
        num_classes=num_classes,
    )
    network.conv_proj = nn.Conv2d(in_channels, WIDTH, kernel_size=PATCH, stride=PATCH)
    return network
