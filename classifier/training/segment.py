"""A segment of training on its way: its plan, and the batch of one update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.policy import MixPolicy
from rlmix.classifier.training.batches import Batch
from rlmix.classifier.training.segment_sums import SegmentSums


@dataclass(frozen=True)
class SegmentPlan:
    """Plan of a segment, and its sums so far.

    Attributes:
        policy: mixing policy.
        methods: method of each update.
        probes: updates after which saliency and gradient are measured.
        recycled: for each update, whether its input gradient serves a saliency update to come.
        beta: 0-d, LaMix's β.
        attached: 0-d, 1 where the gradient goes through the global label, else 0.
        sums: statistics of the updates so far.
        started: `time.perf_counter()` at the start.
    """

    policy: MixPolicy
    methods: Sequence[str]
    probes: set[int]
    recycled: Sequence[bool]
    beta: Tensor
    attached: Tensor
    sums: SegmentSums
    started: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class MixedBatch:
    """Batch of one update, mixed.

    Attributes:
        method: how it is mixed.
        batch: the batch before.
        draw: what was drawn for it.
        images: `[B, C, H, W]`, a leaf that takes a gradient where one is wanted.
        targets: `[B, K]`.
        probed: whether saliency and gradient are measured.
        recycled: whether the input gradient serves a saliency update to come.
    """

    method: str
    batch: Batch
    draw: MixDraw
    images: Tensor
    targets: Tensor
    probed: bool
    recycled: bool
