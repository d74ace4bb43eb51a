"""PreAct ResNet: identity mappings in deep residual networks (He et al. 2016), https://arxiv.org/abs/1603.05027."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]  # from a number of channels to a normalisation layer


class PreActBlock(nn.Module):
    """Two 3 x 3 convolutions, each after normalisation and ReLU, and a shortcut (figure 4e)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            if stride != 1 or in_channels != out_channels
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(torch.relu(self.norm2(self.conv1(activated)))) + shortcut


class PreActResNet(nn.Module):
    """Stages of pre-activation blocks; every stage after the first halves the image's sides.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the images.
        widths: channels of each stage.
        blocks: blocks of each stage.
        stem_stride: stride of the first convolution; 1 as published, 2 to see a quarter of the pixels.
        bottleneck: units of a linear layer before the last one, the embedding; None: the embedding is the pooled
            channels, as published.
        norm: normalisation layer; BatchNorm as published.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        stem_stride: int = 1,
        bottleneck: int | None = None,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stride=stem_stride, padding=1, bias=False)
        stages = []
        channels = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, blocks, strict=True)):
            strides = [1 if stage == 0 else 2] + [1] * (depth - 1)
            stages.append(
                nn.Sequential(
                    *(
                        PreActBlock(channels if i == 0 else width, width, stride, norm)
                        for i, stride in enumerate(strides)
                    )
                )
            )
            channels = width
        self.stages = nn.Sequential(*stages)
        self.norm = norm(channels)
        self.bottleneck = None if bottleneck is None else nn.Linear(channels, bottleneck)
        self.head = nn.Linear(channels if bottleneck is None else bottleneck, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, K]` of images `[B, C, H, W]`."""
        pooled = torch.relu(self.norm(self.stages(self.stem(x)))).mean(dim=(2, 3))
        return self.head(pooled if self.bottleneck is None else self.bottleneck(pooled))


def preact_resnet18(num_classes: int, in_channels: int) -> PreActResNet:
    """PreAct ResNet-18 for small images as in the R-Mix and Puzzle Mix papers; 11.22 M parameters at 100 classes."""
    return PreActResNet(num_classes, in_channels, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))


def preact_resnet18_quarter(num_classes: int, in_channels: int) -> PreActResNet:
    """PreAct ResNet-18 with a quarter of the channels, for machines without a GPU; 0.71 M parameters at 100 classes."""
    return PreActResNet(num_classes, in_channels, widths=(16, 32, 64, 128), blocks=(2, 2, 2, 2))


def search_network(num_classes: int, in_channels: int) -> PreActResNet:
    """A PreAct ResNet of 78 thousand parameters with a strided stem, to try many policies quickly."""
    return PreActResNet(num_classes, in_channels, widths=(16, 32, 64), blocks=(1, 1, 1), stem_stride=2)


def search_wide(num_classes: int, in_channels: int) -> PreActResNet:
    """The search network with twice the channels: 307 thousand parameters."""
    return PreActResNet(num_classes, in_channels, widths=(32, 64, 128), blocks=(1, 1, 1), stem_stride=2)


def search_bottleneck(num_classes: int, in_channels: int) -> PreActResNet:
    """The search network with an embedding of 2 units, to be drawn in a plane as LaMix's paper does."""
    return PreActResNet(num_classes, in_channels, widths=(16, 32, 64), blocks=(1, 1, 1), stem_stride=2, bottleneck=2)
