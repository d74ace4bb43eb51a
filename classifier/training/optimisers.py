"""Optimisers and learning-rate schedules by name; a new one is an entry here and its name in `TrainConfig`."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from rlmix.classifier.training.config import TrainConfig

BETAS = (0.9, 0.999)  # torch's default for AdamW


def _without_compiler(kind: type[torch.optim.Optimizer]) -> Any:
    """Return the class without the decorators that keep torch.compile from tracing an optimiser.

    They import the compiler, 2.7 s of CPU time at the start of every training; here only losses are compiled.
    """
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**methods, "step": torch.no_grad()(inspect.unwrap(kind.step))})


_SGD, _AdamW = _without_compiler(torch.optim.SGD), _without_compiler(torch.optim.AdamW)


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    return _SGD(
        model.parameters(),
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.nesterov and config.momentum > 0,
        fused=True,
    )


def _adamw(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    # As in timm, biases and normalisation layers (every parameter that is not a matrix or a kernel) do not decay.
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1]},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return _AdamW(used, lr=config.lr, betas=BETAS, weight_decay=config.weight_decay, fused=True)


OPTIMISERS = {"sgd": _sgd, "adamw": _adamw}


def restart_optimiser(optimiser: torch.optim.Optimizer, config: TrainConfig) -> None:
    """Reset the optimiser: no moments, and the configured learning rate and momentum."""
    optimiser.state.clear()
    for group in optimiser.param_groups:
        group.pop("initial_lr", None)
        group.update({"lr": config.lr} | ({"betas": BETAS} if "betas" in group else {"momentum": config.momentum}))


def load_optimiser(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's state, each moment in its parameter's memory format: the fused step pairs values by place."""
    optimiser.load_state_dict(state)
    for parameter, kept in optimiser.state.items():
        for name, moment in kept.items():
            if moment is not None and moment.shape == parameter.shape and moment.ndim:
                kept[name] = torch.empty_like(parameter).copy_(moment)


def scale_lr(optimiser: torch.optim.Optimizer, schedule: LRScheduler, factor: float) -> None:
    """Multiply the learning rate of all updates to come by a factor above 0."""
    for group in optimiser.param_groups:
        # The current rate and `onecycle`'s limits; the other schedules compute from `base_lrs`.
        for name in {"lr", "initial_lr", "max_lr", "min_lr"} & group.keys():
            group[name] *= factor
    schedule.base_lrs = [factor * lr for lr in schedule.base_lrs]


def _onecycle(optimiser: torch.optim.Optimizer, config: TrainConfig) -> LRScheduler:
    # div_factor, final_div_factor and pct_start as R-Mix published them
    return OneCycleLR(
        optimiser, config.lr, total_steps=config.updates, pct_start=0.3, div_factor=100, final_div_factor=1e4
    )


def _multistep(optimiser: torch.optim.Optimizer, config: TrainConfig) -> LRScheduler:
    milestones = [int(progress * config.updates) for progress in config.lr_milestones]
    return MultiStepLR(optimiser, milestones, gamma=0.1)


def _piecewise(optimiser: torch.optim.Optimizer, config: TrainConfig) -> LRScheduler:
    progress, share = zip(*config.lr_points, strict=True)
    return LambdaLR(optimiser, lambda update: float(np.interp(update / config.updates, progress, share)))


def _cosine(optimiser: torch.optim.Optimizer, config: TrainConfig) -> LRScheduler:
    # timm's CosineLRScheduler with warmup_prefix, t_in_epochs=False and warmup_lr_init = lr / (warm-up + 1): the first
    # update has a learning rate above 0.
    rise = round(config.warmup * config.updates)

    def share(update: int) -> float:
        if update < rise:
            return (update + 1) / (rise + 1)
        return (1 + math.cos(math.pi * (update - rise) / max(config.updates - rise, 1))) / 2

    return LambdaLR(optimiser, share)


LR_SCHEDULES = {"onecycle": _onecycle, "multistep": _multistep, "piecewise": _piecewise, "cosine": _cosine}
