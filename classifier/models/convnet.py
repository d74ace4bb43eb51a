"""A plain convolutional network without normalisation or skip connections, as small as the search network."""

import torch
from torch import Tensor, nn

GRID = 3  # places in each direction that the last features are pooled to


class ConvNet(nn.Module):
    """Two convolutions, each with ReLU and max-pooling, and two linear layers; initialised as torch does.

    Convolutions of 3 x 3 with 16 and 32 channels, both pooled by 2, averaged to 3 x 3 places, then linear layers with
    128 and K outputs; 43,082 parameters for 10 classes, grey. It learns as networks without normalisation do: slowly at
    first, and not at all where the learning rate is high.

    Args:
        num_classes: K, length of the logits.
        in_channels: channels of the images.
    """

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        )
        self.pool = nn.AdaptiveAvgPool2d(GRID)
        self.hidden = nn.Linear(32 * GRID**2, 128)
        self.head = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, K]` of images `[B, C, H, W]` of at least 4 x 4 pixels."""
        return self.head(torch.relu(self.hidden(self.pool(self.stages(x)).flatten(1))))
