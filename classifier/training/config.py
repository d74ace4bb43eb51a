"""The setting of one training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

LR_SCHEDULES = ("onecycle", "multistep", "piecewise")


@dataclass(frozen=True)
class TrainConfig:
    """One training's setting.

    Attributes:
        model: a name of `classifier.models.MODELS`, `torchvision/NAME`, `timm/NAME`, or `package.module:function` for
            one's own network.
        embedding: name of one's own network's last linear layer; none = found.
        updates: length of the training, in updates.
        batch_size: images per update.
        lr: highest learning rate.
        lr_schedule: `onecycle` (rises for 30 % of the updates, then falls), `multistep` (a tenth at each milestone) or
            `piecewise` (straight lines between points).
        lr_milestones: progress in (0, 1) of `multistep`'s milestones, rising.
        lr_points: pairs of progress in [0, 1], rising, and share of `lr`, the corners of `piecewise`.
        momentum: of SGD; `onecycle` cycles it from 0.95 to 0.85 and back instead.
        nesterov: whether the momentum is Nesterov's.
        weight_decay: L2 penalty on every parameter.
        augmentation: random crops and flips, as far as the data set allows them.
        crop_padding: pixels of border that crops are taken from; none = the data set's own.
        image_sizes: pairs of the progress in (0, 1] until which crops of streamed images have a side, and the side in
            pixels; none = the data set's own side. Evaluation sees the data set's own.
        readers: processes that read streamed images; 0 reads in this one.
        saliency: `recycled` takes a saliency method's saliency from the clean update before, on the same images;
            `exact` spends a pass of its own.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: `auto`, `bf16` or `fp32`.
        compile: whether the step is compiled; falls back to eager, with a warning, where it cannot be.
    """

    model: str = "search"
    embedding: str | None = None
    updates: int = 1000
    batch_size: int = 100
    lr: float = 0.2
    lr_schedule: str = "onecycle"
    lr_milestones: tuple[float, ...] = (0.5, 0.75)
    lr_points: tuple[tuple[float, float], ...] = ((0.0, 1.0), (1.0, 0.0))
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    augmentation: bool = True
    crop_padding: int | None = None
    image_sizes: tuple[tuple[float, int], ...] = ()
    readers: int = 4
    saliency: str = "recycled"
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        for name, low in (("updates", 1), ("batch_size", 2)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("lr", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number from 0, got {getattr(self, name)}")
        for name, choices in (("lr_schedule", LR_SCHEDULES), ("saliency", ("recycled", "exact"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if any(not low < high < 1 for low, high in pairwise((0.0, *self.lr_milestones))):
            raise ValueError(f"lr_milestones must rise within (0, 1), got {self.lr_milestones}")
        progress = [point for point, _ in self.lr_points]
        if len(progress) < 2 or progress != sorted(progress) or (progress[0], progress[-1]) != (0, 1):
            raise ValueError(f"lr_points must be pairs whose progress rises from 0 to 1, got {self.lr_points}")
        if any(not 0 <= share <= 1 for _, share in self.lr_points):
            raise ValueError(f"lr_points must hold shares of lr in [0, 1], got {self.lr_points}")
        ends = [until for until, _ in self.image_sizes]
        if ends and (ends != sorted(set(ends)) or ends[0] <= 0 or ends[-1] != 1):
            raise ValueError(f"image_sizes must be pairs whose progress rises to 1, got {self.image_sizes}")
        if any(side < 8 for _, side in self.image_sizes):
            raise ValueError(f"image_sizes must hold sides of at least 8 pixels, got {self.image_sizes}")
        if self.readers < 0:
            raise ValueError(f"readers must be at least 0, got {self.readers}")
        if self.crop_padding is not None and self.crop_padding < 0:
            raise ValueError(f"crop_padding must be at least 0, or none for the data set's, got {self.crop_padding}")
