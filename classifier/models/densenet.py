"""DenseNet-121: densely connected networks (Huang et al. 2017), https://arxiv.org/abs/1608.06993; torchvision's."""

from torch import nn

from rlmix.classifier.models.libraries import torchvision_model


def densenet121(num_classes: int, in_channels: int) -> nn.Module:
    """DenseNet-121 for ImageNet's sizes, from 29 pixels; 7.98 M parameters at 1000 classes."""
    return torchvision_model("densenet121", num_classes, in_channels)


def densenet121_small(num_classes: int, in_channels: int) -> nn.Module:
    """DenseNet-121 for small images: a 3 x 3 stem straight into the first block; 7.05 M parameters at 100 classes.

    The growth rate of 32 and the four blocks are ImageNet's, as in the collection of CIFAR networks behind the mixup
    authors' setting, which LaMix trains in.
    """
    model = torchvision_model("densenet121", num_classes, 3)
    stem = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight)  # as torchvision's others
    features = model.get_submodule("features")
    features.conv0 = stem
    # Every layer of a block starts with norm and ReLU of its own: the stem's would come twice.
    features.norm0, features.relu0, features.pool0 = nn.Identity(), nn.Identity(), nn.Identity()
    return model
