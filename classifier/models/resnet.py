"""ResNet-50: deep residual learning (He et al. 2016), https://arxiv.org/abs/1512.03385; torchvision's, any channels."""

from torch import nn

from rlmix.classifier.models.libraries import torchvision_model


def resnet50(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-50 for ImageNet's sizes: a 7 x 7 stem with stride 2, then pooling; 25.56 M parameters at 1000 classes."""
    return torchvision_model("resnet50", num_classes, in_channels)


def resnet50_small(num_classes: int, in_channels: int) -> nn.Module:
    """ResNet-50 for small images: a 3 x 3 stem with stride 1, no pooling; 23.71 M parameters at 100 classes."""
    model = torchvision_model("resnet50", num_classes, 3)
    stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as torchvision's others
    model.conv1, model.maxpool = stem, nn.Identity()
    return model
