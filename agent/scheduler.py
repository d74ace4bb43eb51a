"""PolicyScheduler: the policy of a running training, from a schedule or an agent that is asked at every segment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rlmix.agent.decisions import PolicyFn, Probabilities, as_provenance
from rlmix.classifier.evaluation.label_check import LabelStats
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.stats import EvalStats, TrainStats, UpdateStats, merge_stats
from rlmix.envs.observation import TrainingState


@dataclass(frozen=True, repr=False)
class Choice:
    """A policy that was chosen in a training.

    Attributes:
        update: number of the first update under it, from 0.
        policy: the policy.
        probabilities: probability that the agent gave each choice, by dimension of its menu; None without an agent.
        reason: what a rule has seen, at its look; else None.
    """

    update: int
    policy: MixPolicy
    probabilities: Probabilities | None = None
    reason: str | None = None

    def __repr__(self) -> str:
        return f"from update {self.update}: {self.policy}" + (f" ({self.reason})" if self.reason else "")


class PolicyScheduler:
    """Asks for a policy at the start of every segment, and keeps what was chosen and measured.

    A final training and a loop of the user's own are both led by one.

    Args:
        choose: function that returns each segment's policy.
        segments: progress at which each segment ends.
        state: state of the training at its start.
        updates: length of the training.
    """

    def __init__(self, choose: PolicyFn, segments: Sequence[float], state: TrainingState, *, updates: int) -> None:
        self._choose, self._updates = choose, updates
        self.ends = sorted({max(round(end * self._updates), 1) for end in segments})
        """Number of the update at which each segment ends, exclusive."""
        self.state = state
        self.policy: MixPolicy | None = None
        """Policy of the running segment; None between two segments."""
        self.chosen: list[tuple[float, MixPolicy]] = []
        self.probabilities: list[Probabilities | None] = []
        """Probabilities of the choices for each of `chosen`; None from a schedule."""
        self.reasons: list[str | None] = []
        """Reasons for each of `chosen`; None but from a rule."""
        self._action: tuple[int, ...] | None = None
        self._parts: list[TrainStats] = []

    def end(self, done: int) -> int:
        """Return the number of the update at which the segment of update `done` ends."""
        return next(end for end in self.ends if end > done)

    def start_segment(self, done: int) -> MixPolicy:
        """Ask for the policy of the segment that begins at update `done`."""
        self.policy, self._action, probabilities, reason = self._choose(self.state)
        self.probabilities.append(probabilities)
        self.reasons.append(reason)
        self.chosen.append((self.end(done) / self._updates, self.policy))
        return self.policy

    def add(self, stats: TrainStats) -> None:
        """Add the statistics of a part of the running segment."""
        self._parts.append(stats)

    def end_segment(
        self,
        *,
        progress: float,
        relative_lr: float,
        evaluation: EvalStats | None,
        labels: LabelStats | None = None,
    ) -> None:
        """End the running segment: the next choice sees its statistics.

        Args:
            progress: share of the training that is done, in [0, 1].
            relative_lr: learning rate of the next update over the highest one.
            evaluation: validation after the segment; None where it was not measured.
            labels: signs of wrong training labels after it; optional, defaults to not measured.
        """
        self.state = self.state.after(
            progress=progress,
            relative_lr=relative_lr,
            segment=merge_stats(self._parts),
            evaluation=evaluation,
            action=self._action,
            labels=labels,
        )
        self.policy, self._parts = None, []

    @property
    def choices(self) -> list[Choice]:
        """Choices so far, one for each segment."""
        starts = [0, *(round(until * self._updates) for until, _ in self.chosen)]
        every = zip(starts, self.chosen, self.probabilities, self.reasons, strict=False)
        return [Choice(start, policy, given, reason) for start, (_, policy), given, reason in every]

    def schedule(self) -> PolicySchedule:
        """Return the policies that were used as a schedule, with an agent's probabilities or what a rule saw.

        In the midst of a training the last policy, of which there must be one, holds to the end.
        """
        *before, (_, last) = self.chosen
        return PolicySchedule((*before, (1.0, last)), as_provenance(self.probabilities, self.reasons))

    def state_dict(self) -> dict[str, Any]:
        """Return what was chosen and measured as plain values."""
        return {
            "chosen": [[until, policy.to_json()] for until, policy in self.chosen],
            "probabilities": list(self.probabilities),
            "reasons": list(self.reasons),
            "running": self.policy is not None,
            "action": None if self.policy is None or self._action is None else list(self._action),
            "parts": [asdict(part) for part in self._parts],
            "state": _plain(self.state),
            "before": [_plain(state) for state in self._earlier()],
        }

    def load_state_dict(self, values: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.chosen = [(until, MixPolicy.from_json(policy)) for until, policy in values["chosen"]]
        # Old checkpoints do not have these.
        nothing = [None] * len(self.chosen)
        self.probabilities = list(values.get("probabilities", nothing))
        self.reasons = list(values.get("reasons", nothing))
        self.policy = self.chosen[-1][1] if values["running"] else None
        self._action = None if values["action"] is None else tuple(values["action"])
        self._parts = [_stats(part) for part in values["parts"]]
        state = None
        for one in [*values.get("before", []), values["state"]]:  # old checkpoints have no states before
            state = replace(self.state, before=state, **_restored(one))
        assert state is not None
        self.state = state

    def _earlier(self) -> list[TrainingState]:
        """Return the states before the present one, the first ones first."""
        states: list[TrainingState] = []
        state = self.state.before
        while state is not None:
            states.append(state)
            state = state.before
        return states[::-1]


def _stats(value: dict[str, Any]) -> TrainStats:
    """Return the TrainStats that `asdict` has converted."""
    updates = {kind: None if value[kind] is None else UpdateStats(**value[kind]) for kind in ("clean", "mixed")}
    return TrainStats(**{**value, **updates})


def _plain(state: TrainingState) -> dict[str, Any]:
    """Return what changes in a training's state as plain values."""
    return {
        "progress": state.progress,
        "relative_lr": state.relative_lr,
        "stretch": None if state.segment is None else asdict(state.segment),  # the segment, by its first name
        "evaluation": None if state.evaluation is None else asdict(state.evaluation),
        "accuracy_before": state.accuracy_before,
        "action": None if state.action is None else list(state.action),
        "labels": None if state.labels is None else asdict(state.labels),
    }


def _restored(value: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a state of which `_plain` gave the values."""
    labels = value.get("labels")  # old checkpoints do not have it
    return {
        "progress": value["progress"],
        "relative_lr": value["relative_lr"],
        "segment": None if value["stretch"] is None else _stats(value["stretch"]),
        "evaluation": None if value["evaluation"] is None else EvalStats(**value["evaluation"]),
        "accuracy_before": value["accuracy_before"],
        "action": None if value["action"] is None else tuple(value["action"]),
        "labels": None if labels is None else LabelStats(**{**labels, "loss_deciles": tuple(labels["loss_deciles"])}),
    }
