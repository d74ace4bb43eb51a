"""Mixed images of a report: training images as policies mix them, with targets and saliency."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rlmix.classifier.data import Splits, evaluation_chunks, normalise
from rlmix.classifier.mixing import METHODS, MixPolicy, one_hot
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.saliency import input_gradient, pixel_saliency
from rlmix.classifier.mixing.targets import smooth, soft_cross_entropy
from rlmix.experiments.reports.html_report import Example, Examples, png_uri

EXAMPLES = 4
LAM_QUANTILE = 0.35
MIN_TARGET = 0.005  # smaller shares would read "0 %"

Gradient = Callable[[Tensor, Tensor], Tensor]


def mixed_examples(
    rows: Iterable[tuple[str, str, MixPolicy]],
    data: Splits,
    gradient: Gradient,
    device: torch.device,
    *,
    clean: bool = False,
) -> Iterator[Examples]:
    """Mix training images, of as many classes as there are and each with one of another class, by each row's policy.

    Args:
        rows: method, heading and policy of each row.
        data: the images.
        gradient: gradient of the loss by images `[B, C, H, W]` and targets `[B, K]`.
        device: device of the gradient's network.
        clean: whether unmixed images get a row too.
    """
    mean, std = (torch.tensor(values, device=device) for values in (data.mean, data.std))
    chosen = _over_the_classes(data.train.labels.cpu().numpy())[: 2 * EXAMPLES]
    count = len(chosen)
    chunks = evaluation_chunks(data.train.take(chosen), count=count, batch_size=count, device=device, workers=0)
    pixels, labels = next(chunks)
    images, targets = normalise(pixels, mean, std), one_hot(labels, data.num_classes)
    draw = MixDraw.sample(count, generator=torch.Generator().manual_seed(0), device=device)
    # Of two classes, by a λ that lets both be seen.
    draw = replace(draw, partner=_of_another_class(labels), lam_quantile=LAM_QUANTILE)
    for method, heading, policy in rows:
        # Mixed hidden states are not images, and unmixed images are only shown on request.
        if (method == "clean" and not clean) or METHODS[method].stage is not None:
            continue
        smoothed = smooth(targets, policy.label_smoothing)
        at_images = gradient(images, smoothed) if METHODS[method].needs_gradient else None
        mixed, mixed_targets = policy.mix(method, MixInput(images, smoothed, at_images, mean, std), draw)
        saliency = pixel_saliency(gradient(mixed, mixed_targets))
        pixels = (mixed * std[:, None, None] + mean[:, None, None]).clamp(0, 1)
        yield Examples(
            heading,
            [
                _example(image, where, target, data.class_names)
                for image, where, target in zip(
                    pixels[:EXAMPLES].cpu(), saliency.cpu(), mixed_targets.cpu(), strict=False
                )
            ],
        )


def _of_another_class(labels: Tensor) -> Tensor:
    """Return the index of the next image of another class for each of labels `[B]`; its own where all are alike."""
    after = torch.arange(len(labels), device=labels.device)
    after = (after + after[:, None]) % len(labels)  # row i: i, i + 1 and so on, around
    differ = labels[after] != labels[:, None]
    return after.gather(1, differ.int().argmax(dim=1, keepdim=True))[:, 0]


def _over_the_classes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the positions of all images: the first of each class, then the second of each, and so on."""
    turn = np.zeros(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange((labels == label).sum())
    return np.argsort(turn, kind="stable")


def loss_gradient(model: nn.Module, num_classes: int) -> Gradient:
    """Return the gradient of a network's loss by its input, as a function of images and targets."""

    def gradient(images: Tensor, targets: Tensor) -> Tensor:
        def loss(leaf: Tensor) -> Tensor:
            return soft_cross_entropy(model(leaf)[:, :num_classes].float(), targets).mean()

        return input_gradient(loss, images, model)

    return gradient


def _example(image: Tensor, saliency: Tensor, target: Tensor, class_names: Sequence[str]) -> Example:
    shares, classes = target.topk(2)
    words = ", ".join(
        f"{100 * share:.0f} % {class_names[place]}"
        for share, place in zip(shares.tolist(), classes.tolist(), strict=True)
        if share > MIN_TARGET
    )
    lightness = (saliency / saliency.max().clamp(min=1e-12)).sqrt()[None]
    return Example(png_uri(image), png_uri(lightness), words)
