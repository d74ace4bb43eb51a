"""Networks written for colour images, for images of any number of channels."""

from typing import TypeVar

import torch
from torch import nn

from rlmix.classifier.errors import InputError

Model = TypeVar("Model", bound=nn.Module)


def set_in_channels(model: Model, in_channels: int) -> Model:
    """Let a new network's first convolution read `in_channels` channels where it reads three; in place.

    The new weights are normally distributed, with the variance that keeps the convolution's output at its scale.

    Args:
        model: a network for `[B, 3, H, W]`.
        in_channels: channels of the images.

    Returns:
        The same model.

    Raises:
        ValueError: it has no convolution over three channels.
    """
    if in_channels == 3:
        return model
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.groups == 1:
            break
    else:
        raise InputError(
            f"{type(model).__name__} has no convolution over 3 channels that could read {in_channels}; "
            "write a function(num_classes, in_channels) of your own and name it package.module:function"
        )
    with torch.no_grad():
        weight = module.weight.new_empty(module.out_channels, in_channels, *module.kernel_size).normal_()
        weight *= module.weight.std() * (3 / in_channels) ** 0.5
    module.weight = nn.Parameter(weight)
    module.in_channels = in_channels
    return model
