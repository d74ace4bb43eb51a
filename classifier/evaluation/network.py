"""A trained network as it is evaluated: pixels in, logits and embeddings out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from rlmix.classifier.errors import InputError
from rlmix.classifier.files import DamagedFileError
from rlmix.classifier.models import build_model, find_last_layer


class PixelNetwork(nn.Module):
    """A classifier in evaluation mode whose first layer is its normalisation, so that attacks act on pixels.

    Its parameters are constants: gradients flow to the pixels only.

    Args:
        model: maps normalised images `[B, C, H, W]` to logits `[B, K]`; put into evaluation mode.
        last_layer: name of the layer whose input is the embedding, as `find_last_layer` gives it.
        mean: mean of each channel of images scaled to [0, 1].
        std: standard deviation of each channel of images scaled to [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, *, last_layer: str, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.last_layer = last_layer
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits `[B, K]` of pixels `[B, C, H, W]` in [0, 1]."""
        return self.model((pixels - self.mean) / self.std)

    def embed(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `[B, K]` and embeddings `[B, D]`, the last layer's input, of `[B, C, H, W]` in [0, 1]."""
        seen: list[Tensor] = []
        layer = self.model.get_submodule(self.last_layer)
        hook = layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
        try:
            logits = self(pixels)
        finally:
            hook.remove()
        # A 1 x 1 convolution's outputs are averaged over the image, which is the same as averaging its input.
        embedding = seen[0].mean(dim=(2, 3)) if seen[0].ndim == 4 else seen[0]
        return logits, embedding.flatten(1)


@dataclass(frozen=True, eq=False)
class Predictions:
    """Outputs of a network for N images.

    Attributes:
        logits: `[N, K]`.
        embeddings: `[N, D]`.
        labels: `[N]`, the true classes.
    """

    logits: Tensor
    embeddings: Tensor
    labels: Tensor

    @property
    def right(self) -> NDArray[np.bool_]:
        """True for images whose predicted class is right, `[N]`."""
        return (self.logits.argmax(dim=1) == self.labels).cpu().numpy()


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the weights that a training has saved, on the CPU.

    Args:
        path: path of a `model.safetensors`.

    Raises:
        DamagedFileError: there is no such file, or it is not whole.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"{path}: expected a trained network's weights, got {error}") from None


def trained_network(
    weights: Mapping[str, Tensor],
    model: str,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    embedding: str | None = None,
) -> PixelNetwork:
    """Return a network with the weights of a training, on the CPU.

    Args:
        weights: weights of the network as its author wrote it, from `Trainer.network_state`.
        model: name of the network, as for `build_model`.
        num_classes: number of classes, K.
        image_shape: (C, H, W) of the images.
        mean: mean of each channel, in [0, 1], that they were normalised by.
        std: standard deviation of each channel, in [0, 1], that they were normalised by.
        embedding: name of the network's last layer; optional, defaults to the one found.

    Raises:
        ValueError: the weights are those of another network, or the network cannot be built.
    """
    channels, height, width = image_shape
    with torch.random.fork_rng(devices=[]):  # the weights that it draws are replaced
        network = build_model(model, num_classes=num_classes, in_channels=channels, image_size=(height, width))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"expected weights of {model} with {num_classes} classes, got those of another network: {error}"
        ) from None
    last_layer = find_last_layer(network, num_classes=num_classes, image_shape=image_shape, embedding=embedding)
    return PixelNetwork(network, last_layer=last_layer, mean=mean, std=std)


@torch.no_grad()
def predict(network: PixelNetwork, chunks: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """Run the network over images.

    Args:
        network: network on the images' device.
        chunks: images `[B, C, H, W]`, uint8, and labels `[B]`, at least one chunk.
    """
    parts = [(*network.embed(images / 255), labels) for images, labels in chunks]
    logits, embeddings, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Predictions(logits, embeddings, labels)
