"""Soft labels: one-hot, label smoothing, and LaMix's global label."""

import torch
from torch import Tensor


def one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """Return labels `[B]` long as float32 targets `[B, num_classes]`."""
    return torch.nn.functional.one_hot(labels, num_classes).float()


def smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    """Apply label smoothing: `(1 - e) y + e / K` (Szegedy et al. 2016, section 7).

    Args:
        targets: `[B, K]`, rows summing to 1.
        label_smoothing: `e` in [0, 1].
    """
    return targets.lerp(targets.new_full((), 1.0 / targets.shape[1]), label_smoothing)


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


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the cross-entropy of `softmax(logits)` against soft targets, each `[B, K]`: one loss per image, `[B]`.

    A class that is masked by a logit of -inf adds nothing where its target is 0.
    """
    masked = logits.isneginf() & (targets == 0)
    return -(targets * logits.log_softmax(dim=1).masked_fill(masked, 0)).sum(dim=1)
