"""Gains: how far ahead of a plain training of its task a whole training ends, told by how it was mixed and by the task.

A model that follows a training segment by segment adds up what it gets wrong, and agents find where it is too good.
What a training gains in the end is told here by few numbers: the shares of mixed updates in each phase of the training,
by themselves and multiplied by what decides whether mixing helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlmix.classifier.errors import InputError
from rlmix.envs.effects import combination_numbers
from rlmix.envs.menu import Menu
from rlmix.envs.surrogate_tasks import TaskTable, View

PHASES = (0.4, 0.9, 1.0)  # progress at which they end
USUAL_PASSES, SPREAD_OF_PASSES = 1.8, 0.5  # of log10(1 + passes), by which it is standardised
MIN_SPREAD = 1e-6
MOST = 0.12  # of a recorded gain, in accuracy; what is farther off is taken as this much


@dataclass(frozen=True)
class RecordedGain:
    """Gain of a recorded training.

    Attributes:
        task: number of its task.
        actions: action of each of its S segments.
        gain: accuracy at its end less that of plain training of the task.
        weight: how much it counts, above 0.
    """

    task: int
    actions: Sequence[tuple[int, ...]]
    gain: float
    weight: float


@dataclass(frozen=True)
class Gains:
    """Linear model of what trainings gain.

    Attributes:
        weights: gain for each of the Q numbers that say how a training was mixed, and of the C of its task, `[Q, C]`.
    """

    weights: Tensor

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors by name."""
        return {"weights": self.weights}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], menu: Menu) -> Gains:
        """Build the model from what `state` returned.

        Raises:
            ValueError: the weights do not fit the menu or are not finite.
        """
        weights = state["weights"].float()
        shape = (len(PHASES) * mixing_shares(menu).shape[1], len(CONTEXTS))
        if tuple(weights.shape) != shape or not bool(torch.isfinite(weights).all()):
            raise ValueError(f"gains: expected finite numbers of shape {shape}, got {tuple(weights.shape)}")
        return cls(weights)

    def tell(self, mixed: Tensor, context: Tensor) -> Tensor:
        """Return the gains of trainings, in accuracy, `[N]`.

        Args:
            mixed: how each was mixed, as `mixed_in_phases` gives it, `[N, Q]`.
            context: `gain_context` of each one's task, `[N, C]`.
        """
        return torch.einsum("nq,qc,nc->n", mixed, self.weights, context)


CONTEXTS = (
    "always",
    "wrong labels",
    "their share",
    "passes",
    "wrong labels x passes",
    "error",
    "wrong labels x error",
    "learned by heart",  # accuracy on training images less that on validation images, both from chance
)


def gain_context(tasks: TaskTable, view: View) -> Tensor:
    """Return what decides whether mixing helps on tasks, `[T, C]`, in the order of `CONTEXTS`.

    Error and what is learned by heart are those of plain training.
    """
    share = tasks.context[:, view.context.index("label_noise")]
    passes = (4 * tasks.known[:, view.known.index("log_passes")] - USUAL_PASSES) / SPREAD_OF_PASSES
    error = 1 - tasks.reference[:, -1]
    wrong = (share > 0).float()
    trained, held_out = (tasks.context[:, view.context.index(f"plain_{of}_way_5")] for of in ("clean", "validation"))
    always = torch.ones_like(share)
    columns = (always, wrong, share, passes, wrong * passes, error, wrong * error, trained - held_out)
    return torch.stack(columns, dim=1)


def methods_of(menu: Menu) -> list[str]:
    """Return the methods that a menu mixes by, each once."""
    return list(dict.fromkeys(method for _, shares in menu.sources for method in shares if method != "clean"))


def mixing_shares(menu: Menu) -> Tensor:
    """Return how each of the menu's `combinations()` mixes, `[A, G]`; 0 for plain training.

    The share of mixed updates, whether it is all of them, the share of each method, and label smoothing.
    """
    rows = []
    for action in menu.combinations():
        policy = menu.policy(action)
        shares = [policy.shares.get(method, 0.0) for method in methods_of(menu)]
        mixed = sum(shares)
        rows.append([mixed, float(mixed > 0.99), *shares, policy.label_smoothing])
    return torch.tensor(rows)


