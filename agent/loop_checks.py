"""Checks of what a loop of the user's own gives: a mistake is refused in one line that says what to do."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, nn

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import as_targets
from rlmix.classifier.mixing.batch import require_float

Colours = tuple[Tensor, Tensor]  # mean and standard deviation of the images' colours


def whole_number(name: str, value: Any, *, least: int = 1, advice: str = "") -> int:
    """Return a whole number, which may be a float without a fraction.

    Raises:
        InputError: it is none, or too small.
    """
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise InputError(f"{name} must be a whole number of at least {least}, got {_shown(value)}{advice}")
    return number


def fraction(name: str, value: Any) -> float:
    """Return a number in [0, 1].

    Raises:
        InputError: it is none.
    """
    number = _number(value)
    if number is None or not 0 <= number <= 1:
        raise InputError(f"expected {name} in [0, 1], got {_shown(value)}; divide percent by 100")
    return number


def as_share(value: Any) -> float:
    """Return the share of the batches that a method mixes.

    Raises:
        InputError: it is no number in (0, 1].
    """
    number = _number(value)
    if number is None or not 0 < number <= 1:
        raise InputError(f"share must be in (0, 1], got {_shown(value)}; half of the batches is 0.5")
    return number


def non_negative(name: str, value: Any) -> float:
    """Return a number of at least 0, or one that is not finite, as after a training that diverged.

    Raises:
        InputError: it is negative, or no number.
    """
    number = _number(value)
    if number is None or number < 0:
        raise InputError(f"expected {name} of at least 0, got {_shown(value)}")
    return number


def as_imbalance(value: Any) -> float:
    """Return the images of the most frequent class over those of the rarest.

    Raises:
        InputError: it is no number of at least 1.
    """
    number = _number(value)
    if number is None or not 1 <= number < math.inf:
        raise InputError(
            f"imbalance must be a number of at least 1, training images of the most frequent class over those of the "
            f"rarest, got {_shown(value)}"
        )
    return number


def require_optimizer(value: Any) -> None:
    """Raise unless a value is None, an optimiser, or something that wraps one.

    Raises:
        InputError: it has no learning rate.
    """
    groups = [{"lr": 0}] if value is None else getattr(value, "param_groups", None)
    if not isinstance(groups, list) or not groups or "lr" not in groups[0]:
        raise InputError(
            f"optimizer must be the loop's own optimiser, from torch.optim, got {_shown(value)}; "
            "not the network, a scheduler or a learning rate"
        )


def require_module(model: Any) -> None:
    """Raise unless a model is None or a module.

    Raises:
        InputError: it is anything else.
    """
    if model is not None and not isinstance(model, nn.Module):
        raise InputError(f"model must be the network, a torch.nn.Module, got {_shown(model)}")


def as_class_weights(values: Any, num_classes: int) -> Tensor | None:
    """Return the factor of each class, `[K]`; None where there are none.

    Raises:
        InputError: there are more or fewer of them, or one is negative or not finite.
    """
    if values is None:
        return None
    weights = _as_tensor(values, torch.device("cpu"), "class_weights")
    weights = weights if weights.is_floating_point() else weights.float()
    if weights.shape != (num_classes,):
        raise InputError(f"class_weights must be {num_classes} numbers, one for each class, got {_shown(values)}")
    if not (weights.isfinite() & (weights >= 0)).all():
        raise InputError(f"class_weights must be finite and at least 0, got {weights.tolist()}")
    return weights


def as_colours(mean: Any, std: Any) -> Colours | None:
    """Return the mean and standard deviation of the images' colours, `[C]` each; None where they are not given.

    Raises:
        InputError: one is missing, or is not of colours in [0, 1].
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("mean and std belong together; pass both mean= and std=")
    found = []
    for name, values in (("mean", mean), ("std", std)):
        numbers = _as_tensor(values, torch.device("cpu"), name).float().reshape(-1)
        if not ((numbers >= 0) & (numbers <= 1)).all() or (name == "std" and not numbers.all()):
            allowed = "[0, 1]" if name == "mean" else "(0, 1]"
            raise InputError(f"{name} must be in {allowed}, got {values}; divide values of 0 to 255 by 255")
        found.append(numbers)
    if len(found[0]) != len(found[1]):
        raise InputError(f"mean and std must be of as many colours, got {len(found[0])} and {len(found[1])}")
    return found[0], found[1]


def batch_targets(images: Any, labels: Any, num_classes: int) -> Tensor:
    """Return the targets of a batch, `[B, K]`, after a look at its form.

    Args:
        images: `[B, C, H, W]`, floating point.
        labels: as for `as_targets`, or such numbers in a list, a tuple or an array.
        num_classes: K.

    Raises:
        InputError: the batch has another form, or its parts are on two devices.
    """
    if not isinstance(images, Tensor):
        how = "torch.from_numpy makes one of an array, torch.stack of a list"
        raise InputError(f"expected images as a tensor [B, C, H, W], got {_shown(images)}; {how}")
    require_float(images)
    labels = _as_tensor(labels, images.device, "labels")
    if images.ndim != 4 or labels.ndim == 0 or len(images) != len(labels):
        raise InputError(
            "expected images [B, C, H, W] and as many labels, "
            f"got images {list(images.shape)} and labels {list(labels.shape)}"
        )
    if not len(images):
        raise InputError(f"expected at least one image, got {list(images.shape)}; leave empty batches out")
    _require_one_device("images", images, "labels", labels)
    return as_targets(labels, num_classes)


