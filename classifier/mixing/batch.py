"""mix_batch: the one call for somebody's own training loop."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlmix.classifier.mixing.methods import METHODS, MixDraw, MixInput
from rlmix.classifier.mixing.policy import MixPolicy
from rlmix.classifier.mixing.targets import smooth


def mix_batch(
    images: Tensor,
    targets: Tensor,
    policy: MixPolicy,
    *,
    method: str,
    generator: torch.Generator,
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix one batch as `policy` says, with every random draw from `generator`.

    The global label (`policy.label_beta` below 1) needs the network's second head and is added by
    `classifier.mixing.targets.lamix_target` in the loss.

    Args:
        images: `[B, C, H, W]`, normalised as the network sees them.
        targets: `[B, K]`, rows summing to 1.
        policy: what to mix with.
        method: which of the policy's methods this batch gets: `Interleaver().next(policy.shares)`.
        generator: a CPU generator; the draws are the same on every device.
        gradient: maps (images, targets) to the input gradient, asked for by saliency methods only; see
            `classifier.mixing.saliency.input_gradient`.
        mean: `[C]`, what the images were normalised by (colours in [0, 1]); asked for by methods that look at colours
            (Puzzle Mix, SaliencyMix).
        std: `[C]`, likewise.

    Raises:
        ValueError: shapes do not fit, the method is not known, needs what it was not given, or mixes hidden states.
    """
    if images.ndim != 4 or targets.ndim != 2 or len(images) != len(targets):
        raise ValueError(
            "expected images [B, C, H, W] and targets [B, K] with the same B, "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}; labels become targets by one_hot"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if METHODS[method].stage is not None:
        raise ValueError(
            f"{method} mixes hidden states, which mix_batch does not see; blend the targets and run the forward pass "
            "inside classifier.mixing.manifold.mixed_stage"
        )
    smoothed = smooth(targets, policy.label_smoothing)
    draw = MixDraw.sample(len(images), generator=generator, device=images.device)
    wanted = gradient if METHODS[method].needs_gradient else None
    found = None if wanted is None else wanted(images, smoothed)
    return METHODS[method].mix(MixInput(images, smoothed, found, mean, std), policy, draw)