def phase_shares(segments: Sequence[float]) -> Tensor:
    """Return the share that each segment has of each phase, `[P, S]`."""
    starts, ends = torch.tensor([0.0, *segments[:-1]]), torch.tensor(list(segments))
    begin, stop = torch.tensor([0.0, *PHASES[:-1]])[:, None], torch.tensor(PHASES)[:, None]
    overlap = (torch.minimum(ends, stop) - torch.maximum(starts, begin)).clamp(min=0)
    return overlap / (stop - begin)


def mixed_in_phases(taken: Tensor, shares: Tensor, phases: Tensor) -> Tensor:
    """Return how trainings were mixed in each phase, `[N, Q]`.

    Args:
        taken: number of the action of each segment among the menu's `combinations()`, `[N, S]`.
        shares: `mixing_shares` of the menu, `[A, G]`.
        phases: `phase_shares` of the segments, `[P, S]`.
    """
    return torch.einsum("ps,nsg->npg", phases, shares[taken]).flatten(1)


def fit_gains(
    recorded: Sequence[RecordedGain],
    tasks: TaskTable,
    view: View,
    *,
    menu: Menu,
    segments: Sequence[float],
    penalty: float,
    likeness: float = 1.0,
    favoured: Mapping[str, float] | None = None,
) -> Gains:
    """Return the model of recorded gains: ridge regression on standardised numbers.

    How much is mixed carries over between data sets; by which method hardly does. So methods may be held alike, and
    what else is known of them may be told.

    Args:
        recorded: recorded trainings, at least one.
        tasks: their tasks, among others.
        view: view of the tasks.
        menu: menu of the actions.
        segments: progress at which each segment ends.
        penalty: ridge penalty of standardised coefficients, in units of one recorded training.
        likeness: by how much the penalty of the differences between methods is raised, at least 1.
        favoured: gain of mixing every update that is expected without any recording, in accuracy, by method.

    Raises:
        ValueError: the menu does not have a favoured method.
    """
    methods = methods_of(menu)
    unknown = sorted(set(favoured or {}) - set(methods))
    if unknown:
        raise InputError(f"favoured must be among {', '.join(methods)}, got {', '.join(unknown)}")
    taken = combination_numbers([one.actions for one in recorded], menu)
    rows = torch.tensor([tasks.row(one.task) for one in recorded])
    mixed = mixed_in_phases(taken, mixing_shares(menu), phase_shares(segments)).double()
    context = gain_context(tasks, view)[rows].double()
    inputs = torch.einsum("nq,nc->nqc", mixed, context).flatten(1)
    # Columns of a phase: share of mixed updates, whether all are, each method, smoothing.
    free = torch.tensor([1.0, 1.0, *[1 / likeness**0.5] * len(methods), 1.0], dtype=torch.float64)
    expected = torch.zeros(len(PHASES), len(free), len(CONTEXTS), dtype=torch.float64)
    for method, gain in (favoured or {}).items():
        expected[:, 2 + methods.index(method), CONTEXTS.index("always")] = gain / len(PHASES)
    spread = inputs.std(dim=0, correction=0)
    spread = torch.where(spread > MIN_SPREAD, spread, 1.0)  # what never differs is not a scale
    spread = spread / free.repeat(len(PHASES)).repeat_interleave(len(CONTEXTS))
    weights = torch.tensor([one.weight for one in recorded], dtype=torch.float64)
    gains = torch.from_numpy(np.clip([one.gain for one in recorded], -MOST, MOST))
    seen = inputs / spread
    weighted = seen * weights[:, None]
    surprise = gains - inputs @ expected.flatten()
    found = torch.linalg.solve(
        seen.T @ weighted + penalty * torch.eye(seen.shape[1], dtype=torch.float64), weighted.T @ surprise
    )
    return Gains((expected.flatten() + found / spread).reshape(mixed.shape[1], context.shape[1]).float())
