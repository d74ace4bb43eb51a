"""Measurements of a network while it trains: soft and global labels of mixed images, and embeddings in a plane."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.data import evaluation_chunks
from rlmix.classifier.evaluation.embeddings import class_distances
from rlmix.classifier.evaluation.network import PixelNetwork, predict
from rlmix.classifier.mixing import MixPolicy, one_hot
from rlmix.classifier.mixing.average import average
from rlmix.classifier.mixing.blend import blend_targets
from rlmix.classifier.mixing.targets import global_label, lamix_target
from rlmix.classifier.training.trainer import EVALUATION_BATCH, Trainer
from rlmix.experiments.runs.errors import RunError

TOP = 5  # largest entries of a soft target that are shown, as in the paper
BINS = 20  # bins of the labels' histograms, from 0 to the highest possible value


@dataclass(frozen=True, eq=False)
class MixedPairs:
    """Pairs of development images of two different classes, mixed as LaMix mixes, and their labels.

    Attributes:
        pixels: `[3, N, C, H, W]` in [0, 255]: the first images, the mixed ones, the second images.
        classes: `[2, N]`, the true classes of first and second images.
        lam: `[N]` in [0, 1], weight of the first image's label.
        global_label: `[N, K]`, `p` (eq. 9).
        soft_label: `[N, K]`, `beta y_lam + (1 - beta) p` (eq. 10).
    """

    pixels: Tensor
    classes: Tensor
    lam: Tensor
    global_label: Tensor
    soft_label: Tensor


def mixed_pairs(trainer: Trainer, policy: MixPolicy, count: int) -> MixedPairs:
    """Mix neighbours among the first development images; the network, in evaluation mode, gives their labels.

    Args:
        trainer: Trainer whose network has the second head.
        policy: policy with β, and with the distribution that λ is drawn from for every pair.
        count: maximum number of pairs.
    """
    images, labels = _development(trainer, 3 * count)  # with 10 classes, those of about 9 in 10 pairs differ
    images, labels = (tensor[: len(labels) // 2 * 2].unflatten(0, (-1, 2)) for tensor in (images, labels))
    chosen = (labels[:, 0] != labels[:, 1]).nonzero()[:count, 0]
    first, second = images[chosen].float().unbind(1)
    classes = labels[chosen].T
    both, pairs = torch.cat((first, second)), len(chosen)
    partner = torch.arange(2 * pairs, device=both.device).roll(pairs)
    generator = torch.Generator().manual_seed(trainer.seed)
    draws = torch.rand(pairs, generator=generator, dtype=torch.float64).tolist()
    lam = torch.tensor([policy.lam.quantile(draw) for draw in draws], device=both.device)
    targets = one_hot(classes.flatten(), trainer.num_classes)
    local = blend_targets(targets, partner, lam.repeat(2)[:, None])[:pairs]
    mixed = average(both, targets, partner=partner, lam=0.5)[0][:pairs]
    chunks = zip(mixed.split(EVALUATION_BATCH), classes[0].split(EVALUATION_BATCH), strict=True)
    global_logits = predict(_network(trainer), chunks).logits.chunk(2, dim=1)[1]
    return MixedPairs(
        torch.stack((first, mixed, second)),
        classes,
        lam,
        global_label(global_logits),
        lamix_target(local, global_logits, policy.label_beta),
    )


def look_at_targets(trainer: Trainer, policy: MixPolicy, count: int) -> dict[str, Any]:
    """Return the largest entries of soft targets, and the images that they belong to."""
    pairs = mixed_pairs(trainer, policy, count)
    names = trainer.data.class_names
    top = pairs.soft_label.topk(min(TOP, trainer.num_classes), dim=1)
    return {
        "pairs": [
            {
                "pixels": pairs.pixels[:, number].round().byte().tolist(),
                "classes": [names[index] for index in pairs.classes[:, number].tolist()],
                "lam": float(pairs.lam[number]),
                "top": [
                    [names[index], weight]
                    for weight, index in zip(top.values[number].tolist(), top.indices[number].tolist(), strict=True)
                ],
            }
            for number in range(len(pairs.lam))
        ]
    }


def look_at_labels(trainer: Trainer, policy: MixPolicy, count: int) -> dict[str, Any]:
    """Return histograms and means of soft and global labels at the two true classes, and at all others."""
    pairs = mixed_pairs(trainer, policy, count)
    true = one_hot(pairs.classes.flatten(), trainer.num_classes).unflatten(0, (2, -1)).sum(dim=0).bool()
    highest = math.e / (math.e + trainer.num_classes - 1)  # of a class in the global label
    result: dict[str, Any] = {"histograms": {}, "means": {}}
    for kind, label, end in (("soft", pairs.soft_label, 1), ("global", pairs.global_label, highest)):
        for place, values in (("true", label[true]), ("other", label[~true])):
            # On the host: histc on a GPU is not deterministic.
            result["histograms"][f"{kind}_{place}"] = values.cpu().clamp(max=end).histc(BINS, 0, end).long().tolist()
            result["means"][f"{kind}_{place}"] = float(values.mean())
    return result


def look_at_embedding(trainer: Trainer, policy: MixPolicy, count: int) -> dict[str, Any]:
    """Return the embeddings of development images in the plane, and the spread of their classes."""
    images, labels = _development(trainer, count)
    chunks = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    embeddings = predict(_network(trainer), chunks).embeddings
    if embeddings.shape[1] != 2:
        raise RunError(
            f"--model must have an embedding of 2 units, as search_bottleneck has, got {embeddings.shape[1]}"
        )
    drawn = len(labels) // 2
    return {
        "embeddings": [[round(value, 3) for value in row] for row in embeddings[:drawn].tolist()],
        "labels": labels[:drawn].tolist(),
        "spread": class_distances(embeddings, labels).ratio,
    }


LOOKS: dict[str, Callable[[Trainer, MixPolicy, int], dict[str, Any]]] = {
    "targets": look_at_targets,
    "labels": look_at_labels,
    "embedding": look_at_embedding,
}


def _development(trainer: Trainer, count: int) -> tuple[Tensor, Tensor]:
    """Return the first development images, at most `count`, uint8 on the device, and their labels."""
    part = trainer.data.development
    chunks = evaluation_chunks(
        part,
        count=min(count, len(part)),
        batch_size=EVALUATION_BATCH,
        device=trainer.device,
        workers=trainer.config.readers,
    )
    images, labels = zip(*chunks, strict=True)
    return torch.cat(images), torch.cat(labels)


def _network(trainer: Trainer) -> PixelNetwork:
    """Return a copy of the network with its second head; the training continues with the original."""
    data = trainer.data
    network = PixelNetwork(copy.deepcopy(trainer.model), last_layer=trainer.head_layer, mean=data.mean, std=data.std)
    return network.to(trainer.device)