def require_first_batch(
    images: Tensor, targets: Tensor, colours: Colours | None, *, train_size: int | None
) -> dict[str, str]:
    """Look at a batch for what would take time at each one.

    Args:
        images: `[B, C, H, W]`.
        targets: `[B, K]`; what is not on the host is not looked at.
        colours: mean and standard deviation that were given; None without them.
        train_size: number of training images; None where it does not matter.

    Returns:
        Warnings by name.

    Raises:
        InputError: a target is outside of [0, 1], or the images have another number of channels than the colours.
    """
    if colours is not None and len(colours[0]) not in (1, images.shape[1]):
        raise InputError(
            f"mean and std are of {len(colours[0])} colours, got images of {images.shape[1]} channels; "
            "pass one number for each"
        )
    if targets.device.type == "cpu" and not ((targets >= 0) & (targets <= 1)).all():
        low, high = targets.aminmax()
        raise InputError(
            f"soft labels must be in [0, 1], got {low:g} to {high:g}; pass a teacher's logits through softmax(dim=1)"
        )
    warnings = {}
    if train_size is not None and len(images) > train_size:
        fewer = f"train_size={train_size} images, fewer than in the first batch"
        warnings["train_size"] = f"{fewer}; pass train_size=len(dataset), not len(loader)"
    if images.shape[3] == 3 and images.shape[1] > 4:
        warnings["channels"] = f"images {list(images.shape)} seem to have colours last; permute(0, 3, 1, 2)"
    return warnings


def as_loss(value: Any) -> Tensor:
    """Return a loss whose backward pass is to come.

    Raises:
        InputError: it is not a tensor of one number.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise InputError(f"loss must be the mean loss as a tensor, before .item() or .backward(), got {_shown(value)}")
    return value


def as_logits(logits: Any, num_classes: int) -> Tensor:
    """Return logits as `[B, K]`; those of one output may be `[B]`.

    Raises:
        InputError: they have another form.
    """
    if isinstance(logits, Tensor) and logits.is_floating_point():
        if num_classes == 1 and logits.ndim == 1:
            return logits[:, None]
        if logits.ndim == 2 and logits.shape[1] == num_classes:
            return logits
    if isinstance(logits, Tensor):
        advice = f"num_classes={num_classes} must be the network's number of outputs, and logits come before targets"
    else:
        advice = "pass the network's output, or that part of it which holds the logits"
    raise InputError(f"expected logits [B, {num_classes}], got {_shown(logits)}; {advice}")


def as_pair(logits: Any, targets: Any, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return logits and targets of a batch, `[B, K]` each.

    Args:
        logits: as for `as_logits`.
        targets: as for `as_targets`, or such numbers in a list, a tuple or an array.
        num_classes: K.

    Raises:
        InputError: they have another form, differ in their number, are on two devices, or are in the other order.
    """
    logits = as_logits(logits, num_classes)
    targets = as_targets(_as_tensor(targets, logits.device, "targets"), num_classes)
    if targets.requires_grad and not logits.requires_grad:
        raise InputError(
            "expected logits, then targets, got targets with a gradient and logits without: pass the network's output "
            "first, mix.loss(logits, targets)"
        )
    if len(logits) != len(targets):
        raise InputError(
            f"expected as many logits as targets, got {list(logits.shape)} and {list(targets.shape)}; "
            "use the targets that mix returned with these images"
        )
    _require_one_device("logits", logits, "targets", targets)
    return logits, targets


def as_validation(logits: Any, labels: Any, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return logits and labels of validation images as `as_pair` does; they may be arrays, and on two devices.

    Raises:
        InputError: one is missing, or they have another form.
    """
    if logits is None or labels is None:
        missing = "logits" if logits is None else "labels"
        raise InputError(f"observe takes logits and labels together, got no {missing}; pass both")
    logits = _as_tensor(logits, torch.device("cpu"), "logits")
    found = as_pair(logits, _as_tensor(labels, logits.device, "labels").to(logits.device), num_classes)
    if not len(logits):
        raise InputError("expected validation images, got logits of none")
    return found


def _as_tensor(values: Any, device: torch.device, name: str) -> Tensor:
    """Return numbers in a list, a tuple or an array as a tensor, those with a fraction as float32; tensors as is."""
    if isinstance(values, Tensor):
        return values
    try:
        made = torch.tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError):
        kinds = "a tensor, or a list or array of numbers"
        raise InputError(f"{name} must be {kinds}, got {_shown(values)}") from None
    return made.float() if made.is_floating_point() else made


def _require_one_device(name: str, one: Tensor, other_name: str, other: Tensor) -> None:
    if one.device != other.device:
        raise InputError(
            f"expected {name} and {other_name} on one device, got {one.device} and {other.device}; move both there"
        )


def _number(value: Any) -> float | None:
    """Return a number, or the only one in a tensor or array, as a float; None for anything else."""
    if isinstance(value, str | bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _shown(value: Any) -> str:
    """Return a value as a message shows it: tensors and arrays by shape and type, objects by the name of their type."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} {list(value.shape)} of {value.dtype}"
    if value is None or isinstance(value, str | int | float):
        return f"{value!r:.80}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, list | tuple) else type(value).__name__
