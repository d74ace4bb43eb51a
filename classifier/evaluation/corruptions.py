"""Accuracy on corrupted images: noise, blur, brightness, contrast and occlusion, each at five strengths.

Noise, brightness and contrast are those of ImageNet-C (Hendrycks and Dietterich 2019,
https://arxiv.org/abs/1903.12261). Its blur is for images of 224 pixels and grows with the image here; occlusion is
this project's own.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.evaluation.measure import Chart, Column, Measure, Result, Subject, percent
from rlmix.classifier.evaluation.network import PixelNetwork


def gaussian_noise(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Add independent normal noise of standard deviation `strength` to each pixel."""
    noise = torch.randn(pixels.shape, generator=generator).to(pixels.device)
    return pixels + strength * noise


def gaussian_blur(pixels: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    """Blur by a Gaussian kernel; `strength` is its standard deviation over the image's shorter side."""
    # Imported here because it takes seconds.
    from torchvision.transforms.v2 import functional

    sigma = strength * min(pixels.shape[-2:])
    # As far as three standard deviations, or as reflecting the border allows.
    reach = max(1, min(round(3 * sigma), min(pixels.shape[-2:]) - 1))
    return functional.gaussian_blur(pixels, kernel_size=[2 * reach + 1] * 2, sigma=[sigma] * 2)


def brightness(pixels: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    """Add `strength` to each pixel."""
    return pixels + strength


def contrast(pixels: Tensor, strength: float, _generator: torch.Generator) -> Tensor:
    """Multiply each pixel's distance to the mean of its image and channel by `strength`."""
    mean = pixels.mean(dim=(2, 3), keepdim=True)
    return mean + strength * (pixels - mean)


def occlusion(pixels: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Cover a square with grey, at a random place; `strength` is its side over the image's shorter side."""
    height, width = pixels.shape[-2:]
    side = round(strength * min(height, width))
    top = torch.randint(height - side + 1, (len(pixels), 1), generator=generator).to(pixels.device)
    left = torch.randint(width - side + 1, (len(pixels), 1), generator=generator).to(pixels.device)
    rows, columns = torch.arange(height, device=pixels.device), torch.arange(width, device=pixels.device)
    down = (rows >= top) & (rows < top + side)  # [B, H]
    across = (columns >= left) & (columns < left + side)  # [B, W]
    return torch.where((down[:, :, None] & across[:, None, :])[:, None], 0.5, pixels)


# Each with its five strengths, from the weakest to the strongest.
CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "blur": (gaussian_blur, (0.015, 0.025, 0.035, 0.05, 0.07)),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "occlusion": (occlusion, (0.2, 0.3, 0.4, 0.5, 0.6)),
}


def corrupt(pixels: Tensor, *, corruption: str, level: int, generator: torch.Generator) -> Tensor:
    """Corrupt images.

    Args:
        pixels: `[B, C, H, W]` in [0, 1].
        corruption: a key of `CORRUPTIONS`.
        level: strength, from 1 (weakest) to 5.
        generator: a CPU generator; the draws are the same on every device.

    Returns:
        `[B, C, H, W]` in [0, 1], a new tensor.
    """
    function, strengths = CORRUPTIONS[corruption]
    return function(pixels, strengths[level - 1], generator).clamp(0, 1)


@torch.no_grad()
def corrupted_accuracy(
    network: PixelNetwork, chunks: Iterable[tuple[Tensor, Tensor]], *, seed: int = 0
) -> dict[str, list[float]]:
    """Return the accuracy in [0, 1] under each corruption, from the weakest strength to the strongest.

    Args:
        network: network on the images' device.
        chunks: images `[B, C, H, W]`, uint8, and labels `[B]`, at least one chunk.
        seed: RNG seed for noise and the places of occlusion.
    """
    generator = torch.Generator().manual_seed(seed)
    places = [(name, level) for name, (_, strengths) in CORRUPTIONS.items() for level in range(1, len(strengths) + 1)]
    hits, count = [], 0
    for images, labels in chunks:
        count += len(labels)
        hits.append(
            torch.stack(
                [
                    network(corrupt(images / 255, corruption=name, level=level, generator=generator)).argmax(dim=1)
                    == labels
                    for name, level in places
                ]
            ).sum(dim=1)
        )
    shares = (torch.stack(hits).sum(dim=0) / count).tolist()
    accuracies: dict[str, list[float]] = {name: [] for name in CORRUPTIONS}
    for (name, _), share in zip(places, shares, strict=True):
        accuracies[name].append(share)
    return accuracies


def measure_corruptions(subject: Subject) -> dict[str, Any]:
    """Measure the accuracy under each corruption, from the weakest strength to the strongest, and the mean of all."""
    left = corrupted_accuracy(subject.network, subject.chunks(), seed=subject.seed)
    values = [value for row in left.values() for value in row]
    strengths = {name: list(levels) for name, (_, levels) in CORRUPTIONS.items()}
    return {"accuracy": left, "mean_accuracy": sum(values) / len(values), "strengths": strengths}


def _rows(result: Result) -> list[tuple[str, str]]:
    rows = [(f"accuracy under {name}, 5 strengths", percent(*left)) for name, left in result["accuracy"].items()]
    return [*rows, ("mean accuracy under corruptions", percent(result["mean_accuracy"]))]


def _by_strength(result: Result) -> list[Chart]:
    lines = {
        name: [(float(level), 100 * left) for level, left in enumerate(row, start=1)]
        for name, row in result["accuracy"].items()
    }
    return [Chart("Accuracy under corruptions", lines, "strength", "accuracy, %")]


UNDER_CORRUPTION = Measure(
    summary="mean accuracy over five corruptions at five strengths",
    run=measure_corruptions,
    rows=_rows,
    columns={"corruptions": Column(lambda result: result["mean_accuracy"])},
    charts=_by_strength,
)
