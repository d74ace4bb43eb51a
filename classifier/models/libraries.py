"""Classifiers of torchvision and timm by name, with new weights; nothing is downloaded.

Both are imported where they are used: timm is an optional extra, and importing torchvision takes a second.
"""

from typing import Any

from torch import nn

from rlmix.classifier.errors import InputError, near_matches
from rlmix.classifier.models.channels import set_in_channels

# Builders' arguments by the module they are in. With auxiliary heads these two return a tuple while they train, and
# they warn unless told that their own initialisation, which takes its time, is meant.
TORCHVISION_ARGUMENTS: dict[str, dict[str, Any]] = {
    "inception": {"aux_logits": False, "init_weights": True},
    "googlenet": {"aux_logits": False, "init_weights": True},
}


def torchvision_model(
    name: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None = None
) -> nn.Module:
    """Return a classifier of `torchvision.models`, e.g. `resnet50`.

    Args:
        name: as in `torchvision.models.list_models(torchvision.models)`.
        num_classes: length of the logits.
        in_channels: channels of the images; other than 3, the first convolution is a new one.
        image_size: (H, W) for networks built for one size (vision transformers); defaults to the published one.

    Raises:
        ValueError: no such classifier, or not for these images.
    """
    import torchvision.models

    classifiers = torchvision_classifiers()
    if name not in classifiers:
        if name in torchvision.models.list_models():
            raise InputError(f"torchvision's {name} is not an image classifier that can be trained from scratch here")
        raise InputError(f"torchvision has no classifier {name!r}{near_matches(name, classifiers)}")
    family = torchvision.models.get_model_builder(name).__module__.rpartition(".")[2]
    arguments = TORCHVISION_ARGUMENTS.get(family, {})
    if image_size is not None and family == "vision_transformer":
        height, width = image_size
        if height != width:
            raise InputError(f"torchvision's {name} takes square images, got {height} x {width}")
        arguments = {"image_size": height}
    elif image_size is not None and family == "maxvit":
        arguments = {"input_size": image_size}
    try:
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    except (AssertionError, ValueError) as error:
        raise InputError(f"torchvision's {name} cannot be built for images of {image_size} pixels: {error}") from error
    return set_in_channels(model, in_channels)


def timm_model(name: str, num_classes: int, in_channels: int, image_size: tuple[int, int] | None = None) -> nn.Module:
    """Return a classifier of timm, e.g. `resnet50d`.

    Args:
        name: as in `timm.list_models()`.
        num_classes: length of the logits.
        in_channels: channels of the images.
        image_size: (H, W) for networks built for one size (vision transformers); defaults to the published one.

    Raises:
        ValueError: timm is not installed, has no such network, or cannot build it for these images.
    """
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"timm/{name} needs timm, which is not installed: pip install 'timm>=1.0' (or rl-mix[timm])"
        ) from error
    if not timm.is_model(name):
        raise InputError(f"timm has no network {name!r}{near_matches(name, timm.list_models())}")
    arguments: dict[str, Any] = {}
    published = timm.get_pretrained_cfg(name)
    if image_size is not None and published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    try:
        return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **arguments)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"timm's {name} cannot be built for {num_classes} classes, {in_channels} channels and images of "
            f"{image_size or 'its own size'}: {error}"
        ) from error


def torchvision_classifiers() -> list[str]:
    """Return the names of torchvision's image classifiers, without quantised ones."""
    import torchvision.models

    return torchvision.models.list_models(torchvision.models)
