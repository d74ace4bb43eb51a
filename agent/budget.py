"""BudgetSearch: the best training that a budget of several buys.

The first candidate is the agent's own: it chooses throughout. Each further one holds a policy, in the order of the
forecaster's portfolio: policies of which one or another is good. To begin more and end some early has not measured
better (studies/budget). But of sixteen candidates or more, the last quarter by validation gives way after every segment
to branches of the first: they go on from its networks as the agent chooses there, or, where that is held already, under
the other policy with the highest forecast. So does Population Based Training (arXiv 1711.09846), which draws the first
policies and every change. Of fewer it has not measured better. Where the budget is no whole number of trainings,
further ones begin, as far as the rest pays for, and forecasts decide which go on.

Where more is to be spent only as far as it is worth it, three candidates are trained, and then one after the other,
until one more is no longer expected to add enough. An `Outlook` tells what is expected, once trainings have ended: so
many draws from a normal distribution as wide as their validation accuracies, of which a share comes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.config import MOST_TRAININGS
from rlmix.agent.values import Forecaster
from rlmix.classifier.errors import InputError
from rlmix.envs.segments import segment_lengths

State = TypeVar("State")
Action = tuple[int, ...]

FIRST = 3  # candidates that are trained before more is weighed; of fewer little can be told
BRANCHING = 16  # trainings of which a budget branches; with fewer nothing is gained by it (docs/budget.md)
QUARTER = 4  # one in so many candidates gives way to a branch of a better one, after each segment
GRID = np.linspace(-8, 8, 4001)  # of a standard normal distribution


@dataclass(frozen=True)
class Step:
    """One segment of one candidate.

    Attributes:
        number: number of the step, from 0.
        parent: number of the step that it continues; None at the start.
        segment: number of the segment, from 0.
        action: action of the segment.
        candidate: number of the candidate, from 0. Each that begins at the start has a seed of its own, the first that
            of the training; a branch goes on from the state after its parent.
        forecast: points of accuracy that holding the action to the end is expected to reach, less what the agent's
            first choice was expected to reach at the start.
        uncertainty: standard deviation of the result about that forecast, in points.
        own: whether the agent chooses for its candidate: the first one, and branches that begin with its choice.
    """

    number: int
    parent: int | None
    segment: int
    action: Action
    candidate: int
    forecast: float
    uncertainty: float
    own: bool


@dataclass(frozen=True)
class StepResult:
    """Result of a step.

    Attributes:
        observation: observation after it, `[O]`; None where the training diverged.
        accuracy: validation accuracy at the end of the step, in [0, 1]: that of the state that goes on.
        kept_accuracy: validation accuracy of the network that would be kept after the last segment, in [0, 1], by which
            ended candidates are compared; optional, defaults to `accuracy`.
        own_choice: action that the agent chooses next; optional, defaults to the last one for a candidate of its own,
            and for branches to the highest forecast.
    """

    observation: NDArray[np.float32] | None
    accuracy: float
    kept_accuracy: float | None = None
    own_choice: Action | None = None


@dataclass(frozen=True)
class Outlook:
    """Gains that are expected of several trainings, once some have ended.

    Attributes:
        ended: number of trainings that have ended and not diverged.
        spread: standard deviation of their validation accuracies, in points; None for fewer than two.
        chance: the part of it that the number of validation images explains, in points; None likewise.
        gain: points by which the best of them is expected to be above one alone.
        further: points that one more is expected to add.
    """

    ended: int
    spread: float | None
    chance: float | None
    gain: float
    further: float


class _Option(NamedTuple):
    """A step to add: the one it continues, its candidate's number, place of its action, whether the agent chose it."""

    parent: Step | None
    candidate: int
    action: int
    own: bool


