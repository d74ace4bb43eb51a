"""mix_batch: mixing for your own training loop."""

from collections.abc import Callable

import torch
from torch import Tensor

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.methods import METHODS
from rlmix.classifier.mixing.policy import MixPolicy
from rlmix.classifier.mixing.targets import as_targets, smooth


def require_float(images: Tensor) -> None:
    """Raise unless images are floating-point numbers.

    Raises:
        InputError: they are whole numbers, such as uint8.
    """
    if not images.is_floating_point():
        raise InputError(
            f"expected floating-point images, got {images.dtype}; convert them: images.float() / 255, then normalise"
        )


def mix_batch(
    images: Tensor,
    targets: Tensor,
    policy: MixPolicy,
    *,
    method: str,
    generator: torch.Generator,
    num_classes: int | None = None,
    gradient: Callable[[Tensor, Tensor], Tensor] | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mix one batch under `policy`, with every random draw from `generator`.

    The global label (`policy.label_beta` below 1) needs the network's second head and is added by
    `rlmix.classifier.mixing.targets.lamix_target` in the loss.

    Args:
        images: `[B, C, H, W]`, floating point, normalised as the network sees them.
        targets: `[B, K]`, one-hot or soft, of any type of number, rows summing to 1; or labels `[B]`, whole numbers in
            [0, num_classes).
        policy: mixing policy.
        method: the policy's method for this batch: `Interleaver().next(policy.shares)`.
        generator: a CPU generator; the draws are the same on every device.
        num_classes: number of classes K, where `targets` are labels.
        gradient: maps (images, targets) to the input gradient; called by saliency methods only, see
            `rlmix.classifier.mixing.saliency.input_gradient`.
        mean: `[C]`, mean of the colours in [0, 1] that the images were normalised by; read by methods that look at
            colours (Puzzle Mix, SaliencyMix).
        std: `[C]`, standard deviation of these colours.

    Returns:
        Mixed images `[B, C, H, W]` and targets `[B, K]`.

    Raises:
        ValueError: shapes or types do not fit, the method is not known, needs what it was not given, or mixes hidden
            states.
    """
    for name, given in (("images", images), ("targets", targets)):
        if not isinstance(given, Tensor):
            raise InputError(
                f"expected {name} as a tensor, got {type(given).__name__}; convert them: torch.as_tensor({name})"
            )
    require_float(images)
    if targets.ndim == 1 and not targets.is_floating_point():
        if num_classes is None:
            raise ValueError("expected num_classes beside labels [B], got none; pass num_classes, or targets [B, K]")
        targets = as_targets(targets, num_classes)
    if images.ndim != 4 or targets.ndim != 2 or len(images) != len(targets):
        raise ValueError(
            "expected images [B, C, H, W] and targets [B, K] or labels [B] with the same B, "
            f"got {tuple(images.shape)} and {tuple(targets.shape)}"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if METHODS[method].stage is not None:
        raise ValueError(
            f"{method} mixes hidden states, which mix_batch does not see; blend the targets and run the forward pass "
            "inside rlmix.classifier.mixing.manifold.mixed_stage"
        )
    smoothed = smooth(targets if targets.is_floating_point() else targets.float(), policy.label_smoothing)
    draw = MixDraw.sample(len(images), generator=generator, device=images.device)
    needed = gradient if METHODS[method].needs_gradient else None
    at_images = None if needed is None else needed(images, smoothed)
    return policy.mix(method, MixInput(images, smoothed, at_images, mean, std), draw)
