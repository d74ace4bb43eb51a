"""Rewards of `MixPolicyEnv` by name: a new one is an entry of `REWARDS`, and a row of the environment's docstring."""

from collections.abc import Callable
from dataclasses import dataclass

from rlmix.classifier.errors import InputError

SCORE_LIMIT = 10.0  # standard deviations; a diverged training would otherwise outweigh a thousand others


def score(accuracy: float, reference: float, scale: float) -> float:
    """Return how far an accuracy is above that of the reference, in standard deviations, within ±`SCORE_LIMIT`.

    Args:
        accuracy: accuracy in [0, 1].
        reference: accuracy of the reference, in [0, 1].
        scale: standard deviation of the reference's accuracy, above 0.
    """
    return min(max((accuracy - reference) / scale, -SCORE_LIMIT), SCORE_LIMIT)


@dataclass(frozen=True)
class Outcome:
    """Result of a segment, from which its reward is computed.

    Attributes:
        accuracy: validation accuracy after the segment, in [0, 1]; at chance where the training diverged.
        accuracy_before: validation accuracy before it; at chance before the first segment.
        score: `score` of the accuracy against the reference; 0 for a reward that needs no reference.
        score_before: score before the segment; 0 before the first one.
        terminated: whether the episode is over.
    """

    accuracy: float
    accuracy_before: float
    score: float
    score_before: float
    terminated: bool


@dataclass(frozen=True)
class Reward:
    """Reward of an agent.

    Attributes:
        meaning: one sentence for docstring and help.
        function: reward of a segment, from its outcome.
        needs_reference: whether the reference policy is trained on every task, so that outcomes have a score.
    """

    meaning: str
    function: Callable[[Outcome], float]
    needs_reference: bool = False


REWARDS = {
    "relative": Reward(
        "change of the score over the segment; an episode's sum is its final score",
        lambda outcome: outcome.score - outcome.score_before,
        needs_reference=True,
    ),
    "standing": Reward(
        "final score at the end of the episode, 0 before",
        lambda outcome: outcome.score if outcome.terminated else 0.0,
        needs_reference=True,
    ),
    "change": Reward(
        "change of validation accuracy over the segment, from chance at the start",
        lambda outcome: outcome.accuracy - outcome.accuracy_before,
    ),
    "final": Reward(
        "validation accuracy after the last segment, in [0, 1]; 0 before",
        lambda outcome: outcome.accuracy if outcome.terminated else 0.0,
    ),
}


def require_reward(name: str) -> Reward:
    """Return the reward of this name.

    Raises:
        ValueError: there is no such reward.
    """
    if name not in REWARDS:
        raise InputError(f"reward must be one of {', '.join(REWARDS)}, got {name!r}")
    return REWARDS[name]
