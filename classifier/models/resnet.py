"""ResNet-50: deep residual learning (He et al. 2016), https://arxiv.org/abs/1512.03385; torchvision's, any channels."""

from torch import nn
from torchvision.models import ResNet
from torchvision.models import resnet50 as torchvision_resnet50

from classifier.models.channels import set_in_channels


def resnet50(num_classes: int, in_channels: int) -> ResNet:
    """ResNet-50 for ImageNet's sizes: a 7 x 7 stem with stride 2, then pooling; 25.56 M parameters at 1000 classes."""
    return set_in_channels(torchvision_resnet50(num_classes=num_classes), in_channels)


def resnet50_small(num_classes: int, in_channels: int) -> ResNet:
    """ResNet-50 for small images: a 3 x 3 stem with stride 1, no pooling; 23.71 M parameters at 100 classes."""
    model = torchvision_resnet50(num_classes=num_classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's others
    model.maxpool = nn.Identity()
    return model
