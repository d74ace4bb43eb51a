"""Accuracy under attack: FGSM (https://arxiv.org/abs/1412.6572) and PGD (https://arxiv.org/abs/1706.06083).

The attacks are torchattack's. Both know network and class, act on pixels in [0, 1] and stay within an L∞ ball: what
they leave of the accuracy is an upper bound of the network's robustness, and a loose one for networks whose gradient
vanishes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.evaluation.libraries import library
from rlmix.classifier.evaluation.measure import Column, Measure, Result, Subject, percent
from rlmix.classifier.evaluation.network import PixelNetwork

LIBRARY = "torchattack"
EPSILON = 8 / 255  # radius of the ball
PGD_STEP = 2 / 255
PGD_STEPS = 7

# torchattack's class and what it is given beyond radius, network and device
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "fgsm": ("FGSM", {}),
    "pgd": ("PGD", {"alpha": PGD_STEP, "steps": PGD_STEPS, "random_start": True}),
}


def adversarial(
    network: PixelNetwork, pixels: Tensor, labels: Tensor, *, attack: str, epsilon: float = EPSILON, seed: int = 0
) -> Tensor:
    """Return images as an attack changes them, by at most `epsilon` in each pixel.

    Args:
        network: the network that is attacked.
        pixels: `[B, C, H, W]` in [0, 1], on the network's device.
        labels: `[B]`, the classes whose loss is increased.
        attack: a key of `ATTACKS`.
        epsilon: radius of the L∞ ball, above 0.
        seed: RNG seed for PGD's random start.

    Returns:
        `[B, C, H, W]` in [0, 1].

    Raises:
        ImportError: torchattack is not installed.
    """
    name, options = ATTACKS[attack]
    kind: Callable[..., Any] = getattr(library(LIBRARY, "FGSM and PGD"), name)
    # In float32, 1 less the probability of a class that leads by 17 nats is 0, and its part of the gradient is lost:
    # sure networks would pass for robust ones. So the loss is taken in float64. It draws from the global generators.
    cuda = [pixels.device] if pixels.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        for device in cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        attacker = kind(lambda images: network(images).double(), device=pixels.device, eps=epsilon, **options)
        return attacker(pixels, labels).detach()


def attacked_accuracy(
    network: PixelNetwork, chunks: Iterable[tuple[Tensor, Tensor]], *, seed: int = 0
) -> dict[str, float]:
    """Return the accuracy in [0, 1] under each attack.

    Args:
        network: the network that is attacked.
        chunks: images `[B, C, H, W]`, uint8, and labels `[B]`, at least one chunk.
        seed: RNG seed for PGD's random starts.

    Raises:
        ImportError: torchattack is not installed.
    """
    hits = dict.fromkeys(ATTACKS, 0)
    count = 0
    for number, (images, labels) in enumerate(chunks):
        count += len(labels)
        for attack in ATTACKS:
            changed = adversarial(network, images / 255, labels, attack=attack, seed=(seed << 32) + number)
            with torch.no_grad():
                hits[attack] = hits[attack] + (network(changed).argmax(dim=1) == labels).sum()
    return {attack: float(number) / count for attack, number in hits.items()}


def measure_attacks(subject: Subject) -> dict[str, Any]:
    """Measure the accuracy under each attack."""
    left = attacked_accuracy(subject.network, subject.chunks(), seed=subject.seed)
    setting = {"norm": "Linf", "epsilon": EPSILON, "pgd_step": PGD_STEP, "pgd_steps": PGD_STEPS}
    return {"accuracy": left, "setting": setting}


def _rows(result: Result) -> list[tuple[str, str]]:
    return [(f"accuracy under {name.upper()}, L∞ 8/255", percent(left)) for name, left in result["accuracy"].items()]


UNDER_ATTACK = Measure(
    summary="accuracy under FGSM and PGD (L∞ 8/255)",
    run=measure_attacks,
    rows=_rows,
    columns={
        "FGSM": Column(lambda result: result["accuracy"]["fgsm"]),
        "PGD": Column(lambda result: result["accuracy"]["pgd"]),
    },
    modules=(LIBRARY,),
)
