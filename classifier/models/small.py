"""Networks of 20 thousand to 1 million parameters, named by kind, normalisation and width: `residual_group_16`.

Together they are the networks of the broad tasks: an agent that is to serve strangers has seen networks of both kinds,
with batch normalisation, with group normalisation and without any.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from rlmix.classifier.models.preact_resnet import Norm, PreActResNet

GROUPS = 8  # of channels, each normalised by itself


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(GROUPS, channels)


def _no_norm(channels: int) -> nn.Module:
    return nn.Identity()


NORMS: dict[str, Norm] = {"batch": nn.BatchNorm2d, "group": _group_norm, "none": _no_norm}
WIDTHS = {"residual": (8, 16, 32, 56), "plain": (16, 32, 64, 104)}  # channels of the first stage


class PlainNet(nn.Module):
    """Three convolutions of 3 x 3, each with normalisation, ReLU and max-pooling; mean over the image; a linear layer.

    Args:
        num_classes: K, length of the logits.
        in_channels: channels of the images.
        width: channels of the first convolution; the others have twice and four times as many.
        norm: normalisation layer.
    """

    def __init__(self, num_classes: int, in_channels: int, *, width: int, norm: Norm) -> None:
        super().__init__()
        channels = (in_channels, width, 2 * width, 4 * width)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(before, after, 3, padding=1), norm(after), nn.ReLU(), nn.MaxPool2d(2))
                for before, after in pairwise(channels)
            )
        )
        self.head = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, K]` of images `[B, C, H, W]` of at least 8 x 8 pixels."""
        features: Tensor = self.stages(x)
        return self.head(features.mean(dim=(2, 3)))


def _residual(num_classes: int, in_channels: int, *, width: int, norm: Norm) -> PreActResNet:
    """The search network's shape: three stages of one block, a strided stem."""
    widths = (width, 2 * width, 4 * width)
    return PreActResNet(num_classes, in_channels, widths=widths, blocks=(1, 1, 1), stem_stride=2, norm=norm)


_KINDS: dict[str, Callable[..., nn.Module]] = {"residual": _residual, "plain": PlainNet}
SMALL_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    f"{kind}_{norm}_{width}": partial(_KINDS[kind], width=width, norm=layer)
    for kind, widths in WIDTHS.items()
    for norm, layer in NORMS.items()
    for width in widths
}
