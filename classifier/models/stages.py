"""Hidden states of a network, for Manifold Mixup (Verma et al. 2019), https://arxiv.org/abs/1806.05236."""

from torch import nn

from rlmix.classifier.errors import InputError
from rlmix.classifier.models.convnet import ConvNet
from rlmix.classifier.models.lenet import LeNet
from rlmix.classifier.models.preact_resnet import PreActResNet
from rlmix.classifier.models.resnext import ResNeXt
from rlmix.classifier.models.small import PlainNet
from rlmix.classifier.models.wide_resnet import WideResNet

# Names of the libraries' ResNet classes: neither library needs to be installed or imported for the check.
RESNETS = {("torchvision.models.resnet", "ResNet"), ("timm.models.resnet", "ResNet")}


def hidden_stages(model: nn.Module) -> list[nn.Module]:
    """Return the modules whose outputs are the hidden states after the first and after the second stage.

    They are the network's own modules, to put a forward hook on, before or after `attach_label_head`.

    Args:
        model: one of this project's networks with `stages`, or a ResNet of torchvision or timm.

    Raises:
        ValueError: it is of another family.
    """
    if isinstance(model, (PreActResNet, WideResNet, ResNeXt, LeNet, ConvNet, PlainNet)):
        return list(model.stages[:2])
    if RESNETS & {(base.__module__, base.__qualname__) for base in type(model).__mro__}:
        return [model.get_submodule("layer1"), model.get_submodule("layer2")]
    raise InputError(
        "Manifold Mixup knows the stages of PreAct ResNet, Wide ResNet, ResNeXt, LeNet, ConvNet and PlainNet of this "
        f"project and of the ResNets of torchvision and timm, not of {type(model).__name__}; choose one of these or "
        "another method"
    )
