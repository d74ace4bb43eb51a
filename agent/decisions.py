"""Decisions: how a training asks a schedule or an agent for the policy of a segment, and keeps the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.agent import Agent, Allowed
from rlmix.agent.any_agent import AnyAgent
from rlmix.agent.rule import Rule
from rlmix.classifier.mixing import MixPolicy, PolicyError, PolicySchedule
from rlmix.envs.observation import TrainingState, observe

PROBABILITIES = "probabilities"  # field of a schedule's provenance, for those that an agent gave
REASONS = "reasons"  # likewise, for what a rule saw
DIGITS = 6  # decimals of a stored probability
NOTHING_MIXED = "The agent mixed nothing: it expects plain training to do best here"

Probabilities = Mapping[str, Mapping[str, float]]  # by dimension of the menu and choice, each in [0, 1]


class Decision(NamedTuple):
    """Choice for a segment.

    Attributes:
        policy: policy of the segment.
        action: the agent's action; None from a schedule.
        probabilities: probability that the agent gave each choice; None from a schedule.
        reason: what a rule has seen, at its look; None before and after it, and from others.
    """

    policy: MixPolicy
    action: tuple[int, ...] | None = None
    probabilities: Probabilities | None = None
    reason: str | None = None


PolicyFn = Callable[[TrainingState], Decision]


def from_schedule(schedule: PolicySchedule) -> PolicyFn:
    """Return a function that reads each segment's policy from a schedule."""

    def choose(state: TrainingState) -> Decision:
        # Compared in updates: in progress, rounding could keep a segment that ends here.
        segments = schedule.segments
        return Decision(next(policy for until, policy in segments if round(until * state.task.updates) > done(state)))

    def done(state: TrainingState) -> int:
        return round(state.progress * state.task.updates)

    return choose


def from_agent(agent: Agent, allowed: Allowed | None = None) -> PolicyFn:
    """Return a function that asks the agent at every segment.

    Args:
        agent: the agent.
        allowed: choices that can be had; optional, defaults to all.
    """
    return lambda state: ask(agent, observe(state, agent.menu, agent.features), allowed)


def from_rule(rule: Rule, updates: int | None = None) -> PolicyFn:
    """Return a function that follows a rule; what it saw at its look is in the states before.

    While validation that it asks for is missing, the policy before holds.

    Args:
        rule: the rule.
        updates: length of the training, of which a state's progress is a share; optional, defaults to the task's.
    """

    def choose(state: TrainingState) -> Decision:
        length = updates or state.task.updates
        segment = rule.segment(round(state.progress * length), length)
        reason = None
        if segment < rule.look:
            action = rule.first[segment]
        elif (seen := rule.seen(state, length)) is not None:
            observation = observe(seen, rule.menu, rule.features)
            action = rule.choose(observation)[segment - rule.look]
            reason = rule.explain(observation) if seen is state else None
        else:
            action = state.action or rule.first[-1]
        return Decision(rule.menu.policy(action), action, reason=reason)

    return choose


def ask(agent: Agent, observation: NDArray[np.float32], allowed: Allowed | None = None) -> Decision:
    """Return the agent's most probable choice at an observation.

    Args:
        agent: the agent.
        observation: `[O]`.
        allowed: choices that can be had; optional, defaults to all.
    """
    action = agent.choose(observation, allowed)
    return Decision(agent.menu.policy(action), action, agent.probabilities(observation))


def as_provenance(probabilities: Sequence[Probabilities | None], reasons: Sequence[str | None] = ()) -> dict[str, Any]:
    """Return the provenance of a schedule: its segments' probabilities, unless one is None, and reasons, if any."""
    if any(reasons):
        return {REASONS: list(reasons)}
    if None in probabilities:
        return {}
    rounded = [
        {dimension: {name: round(share, DIGITS) for name, share in shares.items()} for dimension, shares in one.items()}
        for one in probabilities
        if one is not None
    ]
    return {PROBABILITIES: rounded}


def agent_mixed_nothing(schedule: PolicySchedule) -> bool:
    """Return whether a schedule is what an agent chose, and mixes nothing from start to end."""
    chosen = schedule.provenance.get(PROBABILITIES) is not None
    return chosen and all(set(policy.shares) == {"clean"} for _, policy in schedule.segments)


def probabilities_of(schedule: PolicySchedule) -> list[Probabilities] | None:
    """Return the probabilities that an agent gave in each segment of a schedule; None where none are stored.

    Raises:
        PolicyError: the stored field is not of this form; the message names it.
    """
    kept = schedule.provenance.get(PROBABILITIES)
    if kept is None:
        return None
    field, count = f"provenance.{PROBABILITIES}", len(schedule.segments)
    if not isinstance(kept, list) or len(kept) != count:
        raise PolicyError(f"{field} must be a list of {count}, one for each segment, got {kept!r:.80}")
    for place, one in enumerate(kept):
        if (
            not (isinstance(one, dict) and one)
            or set(one) != set(kept[0])
            or not all(isinstance(shares, dict) and shares for shares in one.values())
        ):
            raise PolicyError(f"{field}[{place}] must be an object of objects, as the first one is, got {one!r:.80}")
        for dimension, shares in one.items():
            if list(shares) != list(kept[0][dimension]):
                raise PolicyError(f"{field}[{place}].{dimension:.80} must name the choices of the first segment")
            for name, share in shares.items():
                if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
                    raise PolicyError(
                        f"{field}[{place}].{dimension:.80}.{name:.80} must be a number in [0, 1], got {share!r:.80}"
                    )
    return kept


def reasons_of(schedule: PolicySchedule) -> list[str | None]:
    """Return what a rule saw before each segment of a schedule, None where it did not look.

    Raises:
        PolicyError: the stored field is not of this form.
    """
    count = len(schedule.segments)
    kept = schedule.provenance.get(REASONS, [None] * count)
    if not isinstance(kept, list) or len(kept) != count or not all(one is None or isinstance(one, str) for one in kept):
        raise PolicyError(f"provenance.{REASONS} must be {count} texts, one for each segment, got {kept!r:.80}")
    return kept


def choose_by(
    policy: PolicySchedule | AnyAgent, allowed: Allowed | None = None, updates: int | None = None
) -> PolicyFn:
    """Return the function by which a training asks a schedule, an agent or a rule.

    Args:
        policy: the schedule, agent or rule.
        allowed: choices of an agent that can be had; optional, defaults to all.
        updates: length of the training, of which a state's progress is a share; optional, defaults to the task's.
    """
    match policy:
        case Agent():
            return from_agent(policy, allowed)
        case Rule():
            return from_rule(policy, updates)
        case _:
            return from_schedule(policy)


def segments_of(policy: PolicySchedule | AnyAgent) -> Sequence[float]:
    """Return the progress at which each segment of a schedule, an agent or a rule ends."""
    return [until for until, _ in policy.segments] if isinstance(policy, PolicySchedule) else policy.segments
