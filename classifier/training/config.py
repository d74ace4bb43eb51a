"""The setting of one training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from rlmix.classifier.errors import InputError, require_at_least

Precision = Literal["auto", "bf16", "fp32"]

OptimiserName = Literal["sgd", "adamw"]
BalanceName = Literal["none", "sampler", "weights"]
ScheduleName = Literal["onecycle", "multistep", "piecewise", "cosine"]


@dataclass(frozen=True)
class TrainConfig:
    """Setting of one training of a classifier."""

    model: str = "search"
    """Network: one of this package, such as search or preact_resnet18 (an unknown name lists all), torchvision/NAME,
    timm/NAME, or package.module:function for your own function(num_classes, in_channels)."""
    embedding: str | None = None
    """Name of the last linear layer, for a network of yours in which it is not found; optional."""
    updates: int = 1000
    """Length of the training, in updates."""
    batch_size: int = 100
    """Images per update."""
    lr: float = 0.2
    """Highest learning rate."""
    optimizer: OptimiserName = "sgd"
    """Optimiser. sgd: with momentum; adamw: as vision transformers are trained, without decay of biases and
    normalisation layers."""
    lr_schedule: ScheduleName = "onecycle"
    """Learning rate over the training. onecycle: rises for 30 % of the updates, then falls; multistep: a tenth at each
    milestone; piecewise: straight lines between points; cosine: a linear rise over warmup, then half a cosine to 0."""
    warmup: float = 0.0
    """Share of the updates, in [0, 1), over which cosine's learning rate rises."""
    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    """Progress in (0, 1) of multistep's milestones, rising."""
    lr_points: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    """Corners of piecewise: pairs of progress, rising from 0 to 1, and share of lr."""
    momentum: float = 0.9
    """Momentum of SGD; onecycle cycles it from 0.95 to 0.85 and back instead."""
    nesterov: bool = True
    """Nesterov momentum rather than plain momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on every parameter; with adamw decoupled weight decay, which wants larger values, such as 0.05."""
    augmentation: bool = True
    """Random crops and flips, as far as the data set allows them."""
    crop_padding: int | None = None
    """Pixels of border added to each side before a random crop; optional, defaults to the data set's own."""
    image_sizes: tuple[tuple[float, int], ...] = ()
    """Side in pixels of the crops of streamed images: pairs of the progress in (0, 1] until which a side is used, and
    the side; optional, defaults to the data set's own side, which evaluation always uses."""
    readers: int = 4
    """Processes that read streamed images; 0 reads them in this one."""
    balance: BalanceName = "none"
    """Balance of unequal classes. sampler: every class is drawn equally often, its images with replacement; weights:
    the loss of an image counts by the inverse frequency of its class, 1 on average; none: classes as they are."""
    saliency: Literal["recycled", "exact"] = "recycled"
    """Saliency (the loss's gradient at the image) of methods that mix by it. recycled: from a clean update on the same
    images, 16 or more updates ago; exact: from a forward and backward pass of its own."""
    device: str = "auto"
    """Device to train on: auto, cpu, cuda or cuda:N."""
    precision: Precision = "auto"
    """Number format of the network; auto takes bf16 where it is native and agrees with fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the training step by torch.compile. on: always, or eager with a warning where it is not available; off:
    never; auto: commands compile where a short trial shows that it saves time, Trainer itself does not."""

    def __post_init__(self) -> None:
        require_at_least(self, updates=1, batch_size=2, readers=0, crop_padding=0)
        for name in ("lr", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} must be a finite number of at least 0, got {getattr(self, name)}")
        for name, choices in (
            ("optimizer", get_args(OptimiserName)),
            ("lr_schedule", get_args(ScheduleName)),
            ("balance", get_args(BalanceName)),
            ("saliency", ("recycled", "exact")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup must be a share of the updates in [0, 1), got {self.warmup}")
        if any(not low < high < 1 for low, high in pairwise((0.0, *self.lr_milestones))):
            raise InputError(f"lr_milestones must rise within (0, 1), got {self.lr_milestones}")
        progress = [point for point, _ in self.lr_points]
        if len(progress) < 2 or progress != sorted(progress) or (progress[0], progress[-1]) != (0, 1):
            raise InputError(f"lr_points must be pairs whose progress rises from 0 to 1, got {self.lr_points}")
        if any(not 0 <= share <= 1 for _, share in self.lr_points):
            raise InputError(f"lr_points must hold shares of lr in [0, 1], got {self.lr_points}")
        ends = [until for until, _ in self.image_sizes]
        if ends and (ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1):
            raise InputError(f"image_sizes must be pairs whose progress rises to 1, got {self.image_sizes}")
        if any(side < 8 for _, side in self.image_sizes):
            raise InputError(f"image_sizes must hold sides of at least 8 pixels, got {self.image_sizes}")
