"""Schedules as timm's arguments and torchvision's transforms, where these can say the same.

Both draw a method for each batch at random where RL-Mix interleaves the methods evenly; timm mixes each image with the
one at the mirrored place of the batch. The shares, the distribution of λ and the targets are those of the policy.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing.policy import MixPolicy
from rlmix.classifier.mixing.schedule import PolicySchedule

METHODS_OF_BOTH = ("clean", "mixup", "cutmix")


def timm_arguments(schedule: PolicySchedule, *, num_classes: int, epochs: int) -> dict[str, Any]:
    """Return a schedule as arguments of `timm.data.Mixup`, and the epoch at which it is switched off.

    Args:
        schedule: one policy, or one that is followed by clean training with the same label smoothing.
        num_classes: number of classes.
        epochs: length of the training.

    Returns:
        Arguments of `Mixup` and, under `mixup_off_epoch`, timm's option of that name; 0 leaves mixing on.

    Raises:
        InputError: timm has no such policy; the message says which part.
    """
    (until, policy), *rest = _merged(schedule)
    if rest and (len(rest) > 1 or set(rest[0][1].shares) != {"clean"}):
        raise InputError(
            f"timm knows one policy and then an epoch without mixing, got {len(schedule.segments)} segments; train "
            "with rlmix.RLMix instead"
        )
    if rest and rest[0][1].label_smoothing != policy.label_smoothing:
        raise InputError(
            f"timm keeps its label smoothing when mixing is switched off, got {policy.label_smoothing:g} and then "
            f"{rest[0][1].label_smoothing:g}; train with rlmix.RLMix instead"
        )
    alpha = _alpha(policy, "timm")
    mixup, cutmix = policy.shares.get("mixup", 0.0), policy.shares.get("cutmix", 0.0)
    return {
        "mixup_alpha": alpha if mixup else 0.0,
        "cutmix_alpha": alpha if cutmix else 0.0,
        "prob": mixup + cutmix,
        "switch_prob": cutmix / (mixup + cutmix) if mixup + cutmix else 0.0,
        "mode": "batch",
        "label_smoothing": policy.label_smoothing,
        "num_classes": num_classes,
        "mixup_off_epoch": max(round(until * epochs), 1) if rest else 0,
    }


def _merged(schedule: PolicySchedule) -> list[tuple[float, MixPolicy]]:
    """Return the segments of a schedule, neighbours with one policy as one."""
    merged: list[tuple[float, MixPolicy]] = []
    for until, policy in schedule.segments:
        if merged and merged[-1][1] == policy:
            merged.pop()
        merged.append((until, policy))
    return merged


def torchvision_transforms(schedule: PolicySchedule, *, num_classes: int) -> list[tuple[float, nn.Module]]:
    """Return a schedule as transforms of `torchvision.transforms.v2`, each with the progress until which it holds.

    A clean batch keeps its labels `[B]`; `cross_entropy` takes them and targets `[B, K]` alike.

    Args:
        schedule: policies of clean training, mixup and CutMix without label smoothing.
        num_classes: number of classes.

    Raises:
        InputError: torchvision has no such policy; the message says which part.
    """
    from torchvision.transforms import v2  # takes a second to import

    transforms: list[tuple[float, nn.Module]] = []
    for until, policy in _merged(schedule):
        alpha = _alpha(policy, "torchvision")
        if policy.label_smoothing:
            raise InputError(
                f"torchvision's transforms do not smooth labels, got {policy.label_smoothing:g}; export a policy "
                "without it and use CrossEntropyLoss(label_smoothing=...)"
            )
        made = {
            "clean": v2.Identity(),
            "mixup": v2.MixUp(alpha=alpha, num_classes=num_classes),
            "cutmix": v2.CutMix(alpha=alpha, num_classes=num_classes),
        }
        chosen = [made[method] for method in policy.shares]
        transforms.append((until, v2.RandomChoice(chosen, p=list(policy.shares.values()))))
    return transforms


def _alpha(policy: MixPolicy, library: str) -> float:
    """Return α of the policy's Beta(α, α).

    Raises:
        InputError: the library has no such policy.
    """
    others = [method for method in policy.shares if method not in METHODS_OF_BOTH]
    if others:
        raise InputError(
            f"{library} has mixup and CutMix alone, got {', '.join(others)}; train with rlmix.RLMix instead"
        )
    if policy.label_beta != 1:
        raise InputError(f"{library} has no global label, got β {policy.label_beta:g}; it needs LaMix's second head")
    if policy.lam.kind == "fixed" and set(policy.shares) != {"clean"}:
        raise InputError(f"{library} draws λ from Beta(α, α), got {policy.lam}; train with rlmix.RLMix instead")
    return policy.lam.parameter if policy.lam.kind == "beta" and policy.lam.parameter is not None else 1.0
