"""Loss of a loop of the user's own, and what an agent and a logger see of it."""

from __future__ import annotations

import torch
from torch import Tensor

from rlmix.agent.loop_checks import as_class_weights
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import soft_binary_cross_entropy, soft_cross_entropy
from rlmix.classifier.training.segment_sums import measure_update

LOSSES = {"cross_entropy": soft_cross_entropy, "binary_cross_entropy": soft_binary_cross_entropy}


class LoopLoss:
    """Mean loss of a batch.

    Args:
        name: a name of `LOSSES`; one output always takes the binary one.
        num_classes: number of classes K.
        class_weights: `[K]`, factor of each class, as numbers of any form; None for 1.

    Raises:
        InputError: there is no such loss, or the weights cannot be used.
    """

    def __init__(self, name: str, num_classes: int, class_weights: object) -> None:
        if name not in LOSSES:
            raise InputError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}; tell mix.note of any other")
        self._loss = LOSSES["binary_cross_entropy" if num_classes == 1 else name]
        self._class_weights = as_class_weights(class_weights, num_classes)

    def weighted(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss with class weights, 0-d, of logits and targets `[B, K]`."""
        if self._class_weights is not None:
            self._class_weights = self._class_weights.to(logits.device)
        return self._loss(logits, targets, self._class_weights).mean()

    def plain(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss without them."""
        return self._loss(logits, targets).mean()

    def measured(self, logits: Tensor, targets: Tensor, known: Tensor | None = None) -> Tensor:
        """Return an update's `measure_update`, whatever the loss, without a gradient.

        Class weights are left out: the targets' entropy is then the least that the loss can be.

        Args:
            logits: `[B, K]`.
            targets: `[B, K]`.
            known: result of `weighted`; it is not computed again where it is what is measured.
        """
        with torch.no_grad():
            logits, targets = logits.detach().float(), targets.float()
            if logits.shape[1] == 1:
                logits, targets = two_classes(logits, targets)
            elif self._loss is soft_binary_cross_entropy:
                targets = targets / targets.sum(dim=1, keepdim=True).clamp(min=1e-6)  # rows may hold several classes
            elif self._class_weights is None and known is not None and known.dtype == torch.float32:
                return measure_update(known, logits, targets)
            return measure_update(soft_cross_entropy(logits, targets).mean(), logits, targets)


def two_classes(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return one output and its target, `[B, 1]` each, as the two classes no and yes, `[B, 2]` each."""
    return torch.cat((torch.zeros_like(logits), logits), 1), torch.cat((1 - targets, targets), 1)