class BudgetSearch:
    """Chooses the candidates of one training, and which go on.

    The same results in any order give the same choices.

    Args:
        forecaster: portfolio of which candidates begin, and forecasts by which they go on.
        budget: updates of all candidates together, in whole trainings, from 1 to 64.
        observation: the forecaster's observation at the start, `[O]`.
        own_choice: action that the first candidate begins with: the agent's.
        images: number of validation images.
        worth: points of accuracy that a further training must be expected to add, after the first three; optional,
            defaults to spending the whole budget.
        branching: whether, of four or more, candidates give way to branches of better ones; optional, defaults to
            budgets of 16 and more. Recorded trainings cannot branch.

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
        worth: float | None = None,
        branching: bool | None = None,
    ) -> None:
        self.forecaster, self.images, self.worth = forecaster, images, worth
        self.counts = counts_within(budget, forecaster.segments)
        """Number of candidates in each segment, at most."""
        self.outlooks: list[Outlook] = []
        """Expected gains, one entry for each time that candidates had ended; none where there are branches."""
        self.steps: list[Step] = []
        self.results: dict[int, StepResult] = {}
        self._actions = forecaster.menu.actions()
        wanted = self.counts[-1] >= BRANCHING if branching is None else branching
        self.branching = wanted and max(self.counts[1:], default=0) >= QUARTER and len(self._actions) > 1
        """Whether the worst candidates are replaced by branches of the best."""
        self._told = forecaster(observation[None])[:, 0]
        self._order = self._candidates(self._place(own_choice))
        self._begin(self.counts[0] if worth is None else min(FIRST, self.counts[-1]))

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
        """Tell what came of a step; after the last one that is due the next are chosen."""
        self.results[number] = result
        if not self.due:
            self._go_on()

    def expected_accuracies(self) -> dict[int, float]:
        """Return the accuracy that each finished candidate is expected to have, in [0, 1], by its last step.

        That of validation and the forecast are weighted by their precision, for the best of several accuracies owes
        part of its lead to luck.
        """
        ends = self.ends
        if not ends:
            return {}
        measured = self._kept(ends)
        told = np.array([step.forecast for step in ends])
        chance = self._chance(measured)
        trust = chance / (chance + np.array([step.uncertainty for step in ends]) ** 2)  # in the forecast
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

    def to_json(self) -> list[dict[str, Any]]:
        """Return all steps with their results, as plain values."""
        return [
            {
                "step": step.number,
                "continues": step.parent,
                "segment": step.segment,
                "action": list(step.action),
                "candidate": step.candidate,
                "forecast": round(step.forecast, 3),
                "uncertainty": round(step.uncertainty, 3),
                "own": step.own,
                "accuracy": None if step.number not in self.results else self.results[step.number].accuracy,
                "kept_accuracy": None if step.number not in self.results else self.results[step.number].kept_accuracy,
                "diverged": step.number in self.results and self._observation(step.number) is None,
            }
            for step in self.steps
        ]

    def outlooks_to_json(self) -> list[dict[str, Any]]:
        """Return what was expected each time that candidates had ended, as plain values."""
        return [
            {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(outlook).items()}
            for outlook in self.outlooks
        ]

    @property
    def _begun(self) -> int:
        """Number of candidates so far, branches among them."""
        return 1 + max((step.candidate for step in self.steps), default=-1)

    def _observation(self, number: int) -> NDArray[np.float32] | None:
        return self.results[number].observation

    def _place(self, action: Action) -> int:
        """Return the place among the actions of the one that gives the same policy."""
        menu = self.forecaster.menu
        return self._actions.index(menu.find(menu.policy(action)))

    def _candidates(self, own: int) -> list[int]:
        """Return the first action of each candidate: the agent's, then the portfolio over and over."""
        order = list(dict.fromkeys(self._place(action) for action in self.forecaster.portfolio))
        by_forecast = (-self._told.mean(axis=0)).argsort(kind="stable").tolist()
        order += [place for place in by_forecast if place not in order]
        # What the agent begins with it may well hold.
        order = [*(place for place in order if place != own), own]
        return [own, *(order[number % len(order)] for number in range(self.counts[0] - 1))]

    def _begin(self, count: int) -> None:
        """Let the next candidates begin."""
        begun = self._begun
        actions = self._order[begun : begun + count]
        self._add(
            [_Option(None, begun + place, action, begun + place == 0) for place, action in enumerate(actions)],
            self._told[:, actions],
        )

    def _go_on(self) -> None:
        """Choose what follows: the next segment of those that go on, or one more candidate, or nothing."""
        latest = self.steps[self._latest :]
        segment = latest[0].segment + 1
        running = [step for step in latest if self._observation(step.number) is not None]
        if running and segment < len(self.counts):
            self._continue(running, self.counts[segment] if self.worth is None else len(running))
            return
        if self._begun > sum(step.parent is None for step in self.steps):
            return  # branches are chosen, and alike: no draws to reckon with
        self._look()
        outlook = self.outlooks[-1]
        if self.worth is None or outlook.spread is None or self._begun == self.counts[-1]:
            return
        if outlook.further >= self.worth:
            self._begin(1)

    def _continue(self, running: Sequence[Step], count: int) -> None:
        """Go on with so many candidates: the agent's among several, and those with the highest forecasts.

        Where it branches, the last by validation give way to branches of the first.
        """
        results = [self.results[step.number] for step in running]
        seen = np.stack([result.observation for result in results if result.observation is not None])
        choices = [None if result.own_choice is None else self._place(result.own_choice) for result in results]
        actions = [
            choice if step.own and choice is not None else self._place(step.action)
            for step, choice in zip(running, choices, strict=True)
        ]
        told = self.forecaster(seen)
        means = told.mean(axis=0)

        def stays(place: int) -> bool:
            return running[place].candidate == 0 and count > 1

        in_turn = sorted(range(len(running)), key=lambda place: (not stays(place), -means[place, actions[place]]))
        # Forecasts compare policies, not networks: those that give way, and the best, are told by validation.
        ranked = sorted(in_turn[:count], key=lambda place: -results[place].accuracy)
        branches = count // QUARTER if self.branching else 0
        chosen = sorted(sorted(ranked, key=lambda place: not stays(place))[: count - branches])
        going_on = [
            _Option(running[place], running[place].candidate, actions[place], running[place].own) for place in chosen
        ]
        parents = ranked[: count - len(chosen)] if branches else []  # as many as have given way or diverged
        for number, place in enumerate(parents):
            choice, held = choices[place], actions[place]
            if choice is None or choice == held:
                best_other = next(one for one in (-means[place]).argsort(kind="stable").tolist() if one != held)
                option = _Option(running[place], self._begun + number, best_other, False)
            else:
                option = _Option(running[place], self._begun + number, choice, True)
            going_on.append(option)
        self._add(going_on, told[:, [*chosen, *parents], [option.action for option in going_on]])

    def _add(self, options: Sequence[_Option], told: NDArray[np.float64]) -> None:
        """Add steps.

        Args:
            options: what is trained.
            told: forecasts of each network, `[M, options]`.
        """
        self._latest = len(self.steps)
        for place, (parent, candidate, action, own) in enumerate(options):
            segment = 0 if parent is None else parent.segment + 1
            self.steps.append(
                Step(
                    number=len(self.steps),
                    parent=None if parent is None else parent.number,
                    segment=segment,
                    action=tuple(self._actions[action]),
                    candidate=candidate,
                    forecast=float(told[:, place].mean() - self._told[:, self._order[0]].mean()),
                    uncertainty=float(np.hypot(told[:, place].std(), self.forecaster.noise[segment])),
                    own=own,
                )
            )

    @property
    def ends(self) -> list[Step]:
        """Last steps of the candidates that have ended and not diverged."""
        last = len(self.counts) - 1
        return [
            step
            for step in self.steps
            if step.segment == last and step.number in self.results and self._observation(step.number) is not None
        ]

    def _kept(self, ends: Sequence[Step]) -> NDArray[np.float64]:
        """Return the validation accuracies of the networks that ended candidates would keep, in per cent."""
        results = [self.results[step.number] for step in ends]
        kept = [result.accuracy if result.kept_accuracy is None else result.kept_accuracy for result in results]
        return 100 * np.array(kept)

    def _chance(self, measured: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the variance by chance of validation accuracies in per cent, in points squared.

        Of Laplace's estimates of the shares, for what is right on all images has not been measured without chance.
        """
        images = max(self.images, 1)
        shares = (measured / 100 * images + 1) / (images + 2)
        return 100**2 * shares * (1 - shares) / images

    def _look(self) -> None:
        """Note what the trainings that have ended are expected to gain, and what one more would add."""
        measured = self._kept(self.ends)
        count = len(measured)
        if count < 2:
            self.outlooks.append(Outlook(count, None, None, 0.0, 0.0))
            return
        spread = float(measured.std(ddof=1))
        chance = float(self._chance(measured).mean() ** 0.5)
        width = self.forecaster.realised * spread
        gain, wider = width * best_of_normals(count), width * best_of_normals(count + 1)
        self.outlooks.append(Outlook(count, spread, chance, gain, wider - gain))


def best_of_normals(count: int) -> float:
    """Return the expected highest of so many independent draws from the standard normal distribution."""
    density = np.exp(-(GRID**2) / 2) / np.sqrt(2 * np.pi)
    below = (np.cumsum(density) - density / 2) * (GRID[1] - GRID[0])
    return float(np.trapezoid(GRID * count * density * below ** (count - 1), GRID))


def counts_within(budget: float, segments: Sequence[float]) -> list[int]:
    """Return the number of candidates in each segment that a budget pays for.

    As many as whole trainings are in it go to the end; of the rest further ones begin, each as far as it pays for.

    Args:
        budget: updates of all candidates together, in whole trainings.
        segments: progress at which each segment ends.

    Raises:
        InputError: the budget is not in [1, 64].
    """
    if not 1 <= budget <= MOST_TRAININGS:
        raise InputError(f"a budget must be from 1 to {MOST_TRAININGS} trainings, got {budget:g}")
    reached = np.cumsum(segment_lengths(segments))
    whole = int(budget + 1e-9)
    counts, rest = [whole] * len(reached), budget - whole
    while affordable := int(np.sum(reached <= rest + 1e-9)):
        counts = [count + (segment < affordable) for segment, count in enumerate(counts)]
        rest -= reached[affordable - 1]
    return counts


def search_budget(
    search: BudgetSearch, train_segment: Callable[[Step, State | None], tuple[State, StepResult]]
) -> tuple[Step, State]:
    """Train all candidates in this process, with a function of the caller's own; their states stay in memory.

    Args:
        search: the search, at its start.
        train_segment: trains a step from the state after its parent, or from a new training of the candidate's own
            seed where that is None; returns the state after it, and what came of it. It may change the state that it
            is given: where two steps continue one, the first is given a copy, by `copy.deepcopy`.

    Returns:
        The last step of the candidate to keep, and the state after it.

    Raises:
        InputError: all candidates diverged.
    """
    states: dict[int, State] = {}
    while due := search.due:
        for step in due:
            again = sum(other.parent == step.parent for other in due if other.number > step.number)
            state = None if step.parent is None else states[step.parent] if again else states.pop(step.parent)
            states[step.number], result = train_segment(step, deepcopy(state) if again else state)
            search.tell(step.number, result)
        going_on = {step.parent for step in search.due} | {step.number for step in search.ends}
        states = {number: state for number, state in states.items() if number in going_on}
    if (winner := search.winner) is None:
        raise InputError("every candidate of the budget diverged; lower the learning rate")
    return winner, states[winner.number]
