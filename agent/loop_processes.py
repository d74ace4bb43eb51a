"""Processes of a distributed loop of the user's own: how many there are, and what they share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, distributed

from rlmix.agent.decisions import Decision
from rlmix.classifier.mixing import MixPolicy


def processes() -> tuple[int, int]:
    """Return this process's rank, and the number of processes, of `torch.distributed`'s default group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def from_first(decision: Decision | None) -> Decision:
    """Return the first process's decision in all of them; the others give None."""
    shared = [None if decision is None else (decision.policy.to_json(), *decision[1:])]
    distributed.broadcast_object_list(shared, 0)
    assert shared[0] is not None
    return Decision(MixPolicy.from_json(shared[0][0]), *shared[0][1:])


def average(tensors: Sequence[Tensor], world: int) -> None:
    """Replace tensors by their mean over `world` processes, in place."""
    if world > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor /= world
