"""Wide ResNet (Zagoruyko and Komodakis 2016), https://arxiv.org/abs/1605.07146, in the variant of the mixing papers.

The Manifold Mixup authors' version, which Puzzle Mix, Co-Mixup and R-Mix took over for their published figures, differs
from the paper in three details, kept here: every convolution has a bias (36.55 M parameters at 100 classes, the
paper's has 36.54 M), a block's stride is that of its second convolution, and its shortcut reads the image before norm
and ReLU. Two are not kept: the last norm's momentum of 0.9 (evaluation by little more than the last batch's statistics;
here torch's 0.1), and the pooling of 8 x 8 positions (here of all there are, so that other sizes will do). The
initialisation is torch's own there and here.
"""

import torch
from torch import Tensor, nn

from rlmix.classifier.errors import InputError


class WideBlock(nn.Module):
    """Two 3 x 3 convolutions, each after BatchNorm and ReLU, and a shortcut (figure 1c, without dropout)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride=stride)
            if stride != 1 or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(torch.relu(self.norm1(x)))
        return self.conv2(torch.relu(self.norm2(hidden))) + self.shortcut(x)


class WideResNet(nn.Module):
    """WRN-d-k: three stages of `(d - 4) / 6` blocks with `16 k`, `32 k` and `64 k` channels (table 1).

    Args:
        num_classes: length of the logits.
        in_channels: channels of the images.
        depth: d, the number of convolutions; 6 n + 4.
        widening: k, the factor on the channels.
    """

    def __init__(self, num_classes: int, in_channels: int, *, depth: int, widening: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1:
            raise InputError(f"depth must be 6 n + 4 (10, 16, 22, 28, ...), got {depth}")
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1)
        stages = []
        channels = 16
        for width, stride in ((16 * widening, 1), (32 * widening, 2), (64 * widening, 2)):
            rest_of_stage = (WideBlock(width, width, 1) for _ in range(blocks - 1))
            stages.append(nn.Sequential(WideBlock(channels, width, stride), *rest_of_stage))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, K]` of images `[B, C, H, W]`."""
        return self.head(torch.relu(self.norm(self.stages(self.stem(x)))).mean(dim=(2, 3)))


def wrn_16_8(num_classes: int, in_channels: int) -> WideResNet:
    """WRN-16-8 for small images as in the R-Mix and Puzzle Mix papers; 11.01 M parameters at 100 classes."""
    return WideResNet(num_classes, in_channels, depth=16, widening=8)


def wrn_28_10(num_classes: int, in_channels: int) -> WideResNet:
    """WRN-28-10 for small images as in the R-Mix and Puzzle Mix papers; 36.55 M parameters at 100 classes."""
    return WideResNet(num_classes, in_channels, depth=28, widening=10)
