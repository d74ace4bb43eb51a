"""BudgetSearch: the best training that a budget of several buys; candidates begin, forecasts decide which go on.

At the end of every segment the forecaster tells, of each running candidate and each action, what holding that action
to the end would reach. As many continuations go on as the budget allows: those whose best one is expected to be
highest, so that a second one much like the first counts little. Half-way stops of this kind are Successive Halving's
(arXiv 1502.07943); a forecast stands in the place of the score so far, which misleads where mixing pays late.

An `Outlook` tells at each choice what several candidates are expected to gain over one, and what one more would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from string import ascii_lowercase
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.config import MOST_TRAININGS
from rlmix.agent.values import Forecaster
from rlmix.classifier.errors import InputError
from rlmix.envs.segments import segment_lengths

State = TypeVar("State")
Action = tuple[int, ...]

KEPT = 0.8  # share of the candidates that goes on after a segment
CHILDREN = 2  # continuations of one candidate, at most
OWN_SHARE = 0.5  # of the variance about a forecast that the continuations of one candidate do not have in common
DRAWS = 2000  # of results, by which the best of several is estimated


@dataclass(frozen=True)
class Step:
    """One segment of one candidate.

    Attributes:
        number: number of the step, from 0.
        parent: number of the step that it continues; None at the start.
        segment: number of the segment, from 0.
        action: action held in it.
        candidate: number of the start that it goes back to; each has a seed of its own, the first that of the training.
        forecast: points of accuracy that holding the action to the end is expected to reach, above the step with the
            lowest forecast among those of its segment.
        uncertainty: standard deviation of the result about that forecast, in points.
        gain: points by which it raises the best result that is expected of the steps chosen so far.
    """

    number: int
    parent: int | None
    segment: int
    action: Action
    candidate: int
    forecast: float
    uncertainty: float
    gain: float


@dataclass(frozen=True)
class StepResult:
    """Result of a step.

    Attributes:
        observation: observation after it, `[O]`; None where the training diverged.
        accuracy: validation accuracy at the end of the step, in [0, 1]: that of the state that goes on.
        kept_accuracy: validation accuracy of the network that would be kept after the last segment, in [0, 1], by which
            ended candidates are compared; optional, defaults to `accuracy`.
    """

    observation: NDArray[np.float32] | None
    accuracy: float
    kept_accuracy: float | None = None


@dataclass(frozen=True)
class Outlook:
    """Gain that is expected of several candidates, at the start of a segment.

    Attributes:
        segment: number of the segment, from 0.
        candidates: number of candidates that are trained in it.
        left: length of the training from here to its end, in [0, 1].
        spread: standard deviation of the validation accuracies so far, in points; None for fewer than two.
        chance: the part of it that the number of validation images explains, in points; None likewise.
        gain: points by which the best of these candidates is expected to be above the first choice alone: the share of
            the forecasts' own expectation that has come on other tasks.
        further: points that one more would add, likewise; 0 where there is no other.
    """

    segment: int
    candidates: int
    left: float
    spread: float | None
    chance: float | None
    gain: float
    further: float


class BudgetSearch:
    """Chooses, segment by segment, which candidates of one training go on, and how.

    The same results in any order give the same choices.

    Args:
        forecaster: forecasts by which candidates are chosen.
        budget: updates of all candidates together, in whole trainings, from 1 to 64.
        observation: the forecaster's observation at the start, `[O]`.
        own_choice: action that the first candidate begins with: the agent's.
        images: number of validation images.
        images_between: number of them that accuracies before the end of a training are measured on; optional, defaults
            to all.
        seed: RNG seed of the estimates.
        worth: points of accuracy that a whole further training must be expected to add; candidates that are not,
            for what is left of theirs, do not begin or go on. Optional, defaults to spending the whole budget.
        held: whether every candidate holds its action to the end, and no two begin alike: all that is known of
            recorded trainings under fixed policies.

    Raises:
        InputError: the budget is out of range.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        budget: float,
        observation: NDArray[np.float32],
        own_choice: Action,
        *,
        images: int,
        images_between: int | None = None,
        seed: int = 0,
        worth: float | None = None,
        held: bool = False,
    ) -> None:
        self.forecaster, self.images, self.seed, self.worth, self.held = forecaster, images, seed, worth, held
        self.images_between = images if images_between is None else images_between
        self.counts = counts_within(budget, forecaster.segments)
        """Number of candidates in each segment, at most."""
        self.outlooks: list[Outlook] = []
        """Gains that were expected, one entry for the start of each segment so far."""
        self.steps: list[Step] = []
        self.results: dict[int, StepResult] = {}
        self._actions = forecaster.menu.actions()
        self._begin(observation, own_choice)

    @property
    def due(self) -> list[Step]:
        """Steps that are to be trained now, in any order; empty when all candidates have ended."""
        return [step for step in self.steps if step.number not in self.results]

    @property
    def cost(self) -> float:
        """Updates of all steps so far, in whole trainings."""
        lengths = segment_lengths(self.forecaster.segments)
        return float(sum(lengths[step.segment] for step in self.steps))

    def tell(self, number: int, result: StepResult) -> None:
        """Tell what came of a step; after the last one of a segment those of the next are chosen."""
        self.results[number] = result
        last = self.steps[-1].segment
        if not self.due and last < len(self.counts) - 1:
            self._continue([step for step in self.steps if step.segment == last], self.counts[last + 1])

    def expected_accuracies(self) -> dict[int, float]:
        """Return the accuracy that each finished candidate is expected to have, in [0, 1], by its last step.

        That of validation and the forecast are weighted by their precision, for the best of several accuracies owes
        part of its lead to luck.
        """
        last = len(self.counts) - 1
        ends = [
            step
            for step in self.steps
            if step.segment == last and step.number in self.results and self._observation(step.number) is not None
        ]
        if not ends:
            return {}
        results = [self.results[step.number] for step in ends]
        kept = [result.accuracy if result.kept_accuracy is None else result.kept_accuracy for result in results]
        measured = 100 * np.array(kept)
        told = np.array([step.forecast for step in ends])
        chance = measured * (100 - measured) / max(self.images, 1)
        trust = chance / (chance + np.array([step.uncertainty for step in ends]) ** 2 + 1e-12)  # in the forecast
        told = told - told.mean() + measured.mean()
        expected = trust * told + (1 - trust) * measured
        return {step.number: float(value) / 100 for step, value in zip(ends, expected, strict=True)}

    @property
    def winner(self) -> Step | None:
        """Last step of the candidate to keep; None while candidates run, or where all have diverged."""
        expected = {} if self.due else self.expected_accuracies()
        return self.steps[max(expected, key=expected.__getitem__)] if expected else None

    def path(self, step: Step) -> list[Step]:
        """Return the steps that lead to a step, from the start."""
        return [*([] if step.parent is None else self.path(self.steps[step.parent])), step]

    def name(self, step: Step) -> str:
        """Return the name of a step's candidate: its number, with a letter where one of several ways was taken."""
        if step.parent is None:
            return str(step.candidate)
        ways = [other.number for other in self.steps if other.parent == step.parent]
        way = ascii_lowercase[ways.index(step.number)] if len(ways) > 1 else ""
        return f"{self.name(self.steps[step.parent])}{way}"

    def to_json(self) -> list[dict[str, Any]]:
        """Return all steps with their results, as plain values."""
        return [
            {
                "step": step.number,
                "continues": step.parent,
                "segment": step.segment,
                "action": list(step.action),
                "candidate": step.candidate,
                "name": self.name(step),
                "forecast": round(step.forecast, 3),
                "uncertainty": round(step.uncertainty, 3),
                "gain": round(step.gain, 3),
                "accuracy": None if step.number not in self.results else self.results[step.number].accuracy,
                "kept_accuracy": None if step.number not in self.results else self.results[step.number].kept_accuracy,
                "diverged": step.number in self.results and self._observation(step.number) is None,
            }
            for step in self.steps
        ]

    def outlooks_to_json(self) -> list[dict[str, Any]]:
        """Return what was expected at the start of each segment, as plain values."""
        return [
            {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(outlook).items()}
            for outlook in self.outlooks
        ]

    def _observation(self, number: int) -> NDArray[np.float32] | None:
        return self.results[number].observation

    def _begin(self, observation: NDArray[np.float32], own_choice: Action) -> None:
        """Choose the candidates that begin: first the agent's own."""
        count = self.counts[0]
        copies = 1 if self.held else count
        told = self.forecaster(observation[None])[:, 0]
        options = [(None, action, copy) for copy in range(copies) for action in range(len(self._actions))]
        # Each is a training of its own: nothing but the forecast is in common.
        policies = [self.forecaster.menu.policy(action) for action in self._actions]
        own = policies.index(self.forecaster.menu.policy(own_choice))
        self._add(options, np.tile(told, (1, copies)), np.arange(len(options)), count, first=own)

    def _continue(self, ended: Sequence[Step], count: int) -> None:
        """Choose the continuations of what has not diverged."""
        running = [step for step in ended if self._observation(step.number) is not None]
        if not running:
            return
        observations = [self._observation(step.number) for step in running]
        told = self.forecaster(np.stack([one for one in observations if one is not None]))
        places = [
            (branch, action)
            for branch, step in enumerate(running)
            for action, choice in enumerate(self._actions)
            if not self.held or tuple(choice) == step.action
        ]
        branches, actions = (np.array(column) for column in zip(*places, strict=True))
        options = [(running[branch], action, 0) for branch, action in places]
        self._add(options, np.ascontiguousarray(told[:, branches, actions]), branches, count)

    def _add(
        self,
        options: Sequence[tuple[Step | None, int, int]],
        told: NDArray[np.float64],
        branches: NDArray[np.int64],
        count: int,
        *,
        first: int | None = None,
    ) -> None:
        """Choose among options those whose best one is expected to be highest, one after the other.

        Args:
            options: step that would be continued, index of the action, and number of the copy.
            told: forecasts of each network, `[M, options]`.
            branches: candidate of each option; those of one candidate have part of their luck in common.
            count: number of options to choose.
            first: option that is chosen first; optional, defaults to the one with the highest forecast.
        """
        segment = 0 if options[0][0] is None else options[0][0].segment + 1
        left = sum(segment_lengths(self.forecaster.segments)[segment:])
        apart, chance = self._apart(segment)
        noise, realised = self.forecaster.noise[segment], self.forecaster.realised
        random = np.random.default_rng([self.seed, segment])
        shared = random.normal(size=(DRAWS, int(branches.max()) + 1))[:, branches]
        own = random.normal(size=(DRAWS, len(options)))
        luck = np.sqrt(1 - OWN_SHARE) * shared + np.sqrt(OWN_SHARE) * own
        results = told[random.integers(len(told), size=DRAWS)] + noise * luck
        forecasts, spread = told.mean(axis=0), told.std(axis=0)
        best = np.full(DRAWS, -np.inf)
        unchosen, children = np.ones(len(options), dtype=bool), np.zeros(int(branches.max()) + 1, dtype=int)
        chosen: list[tuple[int, float]] = []
        further = 0.0
        while unchosen.any():
            if not chosen:
                choice = int(forecasts.argmax()) if first is None else first
                gain = 0.0
            else:
                expected = np.maximum(results, best[:, None]).mean(axis=0)
                choice = int(np.where(unchosen, expected, -np.inf).argmax())
                gain = max(float(expected[choice] - best.mean()), 0.0)  # rounding can leave it below 0
                if len(chosen) == count or (self.worth is not None and realised * gain < self.worth * left - 1e-9):
                    further = realised * gain
                    break
            best = np.maximum(best, results[:, choice])
            chosen.append((choice, gain))
            unchosen[choice] = False
            children[branches[choice]] += 1
            if children[branches[choice]] == CHILDREN:
                unchosen &= branches != branches[choice]
        total = realised * sum(gain for _, gain in chosen)
        self.outlooks.append(Outlook(segment, len(chosen), left, apart, chance, total, further))
        lowest = min(forecasts[choice] for choice, _ in chosen)
        for choice, gain in chosen:
            parent, action, _ = options[choice]
            self.steps.append(
                Step(
                    number=len(self.steps),
                    parent=None if parent is None else parent.number,
                    segment=segment,
                    action=tuple(self._actions[action]),
                    candidate=len(self.steps) if parent is None else parent.candidate,
                    forecast=float(forecasts[choice] - lowest),
                    uncertainty=float(np.hypot(spread[choice], noise)),
                    gain=gain,
                )
            )

    def _apart(self, segment: int) -> tuple[float | None, float | None]:
        """Return spread and chance of the validation accuracies before a segment, as in `Outlook`."""
        before = [self.results[step.number] for step in self.steps if step.segment == segment - 1]
        accuracies = np.array([100 * result.accuracy for result in before if result.observation is not None])
        if len(accuracies) < 2:
            return None, None
        chance = float((accuracies * (100 - accuracies)).mean()) / max(self.images_between, 1)
        return float(accuracies.std(ddof=1)), float(np.sqrt(chance))


