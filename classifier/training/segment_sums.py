"""Statistics of a segment of training, summed on the device and copied to the host once, when it ends."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlmix.classifier.mixing.methods import METHODS
from rlmix.classifier.mixing.rmix import GRIDS
from rlmix.classifier.mixing.saliency import patch_saliency
from rlmix.classifier.training.stats import TrainStats, UpdateStats

PROBES = 4  # clean updates at the end of a segment whose saliency and gradient are measured


class SegmentSums:
    """Sums over the updates of a segment.

    Args:
        device: device of the losses.
    """

    def __init__(self, device: torch.device) -> None:
        self.counts: Counter[str] = Counter()
        """Number of measured updates of each method."""
        self.probes = 0
        self._sums = {kind: torch.zeros(3, device=device) for kind in ("clean", "mixed")}
        self._probe = torch.zeros(2, device=device)

    @property
    def tensors(self) -> list[Tensor]:
        """The sums themselves, to be averaged over processes in place."""
        return [*self._sums.values(), self._probe]

    def add(self, method: str, measured: Tensor) -> None:
        """Add an update.

        Args:
            method: method of the update.
            measured: loss, entropy of the targets and accuracy, `[3]`; see `UpdateStats`.
        """
        self.counts[method] += 1
        self._sums["clean" if method == "clean" else "mixed"] += measured

    def add_probe(self, measured: Tensor) -> None:
        """Add the result of `measure_probe`, `[2]`."""
        self.probes += 1
        self._probe += measured

    def read(self, *, images: int, started: float, largest: Tensor | None = None) -> TrainStats:
        """Copy the sums to the host and return the segment's statistics.

        Args:
            images: number of images trained on.
            started: `time.perf_counter()` at its start.
            largest: largest absolute weight, 0-d; None where the weights are not known.
        """
        weight = [] if largest is None else [largest[None]]
        clean, other, probed, *weights = _to_host(*self._sums.values(), self._probe, *weight)
        finite = all(math.isfinite(value) for values in (clean, other, *weights) for value in values)
        measured = bool(self.probes) and all(math.isfinite(value) for value in probed)
        updates = self.counts.total()
        return TrainStats(
            updates=updates,
            images=images,
            seconds=time.perf_counter() - started,
            methods={method: self.counts[method] for method in METHODS if self.counts[method]},
            clean=UpdateStats.from_sums(clean, self.counts["clean"]),
            mixed=UpdateStats.from_sums(other, updates - self.counts["clean"]),
            saliency_entropy=probed[0] / self.probes if measured else None,
            gradient_norm=probed[1] / self.probes if measured else None,
            diverged=not finite,
            probes=self.probes,
        )

    def clean_accuracy(self) -> float | None:
        """Return the accuracy on the clean updates so far, in [0, 1]; None without one."""
        stats = UpdateStats.from_sums(self._sums["clean"].tolist(), self.counts["clean"])
        return None if stats is None else stats.accuracy

    def to(self, device: torch.device) -> SegmentSums:
        """Return the sums on a device."""
        if device == self._probe.device:
            return self
        moved = SegmentSums(device)
        moved.load_state_dict(self.state_dict())
        return moved

    def state_dict(self) -> dict[str, Any]:
        """Return the sums as plain values and tensors."""
        sums = {kind: tensor.clone() for kind, tensor in self._sums.items()}
        return {"counts": dict(self.counts), "sums": sums, "probes": self.probes, "probe": self._probe.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the sums of `state_dict`."""
        self.counts, self.probes = Counter(state["counts"]), state["probes"]
        for kind, tensor in self._sums.items():
            tensor.copy_(state["sums"][kind])
        self._probe.copy_(state["probe"])


def measure_update(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return what an update's `UpdateStats` are summed from: loss, entropy of the targets and accuracy, `[3]`.

    Args:
        loss: mean cross-entropy, 0-d.
        logits: `[B, K]`, detached.
        targets: `[B, K]`, detached, rows summing to 1.
    """
    entropy = torch.special.entr(targets).sum(dim=1).mean()
    hits = (logits.argmax(dim=1) == targets.argmax(dim=1)).float().mean()
    return torch.stack((loss.detach(), entropy, hits))


def measure_probe(image_gradient: Tensor, gradients: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Return relative saliency entropy of a clean batch and relative norm of its parameter gradient, `[2]`.

    Args:
        image_gradient: `[B, C, H, W]`, gradient of the loss at the images.
        gradients: gradients of the parameters.
        parameters: the parameters.
    """
    height, width = image_gradient.shape[-2:]
    grid = next((grid for grid in GRIDS if height % grid == 0 and width % grid == 0), 1)
    saliency = patch_saliency(image_gradient, grid).flatten(1)
    entropy = torch.special.entr(saliency).sum(dim=1).mean() / max(math.log(saliency.shape[1]), 1e-9)
    norm = nn.utils.get_total_norm(gradients)
    scale = nn.utils.get_total_norm([parameter.detach() for parameter in parameters])
    return torch.stack((entropy, norm / scale.clamp(min=1e-12)))


def _to_host(*tensors: Tensor) -> list[list[float]]:
    """Return the values of 1-d tensors, copied to the host in one transfer."""
    values = torch.cat(tensors).tolist()
    ends = np.cumsum([len(tensor) for tensor in tensors])
    return [values[end - len(tensor) : end] for end, tensor in zip(ends, tensors, strict=True)]
