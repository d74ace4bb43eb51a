"""Measurements in a loop of the user's own, for the agent: losses, validation, learning rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlmix.agent.loop_checks import as_validation, fraction, non_negative, require_optimizer
from rlmix.agent.loop_loss import two_classes
from rlmix.classifier.errors import InputError
from rlmix.classifier.training.stats import EvalStats, evaluation_sums
from rlmix.envs.training_state import Setting
from rlmix.envs.transfer_features import SETTING_FEATURES

USUAL_PARAMETERS = 100_000  # of the networks in the trainings that agents learn from; where the network is not given


def evaluated(logits: Tensor | None, labels: Tensor | None, num_classes: int) -> EvalStats:
    """Return the performance on validation images.

    Args:
        logits: `[N, K]`; with one output also `[N]`.
        labels: `[N]`, whole numbers, or one-hot `[N, K]`; with one output yes or no.
        num_classes: K.

    Raises:
        InputError: one is missing, or they have another form.
    """
    with torch.no_grad():
        logits, targets = as_validation(logits, labels, num_classes)
        logits = logits.float()
        if num_classes == 1:
            logits, targets = two_classes(logits, targets)
        ones = torch.ones(len(logits), device=logits.device)
        sums, bins, _ = evaluation_sums(logits, targets.argmax(dim=1), ones)
        return EvalStats.from_sums(sums, bins, len(logits))


def not_given(values: Mapping[str, float | None]) -> dict[str, str]:
    """Return a warning, by name, where validation measures are None."""
    missing = ", ".join(name for name, value in values.items() if value is None)
    rest = "taken as in a calibrated network; observe(logits=..., labels=...) measures all"
    return {"validation": f"{missing} of validation not given: {rest}"} if missing else {}


def not_told(missing: str, batch: int) -> dict[str, str]:
    """Return a warning, by name, that `validation` or `training loss` is missing at the choice before a batch."""
    call = {
        "validation": "call mix.observe sooner, at the latest where mix.due is true",
        "training loss": "call mix.loss or mix.note after each batch",
    }[missing]
    return {missing: f"no {missing} was given before the choice at batch {batch}, so the one before holds; {call}"}


def not_noted(noted: int, *, calls: int) -> dict[str, str]:
    """Return a warning, by name, where the losses of at most half of the `calls` batches were noted."""
    if not noted:
        return {"loss": "no training loss was noted, so the agent does not see it; call mix.loss or mix.note"}
    if 2 * noted <= calls:
        once = "call mix once a batch, in training alone, and mix.loss or mix.note after it"
        return {"calls": f"of {calls} batches that were mixed, the losses of {noted} were noted; {once}"}
    return {}


def stated(
    accuracy: float | None,
    loss: float | None,
    confidence: float | None,
    calibration_error: float | None,
    *,
    num_classes: int,
) -> EvalStats:
    """Return the performance that a caller states; what is None is that of a calibrated network of this accuracy.

    Raises:
        InputError: the accuracy is missing, or a number is out of range.
    """
    if accuracy is None:
        raise InputError("observe needs val_accuracy, or logits and labels, of validation images; got neither")
    right = fraction("val_accuracy", accuracy)
    if loss is None:
        wrong = (1 - right) / (max(num_classes, 2) - 1)
        loss = -sum(
            share * math.log(probability) for share, probability in ((right, right), (1 - right, wrong)) if share
        )
    return EvalStats(
        right,
        non_negative("val_loss", loss),
        right if confidence is None else fraction("val_confidence", confidence),
        0.0 if calibration_error is None else fraction("val_calibration_error", calibration_error),
        0,
    )


def setting_of(images: Tensor, model: nn.Module | None, imbalance: float) -> Setting:
    """Return what a loop shows of its network and images.

    Args:
        images: `[B, C, H, W]`.
        model: the network; without it one of usual size that normalises is assumed.
        imbalance: training images of the most frequent label over those of the rarest.
    """
    channels, height, width = images.shape[1:]
    parameters, normalised = USUAL_PARAMETERS, True
    if model is not None:
        parameters = max(sum(parameter.numel() for parameter in model.parameters()), 1)
        normalised = any("Norm" in type(module).__name__ for module in model.modules())
    return Setting(parameters, normalised, channels, min(height, width), imbalance)


def not_shown(model: nn.Module | None, features: Sequence[str]) -> dict[str, str]:
    """Return a warning, by name, where an agent with these features looks at the network, which is not given."""
    if model is not None or SETTING_FEATURES.isdisjoint(features):
        return {}
    usual = f"taken to have {USUAL_PARAMETERS:,} parameters and to normalise"
    return {"model": f"the network is not known: {usual}; call mix(images, labels, model)"}


def learning_rates(optimizer: Optimizer) -> tuple[float, float]:
    """Return the optimiser's present learning rate, and the highest that its schedule is known to reach.

    Raises:
        InputError: it is no optimiser.
    """
    require_optimizer(optimizer)
    group = optimizer.param_groups[0]
    rate = float(group["lr"])
    # `max_lr` is OneCycleLR's; all schedulers set `initial_lr`, the highest of those that warm up and decay.
    return rate, max(rate, float(group.get("max_lr", group.get("initial_lr", rate))))


def one_cycle(progress: float) -> float:
    """Return the learning rate of OneCycleLR over its highest: it rises for 30 % of the training, then falls to 0."""
    if progress < 0.3:
        return 0.04 + 0.48 * (1 - math.cos(math.pi * progress / 0.3))
    return 0.5 + 0.5 * math.cos(math.pi * (progress - 0.3) / 0.7)
