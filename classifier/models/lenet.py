"""LeNet-5: gradient-based learning applied to document recognition (LeCun et al. 1998), in its present-day form."""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlmix.classifier.errors import InputError

SIDE = 32  # pixels; what LeNet-5 was drawn for, its 28-pixel digits within


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max-pooling, as in the collections of CIFAR networks that the mixup papers draw from.

    The layers and widths are those of the paper's figure 2: convolutions with 6 and 16 channels, both 5 x 5 and pooled
    by 2, then linear layers with 120, 84 and K outputs; 61,706 parameters for 10 classes, grey. Images smaller than
    32 x 32 get a border of zeros, as the paper's digits stood in a larger field. Initialised as torch does.

    Args:
        num_classes: K, length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, 6, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        )
        self.hidden1 = nn.Linear(16 * 5 * 5, 120)
        self.hidden2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, K]` of images `[B, C, H, W]` of at most 32 x 32 pixels.

        Raises:
            ValueError: the images are larger.
        """
        height, width = x.shape[2:]
        if height > SIDE or width > SIDE:
            raise InputError(f"lenet takes images of at most {SIDE} x {SIDE} pixels, got {height} x {width}")
        top, left = (SIDE - height) // 2, (SIDE - width) // 2
        x = pad(x, (left, SIDE - width - left, top, SIDE - height - top))
        embedding = torch.relu(self.hidden1(self.stages(x).flatten(1)))
        return self.head(torch.relu(self.hidden2(embedding)))


def lenet(num_classes: int, in_channels: int) -> LeNet:
    """LeNet-5 for images of 28 or 32 pixels, grey or in colour."""
    return LeNet(num_classes, in_channels)
