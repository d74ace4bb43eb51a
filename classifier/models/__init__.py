"""Networks by name: maps (number of classes, image channels) to a module that returns logits."""

import importlib
from collections.abc import Callable

from torch import nn

from rlmix.classifier.errors import InputError, near_matches
from rlmix.classifier.models.convnet import ConvNet
from rlmix.classifier.models.densenet import densenet121, densenet121_small
from rlmix.classifier.models.label_head import attach_label_head, find_last_layer, without_label_head
from rlmix.classifier.models.lenet import lenet
from rlmix.classifier.models.libraries import timm_model, torchvision_classifiers, torchvision_model
from rlmix.classifier.models.preact_resnet import (
    PreActResNet,
    preact_resnet18,
    preact_resnet18_quarter,
    search_bottleneck,
    search_network,
    search_wide,
)
from rlmix.classifier.models.resnet import resnet50, resnet50_small
from rlmix.classifier.models.resnext import resnext29_4_24
from rlmix.classifier.models.small import SMALL_NETWORKS
from rlmix.classifier.models.stages import hidden_stages
from rlmix.classifier.models.wide_resnet import wrn_16_8, wrn_28_10

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "search": search_network,
    "search_wide": search_wide,
    "search_bottleneck": search_bottleneck,
    "lenet": lenet,
    "convnet": ConvNet,
    "preact_resnet18": preact_resnet18,
    "preact_resnet18_quarter": preact_resnet18_quarter,
    "resnet50_small": resnet50_small,
    "resnet50": resnet50,
    "resnext29_4_24": resnext29_4_24,
    "wrn_16_8": wrn_16_8,
    "wrn_28_10": wrn_28_10,
    "densenet121_small": densenet121_small,
    "densenet121": densenet121,
}
# Libraries whose image classifiers are available as `library/name`.
LIBRARIES = {"torchvision": torchvision_model, "timm": timm_model}


def build_model(
    name: str, *, num_classes: int, in_channels: int, image_size: tuple[int, int] | None = None
) -> nn.Module:
    """Return a new network with random weights, on the CPU.

    Args:
        name: one of `MODELS` or of `SMALL_NETWORKS`; `torchvision/name` or `timm/name` for a classifier of these
            libraries; or `package.module:function` for one's own `function(num_classes, in_channels)`.
        num_classes: length of the logits.
        in_channels: channels of the images.
        image_size: (H, W) of the images; only a library's networks for one size (vision transformers) are built for
            it, by default for the size they were published with. All others take any size that they do not shrink away.

    Raises:
        ValueError: the name is not known, cannot be imported, or does not build a module.
    """
    library, slash, library_name = name.partition("/")
    if slash and library in LIBRARIES:
        return LIBRARIES[library](library_name, num_classes, in_channels, image_size)
    factory = MODELS.get(name) or SMALL_NETWORKS.get(name) or _import_factory(name)
    model = factory(num_classes, in_channels)
    if not isinstance(model, nn.Module):
        raise InputError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _import_factory(name: str) -> Callable[[int, int], nn.Module]:
    module_name, colon, function = name.partition(":")
    if not colon:
        raise InputError(
            f"unknown model {name!r}: expected one of {', '.join(MODELS)}, a small one ({', '.join(SMALL_NETWORKS)}), "
            f"torchvision/NAME, timm/NAME, or package.module:function for your own{_suggestion(name)}"
        )
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"model {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if not callable(factory):
        raise InputError(f"model {name!r} must be a function(num_classes, in_channels), got {type(factory).__name__}")
    return factory


def _suggestion(name: str) -> str:
    if name in (theirs := torchvision_classifiers()):
        return f"; did you mean torchvision/{name}?"
    library = {one: f"torchvision/{one}" for one in theirs if one not in MODELS}
    return near_matches(name, [*MODELS, *SMALL_NETWORKS, *library], library)


__all__ = [
    "MODELS",
    "SMALL_NETWORKS",
    "PreActResNet",
    "attach_label_head",
    "build_model",
    "find_last_layer",
    "hidden_stages",
    "preact_resnet18",
    "preact_resnet18_quarter",
    "search_bottleneck",
    "search_network",
    "search_wide",
    "without_label_head",
]
