"""ResNeXt for small images: aggregated residual transformations (Xie et al. 2017), https://arxiv.org/abs/1611.05431."""

import math

import torch
from torch import Tensor, nn

from rlmix.classifier.errors import InputError


class ResNeXtBlock(nn.Module):
    """1 x 1, grouped 3 x 3 and 1 x 1 convolutions, each with BatchNorm, and a shortcut (figure 3c)."""

    def __init__(self, in_channels: int, width: int, out_channels: int, *, cardinality: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=cardinality, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = (
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
            )
            if stride != 1 or in_channels != out_channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.norm1(self.conv1(x)))
        hidden = torch.relu(self.norm2(self.conv2(hidden)))
        return torch.relu(self.norm3(self.conv3(hidden)) + self.shortcut(x))


class ResNeXt(nn.Module):
    """ResNeXt-d, C x w d: three stages of `(d - 2) / 9` blocks with 256, 512 and 1024 channels (section 5.3).

    Initialised as in the code of the mixing papers: convolutions normally with the variance
    `2 / (k² out_channels)`, the linear layer normally with `2 / in_features` and no bias.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the images.
        depth: d, 9 n + 2.
        cardinality: C, the number of groups.
        base_width: w, channels of a group in the first stage; doubled with every stage.
    """

    def __init__(self, num_classes: int, in_channels: int, *, depth: int, cardinality: int, base_width: int) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 9)
        if rest or blocks < 1:
            raise InputError(f"depth must be 9 n + 2 (11, 20, 29, ...), got {depth}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        stages = []
        channels = 64
        for stage in range(3):
            width, out_channels = cardinality * base_width * 2**stage, 256 * 2**stage
            stages.append(
                nn.Sequential(
                    *(
                        ResNeXtBlock(
                            channels if block == 0 else out_channels,
                            width,
                            out_channels,
                            cardinality=cardinality,
                            stride=2 if block == 0 and stage > 0 else 1,
                        )
                        for block in range(blocks)
                    )
                )
            )
            channels = out_channels
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.kaiming_normal_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, K]` of images `[B, C, H, W]`."""
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))


def resnext29_4_24(num_classes: int, in_channels: int) -> ResNeXt:
    """ResNeXt-29, 4 x 24d, as in the R-Mix and Co-Mixup papers; 4.94 M parameters at 100 classes."""
    return ResNeXt(num_classes, in_channels, depth=29, cardinality=4, base_width=24)
