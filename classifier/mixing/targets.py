"""Soft labels and their losses: one-hot, label smoothing, LaMix's global label, soft cross-entropies."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from rlmix.classifier.errors import InputError


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels `[B]` long in [0, num_classes) as float32 targets `[B, num_classes]`; `as_targets` checks them."""
    return torch.zeros(len(labels), num_classes, device=labels.device).scatter_(1, labels[:, None], 1.0)


def as_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels of any usual form as targets `[B, num_classes]`.

    Args:
        labels: labels `[B]`, whole numbers in [0, num_classes); or targets `[B, K]`, one-hot, multi-hot or soft, of
            any type of number. With one class, the single output of a yes-or-no network: `[B]` or `[B, 1]`, in [0, 1].
        num_classes: number of classes K.

    Raises:
        ValueError: the labels have another shape or are out of range.
    """
    if num_classes == 1 and labels.ndim == 1:
        labels = labels[:, None]
    if labels.ndim == 1 and not labels.is_floating_point():
        try:
            return one_hot(labels.long(), num_classes)
        except RuntimeError:
            # On the host alone: a device does not look at an index, or does so later.
            low, high = map(int, labels.aminmax())
            if 0 <= low <= high < num_classes:
                raise
            raise InputError(
                f"labels must be in [0, {num_classes - 1}] for {num_classes} classes, got {low} to {high}; "
                "pass the number of classes that the data have"
            ) from None
    if labels.ndim != 2 or labels.shape[1] != num_classes:
        column = labels.ndim == 2 and labels.shape[1] == 1
        advice = "labels.squeeze(1)" if column else "labels.long()" if labels.ndim == 1 else "one column for each class"
        raise InputError(
            f"expected labels [B], whole numbers, or targets [B, {num_classes}], got {tuple(labels.shape)} of "
            f"{labels.dtype}; pass {advice}"
        )
    return _full(labels) if labels.is_floating_point() else labels.float()


def smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    """Apply label smoothing: `(1 - e) y + e / K` (Szegedy et al. 2016, section 7).

    Args:
        targets: `[B, K]`, rows summing to 1; or `[B, 1]` in [0, 1], yes or no, which counts as two classes.
        label_smoothing: `e` in [0, 1]; 0 returns the targets themselves.
    """
    if not label_smoothing:
        return targets
    classes = targets.shape[1] if targets.shape[1] > 1 else 2
    return targets.lerp(targets.new_full((), 1.0 / classes), label_smoothing)


def global_label(global_logits: Tensor) -> Tensor:
    """Return LaMix's global soft label `p = softmax(sigmoid(W_t e))` (eq. 9); no class gets more than e / (e + K - 1).

    Args:
        global_logits: `[B, K]`, `W_t e` of the second head.
    """
    return global_logits.sigmoid().softmax(dim=1)


def lamix_target(local: Tensor, global_logits: Tensor, beta: Tensor | float, attached: Tensor | float = 1.0) -> Tensor:
    """Return LaMix's target `t = beta y_lam + (1 - beta) p` (eq. 10); gradients flow through `p` to the second head.

    Args:
        local: `[B, K]`, local soft label `y_lam`, rows summing to 1.
        global_logits: `[B, K]`, `W_t e` of the second head.
        beta: weight of the local label in [0, 1], a number or a 0-d tensor.
        attached: 1 lets the gradient through `p`, 0 does not (the detached ablation); a number or a 0-d tensor, so
            that a compiled step serves both.
    """
    label = global_label(global_logits)
    fixed = label.detach()
    return beta * local + (1 - beta) * (fixed + attached * (label - fixed))


def soft_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of `softmax(logits)` against soft targets, each `[B, K]`: one loss per image, `[B]`.

    A class that is masked by a logit of -inf adds nothing where its target is 0. Half precision is computed in float32.

    Args:
        logits: `[B, K]`, K at least 2.
        targets: `[B, K]`.
        weight: `[K]`, factor of each class, as in `torch.nn.CrossEntropyLoss`; optional, defaults to 1.

    Raises:
        ValueError: there is a single output, whose softmax is always 1.
    """
    if logits.shape[1] == 1:
        raise InputError("one output has no softmax, expected two or more; use soft_binary_cross_entropy")
    logits, targets = _full(logits), _full(targets)
    masked = logits.isneginf() & (targets == 0)
    terms = targets * logits.log_softmax(dim=1).masked_fill(masked, 0)
    return -(terms if weight is None else terms * weight).sum(dim=1)


def soft_binary_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the binary cross-entropy of `sigmoid(logits)` against soft targets: its mean over the classes, `[B]`.

    A logit of -inf adds nothing where its target is 0, nor one of inf where it is 1. Half precision is computed in
    float32.

    Args:
        logits: `[B, K]`; K may be 1.
        targets: `[B, K]`, each in [0, 1].
        weight: `[K]`, factor of each class; optional, defaults to 1.
    """
    logits, targets = _full(logits), _full(targets)
    sure = (logits.isneginf() & (targets == 0)) | (logits.isposinf() & (targets == 1))
    terms = binary_cross_entropy_with_logits(logits.masked_fill(sure, 0), targets, weight=weight, reduction="none")
    return terms.masked_fill(sure, 0).mean(dim=1)


def _full(values: Tensor) -> Tensor:
    """Return values of half precision as float32, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
