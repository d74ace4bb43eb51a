"""Networks by name: maps (number of classes, image channels) to a module that returns logits."""

import importlib
from collections.abc import Callable

from torch import nn

from classifier.models.label_head import attach_label_head, without_label_head
from classifier.models.preact_resnet import PreActResNet, preact_resnet18, search_network

MODELS: dict[str, Callable[[int, int], nn.Module]] = {
    "search": search_network,
    "preact_resnet18": preact_resnet18,
}


def build_model(name: str, *, num_classes: int, in_channels: int) -> nn.Module:
    """A new network with random weights, on the CPU.

    Args:
        name: one of `MODELS`, or `package.module:function` for one's own `function(num_classes, in_channels)`.
        num_classes: length of the logits.
        in_channels: channels of the images.

    Raises:
        ValueError: the name is not known, cannot be imported, or does not build a module.
    """
    factory = MODELS.get(name) or _import_factory(name)
    model = factory(num_classes, in_channels)
    if not isinstance(model, nn.Module):
        raise ValueError(f"{name} must return a torch.nn.Module, got {type(model).__name__}")
    return model


def _import_factory(name: str) -> Callable[[int, int], nn.Module]:
    module_name, colon, function = name.partition(":")
    if not colon:
        raise ValueError(
            f"unknown model {name!r}: expected one of {', '.join(MODELS)}, or package.module:function for your own"
        )
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if not callable(factory):
        raise ValueError(f"model {name!r} must be a function(num_classes, in_channels), got {type(factory).__name__}")
    return factory


__all__ = [
    "MODELS",
    "PreActResNet",
    "attach_label_head",
    "build_model",
    "preact_resnet18",
    "search_network",
    "without_label_head",
]
