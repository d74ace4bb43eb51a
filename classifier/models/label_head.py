"""LaMix's second head: a linear layer on the embedding that the classifier's own last layer reads."""

import torch
from torch import Tensor, nn


class LabelHead(nn.Module):
    """The classifier's last layer and, beside it on the same embedding, the global-label head `W_t` (LaMix, eq. 9)."""

    def __init__(self, local: nn.Linear) -> None:
        super().__init__()
        self.local = local
        self.global_label = nn.Linear(local.in_features, local.out_features)

    def forward(self, embedding: Tensor) -> Tensor:
        """Embedding `[..., D]` to local and global logits side by side, `[..., 2 K]`."""
        return torch.cat((self.local(embedding), self.global_label(embedding)), dim=-1)


def attach_label_head(
    model: nn.Module, *, num_classes: int, image_shape: tuple[int, int, int], embedding: str | None = None
) -> str:
    """Replace the model's last linear layer by a `LabelHead`, in place, so that it returns `[B, 2 K]`.

    Args:
        model: maps `[B, C, H, W]` to logits `[B, K]`.
        num_classes: K.
        image_shape: (C, H, W) of an image the model accepts.
        embedding: name of the last linear layer, as in `model.named_modules()`; none = found by a trial forward pass.

    Returns:
        The layer's name.

    Raises:
        ValueError: no such layer; the message says how to name it.
    """
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes and name
    }
    if embedding is not None:
        if embedding not in layers:
            raise ValueError(
                f"--embedding must name a linear layer with {num_classes} outputs, got {embedding!r}; "
                f"the model has {', '.join(layers) or 'none'}"
            )
        name = embedding
    else:
        name = _find_last_layer(model, layers, image_shape)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, LabelHead(layers[name]))
    return name


def without_label_head(state: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    """The state of the network as its author wrote it: `layer` back under its own name, the second head left out.

    Args:
        state: `model.state_dict()` of a model that `attach_label_head` changed.
        layer: what `attach_label_head` returned.
    """
    own = f"{layer}.local."
    return {
        name.replace(own, f"{layer}.", 1) if name.startswith(own) else name: tensor
        for name, tensor in state.items()
        if not name.startswith(f"{layer}.global_label.")
    }


def _find_last_layer(model: nn.Module, layers: dict[str, nn.Linear], image_shape: tuple[int, int, int]) -> str:
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _module, _inputs, output, name=name: outputs.update({name: output}))
        for name, layer in layers.items()
    ]
    training = model.training
    # Not zeros: through layers without biases they stay zeros, and every layer's output looks like the last one's.
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = model.eval()(images)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    for name, output in outputs.items():
        if isinstance(logits, Tensor) and output.shape == logits.shape and torch.equal(output, logits):
            return name
    raise ValueError(
        "the model's output is not the output of one of its linear layers, so its embedding was not found; "
        f"name the layer by --embedding (linear layers of the right size: {', '.join(layers) or 'none'})"
    )
