"""LaMix's second head: another last layer on the embedding that the classifier's own last layer reads."""

import torch
from torch import Tensor, nn

from rlmix.classifier.errors import InputError


class LabelHead(nn.Module):
    """The classifier's last layer and, beside it on the same embedding, the global-label head `W_t` (LaMix, eq. 9)."""

    def __init__(self, local: nn.Linear | nn.Conv2d) -> None:
        super().__init__()
        self.local = local
        self.global_label: nn.Linear | nn.Conv2d
        if isinstance(local, nn.Linear):
            self.class_dim = -1
            self.global_label = nn.Linear(local.in_features, local.out_features)
        else:
            self.class_dim = 1
            self.global_label = nn.Conv2d(local.in_channels, local.out_channels, 1)

    def forward(self, embedding: Tensor) -> Tensor:
        """Return local, then global logits, `[..., 2 K]`, of embeddings `[..., D]`; a convolution's in dimension 1."""
        return torch.cat((self.local(embedding), self.global_label(embedding)), dim=self.class_dim)


def attach_label_head(
    model: nn.Module, *, num_classes: int, image_shape: tuple[int, int, int], embedding: str | None = None
) -> str:
    """Replace the model's last layer, linear or a 1 x 1 convolution, by a `LabelHead`, so that it returns `[B, 2 K]`.

    In place. The first K logits stay what they were.

    Args:
        model: maps `[B, C, H, W]` to logits `[B, K]`, or, in another shape, to the values of its last layer.
        num_classes: K.
        image_shape: (C, H, W) of an image the model accepts.
        embedding: name of the last layer, as in `model.named_modules()`; optional, defaults to the one that a trial
            forward pass finds.

    Returns:
        The layer's name.

    Raises:
        ValueError: no such layer (the message says how to name it), or the model does not take such images.
    """
    name = find_last_layer(model, num_classes=num_classes, image_shape=image_shape, embedding=embedding)
    local = model.get_submodule(name)
    assert isinstance(local, nn.Linear | nn.Conv2d)
    _replace(model, name, LabelHead(local))
    if embedding is not None:
        _require_both(model, name, local, num_classes, image_shape)
    return name


def find_last_layer(
    model: nn.Module, *, num_classes: int, image_shape: tuple[int, int, int], embedding: str | None = None
) -> str:
    """Return the name of the layer, linear or a 1 x 1 convolution, whose outputs are the logits.

    Args:
        model: maps `[B, C, H, W]` to logits `[B, K]`, or, in another shape, to the values of its last layer.
        num_classes: K.
        image_shape: (C, H, W) of an image the model accepts.
        embedding: the name, as in `model.named_modules()`, if it is known; optional, defaults to the one that a trial
            forward pass finds.

    Raises:
        ValueError: no such layer (the message says how to name it), or the model does not take such images.
    """
    layers = {name: module for name, module in model.named_modules() if name and _may_be_last(module, num_classes)}
    if embedding is None:
        return _find_by_trial(model, layers, num_classes, image_shape)
    if embedding not in layers:
        raise InputError(
            f"--embedding must name a linear layer with {num_classes} outputs (or a 1 x 1 convolution), "
            f"got {embedding!r}; the model has {', '.join(layers) or 'none'}"
        )
    return embedding


def without_label_head(state: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    """Return the state of the network as its author wrote it: `layer` under its own name, without the second head.

    Args:
        state: `model.state_dict()` of a model that `attach_label_head` changed.
        layer: name that `attach_label_head` returned.
    """
    own = f"{layer}.local."
    return {
        name.replace(own, f"{layer}.", 1) if name.startswith(own) else name: tensor
        for name, tensor in state.items()
        if not name.startswith(f"{layer}.global_label.")
    }


def _may_be_last(module: nn.Module, num_classes: int) -> bool:
    if isinstance(module, nn.Conv2d):
        return (
            module.out_channels == num_classes
            and module.kernel_size == module.stride == (1, 1)
            and module.padding in ((0, 0), "valid", "same")
            and module.groups == 1
        )
    return isinstance(module, nn.Linear) and module.out_features == num_classes


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, layer)


def _trial(model: nn.Module, image_shape: tuple[int, int, int]) -> Tensor:
    """Return the model's output for two images, in evaluation mode."""
    training = model.training
    # Not zeros: through layers without biases they stay zeros, and every layer's output looks like the last one's.
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = model.eval()(images)
    except Exception as error:  # whatever any network may raise where an image is too small for it
        channels, height, width = image_shape
        raise InputError(
            f"{type(model).__name__} fails on images of {channels} channels and {height} x {width} pixels "
            f"({type(error).__name__}: {error}); choose another network or other images"
        ) from error
    finally:
        model.train(training)
    if not isinstance(logits, Tensor):
        raise InputError(f"{type(model).__name__} must return logits as one tensor, got {type(logits).__name__}")
    return logits


def _require_both(
    model: nn.Module, name: str, local: nn.Module, num_classes: int, image_shape: tuple[int, int, int]
) -> None:
    """Put the layer back and raise a ValueError unless the model now returns `[B, 2 K]`."""
    cause: ValueError | None = None
    try:
        shape = list(_trial(model, image_shape).shape)
        if shape == [2, 2 * num_classes]:
            return
        found = f"two images give {shape} instead of {[2, 2 * num_classes]}"
    except ValueError as error:
        cause, found = error, str(error)
    _replace(model, name, local)
    raise InputError(
        "--embedding must name the one layer whose outputs become the logits; "
        f"with twice the outputs of {name!r}, {found}"
    ) from cause


def _find_by_trial(
    model: nn.Module, layers: dict[str, nn.Module], num_classes: int, image_shape: tuple[int, int, int]
) -> str:
    outputs: list[tuple[str, Tensor]] = []

    def keep(name: str, output: Tensor) -> None:
        if output.numel() == 2 * num_classes:
            outputs.append((name, output.clone()))  # a copy: an activation in place may follow

    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, layer in layers.items()
    ]
    try:
        logits = _trial(model, image_shape)
    finally:
        for hook in hooks:
            hook.remove()
    if logits.shape != (2, num_classes):
        raise InputError(
            f"{type(model).__name__} must map two images to logits of shape {[2, num_classes]}, "
            f"got {list(logits.shape)}"
        )
    # The last one of those with the logits' values: weights may start at zero, and layers before it be zero, too.
    for name, output in reversed(outputs):
        if torch.allclose(output.reshape_as(logits), logits, equal_nan=True):
            return name
    raise InputError(
        "the model's output is not the output of one of its linear layers, so its embedding was not found; "
        f"name the layer by --embedding (linear layers and 1 x 1 convolutions of the right size: "
        f"{', '.join(layers) or 'none'})"
    )