def counts_within(budget: float, segments: Sequence[float]) -> list[int]:
    """Return the number of candidates in each segment that a budget pays for: after each, fewer go on.

    Args:
        budget: updates of all candidates together, in whole trainings.
        segments: progress at which each segment ends.

    Raises:
        InputError: the budget is not in [1, 64].
    """
    if not 1 <= budget <= MOST_TRAININGS:
        raise InputError(f"a budget must be from 1 to {MOST_TRAININGS} trainings, got {budget:g}")
    lengths = segment_lengths(segments)

    def cost(counts: Sequence[int]) -> float:
        return float(np.dot(counts, lengths))

    def falling(first: float) -> list[int]:
        return [max(1, round(first * KEPT**segment)) for segment in range(len(lengths))]

    counts = [1] * len(lengths)
    for first in np.arange(1, budget / lengths[0] + 0.05, 0.05):
        if cost(falling(first)) <= budget + 1e-9:
            counts = falling(first)
    # What is left buys single steps, the late ones first: they keep a choice open for longest.
    for segment in reversed(range(1, len(counts))):
        wider = [*counts[:segment], counts[segment] + 1, *counts[segment + 1 :]]
        if wider[segment] <= counts[segment - 1] and cost(wider) <= budget + 1e-9:
            counts = wider
    return counts


def search_budget(
    search: BudgetSearch, train_segment: Callable[[Step, State | None], tuple[State, StepResult]]
) -> tuple[Step, State]:
    """Train all candidates in this process, with a function of the caller's own; their states stay in memory.

    Args:
        search: the search, at its start.
        train_segment: trains a step from the state after its parent, or from a new training of the candidate's own
            seed where that is None, which it leaves unchanged; returns the state after it, and what came of it.

    Returns:
        The last step of the candidate to keep, and the state after it.

    Raises:
        InputError: all candidates diverged.
    """
    states: dict[int | None, State] = {}
    while due := search.due:
        before, states = states, {}
        for step in due:
            states[step.number], result = train_segment(step, before.get(step.parent))
            search.tell(step.number, result)
    if (winner := search.winner) is None:
        raise InputError("every candidate of the budget diverged; lower the learning rate")
    return winner, states[winner.number]
