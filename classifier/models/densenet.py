"""DenseNet-121: densely connected networks (Huang et al. 2017), https://arxiv.org/abs/1608.06993; torchvision's."""

from torch import nn
from torchvision.models import DenseNet
from torchvision.models import densenet121 as torchvision_densenet121

from classifier.models.channels import set_in_channels


def densenet121(num_classes: int, in_channels: int) -> DenseNet:
    """DenseNet-121 for ImageNet's sizes, from 29 pixels; 7.98 M parameters at 1000 classes."""
    return set_in_channels(torchvision_densenet121(num_classes=num_classes), in_channels)


def densenet121_small(num_classes: int, in_channels: int) -> DenseNet:
    """DenseNet-121 for small images: a 3 x 3 stem straight into the first block; 7.05 M parameters at 100 classes.

    The growth rate of 32 and the four blocks are ImageNet's, as in the collection of CIFAR networks behind the mixup
    authors' setting, which LaMix trains in.
    """
    model = torchvision_densenet121(num_classes=num_classes)
    model.features.conv0 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.features.conv0.weight)  # as torchvision's others
    # Every layer of a block starts with norm and ReLU of its own: the stem's would come twice.
    model.features.norm0 = model.features.relu0 = model.features.pool0 = nn.Identity()
    return model
