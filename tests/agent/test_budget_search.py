"""Search within a budget: against results that are planted, on trainings that take no time."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.agent.budget import BudgetSearch, Step, StepResult, best_of_normals, counts_within, search_budget
from rlmix.agent.values import ActionValues, Forecaster
from rlmix.classifier.files import DamagedFileError
from rlmix.envs import Menu
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.segments import segment_ends, segment_lengths
from tests.agent.drawn_values import drawn_values

MENU = Menu(
    sources=(("clean", {"clean": 1.0}), ("cutmix half", {"clean": 0.5, "cutmix": 0.5}), ("mixup all", {"mixup": 1.0})),
    thresholds=(None,),
    labels=((1.0, 0.0), (1.0, 0.3)),
    lams=("beta(1)",),
)
ACTIONS = MENU.actions()
SEGMENTS = (0.2, 0.5, 1.0)
OBSERVED = len(DEFAULT_FEATURES) + sum(MENU.sizes)
PROGRESS, ACCURACY = DEFAULT_FEATURES.index("progress"), DEFAULT_FEATURES.index("validation_accuracy")


class Told(torch.nn.Module):
    """At the start a forecast for each action; later the validation accuracy says all."""

    def __init__(self, at_start: Sequence[float]) -> None:
        super().__init__()
        self.at_start = torch.tensor(at_start)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        rows = inputs.view(-1, len(ACTIONS), inputs.shape[1])
        later = (rows[:, :, PROGRESS] > 0).float()
        return (later * 100 * rows[:, :, ACCURACY] + (1 - later) * self.at_start).reshape(-1, 1)


def forecaster(*members: Sequence[float], noise: float = 1.0, realised: float = 1.0) -> Forecaster:
    networks = [Told(member) for member in members]
    effects = torch.zeros(len(ACTIONS), 1)
    values = ActionValues(effects, torch.zeros(OBSERVED), torch.ones(OBSERVED), networks)
    return Forecaster(values, MENU, SEGMENTS, DEFAULT_FEATURES, (noise,) * len(SEGMENTS), {}, realised)


def observation(progress: float, accuracy: float) -> np.ndarray:
    seen = np.zeros(OBSERVED, dtype=np.float32)
    seen[PROGRESS], seen[ACCURACY] = progress, accuracy
    return seen


def begin(
    budget: float,
    *members: Sequence[float],
    own: int = 0,
    noise: float = 1.0,
    images: int = 1000,
    branching: bool | None = None,
) -> BudgetSearch:
    told = forecaster(*members, noise=noise)
    return BudgetSearch(told, budget, observation(0, 0), tuple(ACTIONS[own]), images=images, branching=branching)


def finish(search: BudgetSearch, worth: Sequence[float], *, backwards: bool = False) -> None:
    """Tell results by the worth of each action, averaged over the segments."""
    while due := search.due:
        for step in reversed(due) if backwards else due:
            actions = [ACTIONS.index(one.action) for one in search.path(step)]
            accuracy = float(np.mean([worth[action] for action in actions]))
            search.tell(step.number, StepResult(observation(SEGMENTS[step.segment], accuracy), accuracy))


@given(st.floats(1, 64), st.lists(st.floats(0.02, 1), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_counts_are_paid_for_and_fall(budget: float, lengths: list[float]) -> None:
    ends = np.cumsum(lengths) / np.sum(lengths)
    segments = segment_ends([*ends[:-1].tolist(), 1.0])
    counts = counts_within(budget, segments)
    spent = np.dot(counts, segment_lengths(segments))
    assert spent <= budget + 1e-6 and min(counts) >= 1
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == int(budget + 1e-9), "as many as whole trainings are in it go to the end"
    # Nothing is left that would buy one more step of the first segment.
    assert spent + segment_lengths(segments)[0] > budget


def test_a_budget_of_one_is_one_training_of_the_agents_choice() -> None:
    assert counts_within(1, SEGMENTS) == [1, 1, 1]
    search = begin(1, [0.0, 9.0, 0.0, 0.0, 0.0, 0.0], own=2)
    assert [step.action for step in search.due] == [tuple(ACTIONS[2])]


@pytest.mark.parametrize("budget", [0.5, 65, float("nan")])
def test_a_budget_out_of_range_is_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="from 1 to 64"):
        counts_within(budget, SEGMENTS)


def test_what_turns_out_best_is_kept() -> None:
    told = (9 * np.eye(4, len(ACTIONS))).tolist()  # four networks, each sure of another action
    for best in range(4):
        search = begin(4, *told, noise=0.5)
        assert search.counts[0] >= 4 and search.steps[0].action == tuple(ACTIONS[0])
        worth = [0.5] * len(ACTIONS)
        worth[best] = 0.8
        finish(search, worth)
        assert search.winner is not None and search.cost <= 4
        assert search.path(search.winner)[0].action == tuple(ACTIONS[best])


def finish_with_agent(search: BudgetSearch, worth: Sequence[float], chosen: Sequence[int]) -> None:
    """Tell results by the worth of each action, and the agent's choice for each segment."""
    while due := search.due:
        for step in due:
            accuracy = float(np.mean([worth[ACTIONS.index(one.action)] for one in search.path(step)]))
            own = ACTIONS[chosen[min(step.segment + 1, 2)]]
            seen = observation(SEGMENTS[step.segment], accuracy)
            search.tell(step.number, StepResult(seen, accuracy, own_choice=own))


@pytest.mark.parametrize("budget", [2.5, 3.7, 4, 8])
def test_the_agents_candidate_is_never_given_up_for_others(budget: float) -> None:
    """It looks worst all the time, and its choices are those of the agent, segment by segment."""
    search, chosen = begin(budget, [1.0] * len(ACTIONS), own=2, branching=True), [2, 5, 1]
    assert search.counts[-1] > 1
    finish_with_agent(search, [0.9, 0.3, 0.2, 0.9, 0.9, 0.1], chosen)
    own = [step for step in search.steps if step.candidate == 0]
    assert [step.action for step in own] == [tuple(ACTIONS[place]) for place in chosen] and all(one.own for one in own)
    assert [entry["own"] for entry in search.to_json() if entry["candidate"] == 0] == [True] * 3
    assert [step.number for step in search.path(own[-1])] == [step.number for step in own]
    assert search.winner is not None and not search.winner.own


@pytest.mark.parametrize(("worth", "kept"), [(0.9, True), (0.1, False)])
def test_where_one_candidate_goes_on_the_agents_must_be_expected_to_be_best(worth: float, kept: bool) -> None:
    search = begin(1.5, [1.0] * len(ACTIONS), own=2)
    assert search.counts == [2, 2, 1]
    finish_with_agent(search, [worth if action == 2 else 0.5 for action in range(len(ACTIONS))], [2, 5, 1])
    assert search.winner is not None and search.winner.own is kept
    if kept:  # also where the forecasts would go on otherwise
        assert [step.action for step in search.path(search.winner)] == [tuple(ACTIONS[place]) for place in (2, 5, 1)]


@pytest.mark.parametrize(("agents", "begun", "own"), [(5, 5, True), (1, 4, False), (None, 4, False)])
def test_the_last_gives_way_to_a_branch_of_the_best(agents: int | None, begun: int, own: bool) -> None:
    """It begins with the agent's choice, or, where the best holds that already, with the highest other forecast."""
    told = replace(forecaster([0.0, 1.0, 2.0, 3.0, 4.0, 0.0]), portfolio=tuple(ACTIONS[place] for place in (1, 2, 3)))
    search = BudgetSearch(told, 4, observation(0, 0), tuple(ACTIONS[0]), images=1000, branching=True)
    assert [ACTIONS.index(step.action) for step in search.due] == [0, 1, 2, 3]
    choice = None if agents is None else tuple(ACTIONS[agents])
    for step, accuracy in zip(search.due, [0.3, 0.6, 0.5, 0.4], strict=True):
        # Forecasts are as at the start: the observation has a progress of 0.
        search.tell(step.number, StepResult(observation(0, 0), accuracy, own_choice=choice))
    *others, branch = search.due
    assert [step.candidate for step in others] == [0, 1, 2], "the third is last but for the agent's"
    assert branch == Step(7, 1, 1, tuple(ACTIONS[begun]), 4, float(branch.forecast), 1.0, own)
    assert branch.forecast == pytest.approx([0, 1, 2, 3, 4, 0][begun])
    for step, accuracy in zip(search.due, [0.3, 0.5, 0.4, 0.7], strict=True):
        search.tell(step.number, StepResult(observation(0, 0), accuracy, own_choice=tuple(ACTIONS[2])))
    # The branch goes on as its kind does, and is itself branched.
    assert [step.candidate for step in search.due] == [0, 1, 4, 5] and search.due[-1].parent == branch.number
    assert ACTIONS.index(search.due[2].action) == (2 if own else begun)
    assert search.path(search.due[-1])[0].candidate == 1 and search.cost == pytest.approx(4)


@given(
    st.integers(1, 20),
    st.lists(st.integers(0, 100), min_size=60, max_size=60),
    st.lists(st.integers(0, len(ACTIONS) - 1), min_size=60, max_size=60),
)
@settings(max_examples=60, deadline=None)
def test_branches_keep_to_the_budget(budget: int, accuracies: list[int], chosen: list[int]) -> None:
    search = begin(budget, [1.0] * 6, branching=True)
    while due := search.due:
        assert len(due) == budget and due[0].candidate == 0
        assert len({step.candidate for step in due}) == budget
        assert len({(step.parent, step.action) for step in due if step.parent is not None}) in (budget, 0)
        if due[0].segment:
            before = [step for step in search.steps if step.segment == due[0].segment - 1]
            ended = {step.number for step in before} - {step.parent for step in due}
            branched = {step.parent for step in due if step.candidate != search.steps[step.parent or 0].candidate}
            assert len(ended) == len(branched) == budget // 4

            def accuracy(number: int) -> float:
                return search.results[number].accuracy

            stay = {step.number for step in before if step.candidate} - ended
            assert not stay or max(map(accuracy, ended), default=0) <= min(map(accuracy, stay))
            assert all(accuracy(one) <= min(map(accuracy, branched), default=1) for one in stay - branched)
        for step in due:
            result = accuracies[step.number % 60] / 100
            seen = observation(SEGMENTS[step.segment], result)
            search.tell(step.number, StepResult(seen, result, own_choice=tuple(ACTIONS[chosen[step.number % 60]])))
    assert search.cost == pytest.approx(budget) and (search.outlooks == []) is (budget >= 4)


def test_recorded_trainings_do_not_branch() -> None:
    search = begin(16, [0.0] * 6, branching=False)
    finish(search, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    assert {step.candidate for step in search.ends} == set(range(16)) and len(search.outlooks) == 1


@pytest.mark.parametrize(("budget", "branches"), [(4, False), (8, False), (15.9, False), (16, True), (17.5, True)])
def test_budgets_of_sixteen_and_more_branch(budget: float, branches: bool) -> None:
    search = begin(budget, [0.0] * 6)
    assert search.branching is branches
    finish(search, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    candidates = {step.candidate for step in search.steps}
    assert (len(candidates) > search.counts[0]) is branches and (search.outlooks == []) is branches


def test_a_menu_of_one_policy_has_no_branches() -> None:
    menu = Menu(sources=MENU.sources[:1], thresholds=(None,), labels=((1.0, 0.0),), lams=("beta(1)",))
    values = drawn_values(menu, DEFAULT_FEATURES, members=2, seed=0)
    told = Forecaster(values, menu, SEGMENTS, DEFAULT_FEATURES, (1.0, 1.0, 1.0), {})
    seen = np.zeros(len(DEFAULT_FEATURES) + sum(menu.sizes), np.float32)
    search = BudgetSearch(told, 4, seen, menu.actions()[0], images=1000, branching=True)
    while due := search.due:
        for step in due:
            search.tell(step.number, StepResult(seen, 0.5))
    assert {step.candidate for step in search.ends} == set(range(4))


def test_branches_take_the_place_of_what_has_diverged() -> None:
    search = begin(4, [1.0] * 6, branching=True)
    for step in search.due:
        seen = observation(0.2, 0.1 * step.candidate)
        search.tell(step.number, StepResult(None if step.candidate in (1, 3) else seen, 0.1 * step.candidate))
    assert [(step.candidate, step.parent) for step in search.due] == [(0, 0), (2, 2), (4, 2), (5, 0)]


def test_the_order_of_results_does_not_matter() -> None:
    worth = [0.5, 0.6, 0.7, 0.4, 0.3, 0.65]
    one, other = (begin(2.8, [1.0] * 6, [0.0, 2.0, 0.0, 2.0, 0.0, 2.0]) for _ in range(2))
    finish(one, worth)
    finish(other, worth, backwards=True)
    assert one.to_json() == other.to_json()


def test_candidates_begin_in_the_order_of_the_portfolio_over_and_over() -> None:
    """The agent's own first; actions that are not in it by their forecasts; the agent's own action last."""
    told = replace(forecaster([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), portfolio=tuple(ACTIONS[place] for place in (4, 0, 1)))
    search = BudgetSearch(told, 9, observation(0, 0), tuple(ACTIONS[0]), images=1000)
    begun = [ACTIONS.index(step.action) for step in search.due]
    assert begun == [0, *(4, 1, 5, 3, 2, 0), *(4, 1)]
    assert [step.own for step in search.due] == [True] + 8 * [False]
    assert [step.candidate for step in search.due] == list(range(9))


def test_those_with_the_highest_forecasts_go_on_where_fewer_do() -> None:
    search = begin(2.8, [0.0] * 6)
    assert search.counts == [4, 3, 2]
    accuracies = [0.2, 0.5, 0.3, 0.4]  # which are the forecasts
    for step in search.due:
        search.tell(step.number, StepResult(observation(0.2, accuracies[step.candidate]), accuracies[step.candidate]))
    assert [step.candidate for step in search.due] == [0, 1, 3], "the agent's, and the best two"
    assert [step.forecast for step in search.due] == pytest.approx([20, 50, 40])


@pytest.mark.parametrize("count", [1, 2, 3, 8, 20])
def test_the_best_of_draws_is_that_of_order_statistics(count: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(200_000, count)).max(axis=1)
    assert best_of_normals(count) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / 200_000**0.5)


def test_gains_are_expected_of_how_far_trainings_are_apart() -> None:
    told = forecaster([0.0] * 6, realised=0.5)
    search = BudgetSearch(told, 3, observation(0, 0), tuple(ACTIONS[0]), images=400)
    kept = [0.4, 0.5, 0.6]
    while due := search.due:
        for step in due:
            accuracy = kept[step.candidate]
            search.tell(step.number, StepResult(observation(SEGMENTS[step.segment], accuracy), 0.1, accuracy))
    (outlook,) = search.outlooks
    assert outlook.ended == 3 and outlook.spread == pytest.approx(10)
    # Of 400 images, so many are right by chance: the binomial distribution's, averaged over the candidates, with one
    # image more right and one more wrong.
    shares = [(400 * one + 1) / 402 for one in kept]
    assert outlook.chance == pytest.approx(100 * np.mean([one * (1 - one) / 400 for one in shares]) ** 0.5)
    assert outlook.gain == pytest.approx(0.5 * 10 * 0.8463, abs=0.01)  # E of the best of 3
    assert outlook.further == pytest.approx(0.5 * 10 * (1.0294 - 0.8463), abs=0.01)


@pytest.mark.parametrize(("apart", "worth", "begun"), [(0.0, 0.5, 3), (0.1, 0.3, 8), (0.1, 1.1, 4), (0.1, 9.0, 3)])
def test_another_begins_where_it_is_expected_to_be_worth_it(apart: float, worth: float, begun: int) -> None:
    """Three first; then one at a time, for the rest of the trainings lie in the middle and bring the others closer."""
    search = BudgetSearch(forecaster([0.0] * 6), 8, observation(0, 0), tuple(ACTIONS[0]), images=1000, worth=worth)
    accuracies = [0.5, 0.5 - apart, 0.5 + apart, *[0.5] * 5]
    sizes = []
    while due := search.due:
        sizes.append(len(due))
        for step in due:
            accuracy = accuracies[step.candidate]
            search.tell(step.number, StepResult(observation(SEGMENTS[step.segment], accuracy), accuracy))
    assert sizes == 3 * [3] + 3 * (begun - 3) * [1] and search.cost == pytest.approx(begun)
    assert [outlook.ended for outlook in search.outlooks] == list(range(3, begun + 1))
    assert all(outlook.further >= worth for outlook in search.outlooks[:-1])
    assert begun == 8 or search.outlooks[-1].further < worth
    assert search.winner is not None and accuracies[search.winner.candidate] == 0.5 + apart


@pytest.mark.parametrize("left", [0, 1])
def test_where_most_diverge_no_more_begin(left: int) -> None:
    search = BudgetSearch(forecaster([0.0] * 6), 8, observation(0, 0), tuple(ACTIONS[0]), images=1000, worth=0.0)
    while due := search.due:
        for step in due:
            seen = observation(SEGMENTS[step.segment], 0.5) if step.candidate < left else None
            search.tell(step.number, StepResult(seen, 0.5))
    (outlook,) = search.outlooks
    assert (outlook.ended, outlook.spread) == (left, None) and (search.winner is None) is (left == 0)


def test_the_agent_alone_tells_nothing_of_more() -> None:
    search = begin(1, [0.0] * 6)
    finish(search, [0.5] * 6)
    assert [(one.ended, one.spread, one.gain, one.further) for one in search.outlooks] == [(1, None, 0.0, 0.0)]


def test_the_winners_luck_is_allowed_for() -> None:
    """Few validation images say little: the forecast then weighs more than they do."""

    def winner(images: int) -> Step | None:
        search = begin(4, [0.0] * 6, noise=0.5, images=images)
        finish(search, [0.5] * 6)
        ends = [step for step in search.steps if step.segment == 2]
        search.results[ends[0].number] = StepResult(observation(1, 0.5), 0.50)
        search.results[ends[1].number] = StepResult(observation(1, 0.5), 0.53)
        expected = search.expected_accuracies()
        lead = expected[ends[1].number] - expected[ends[0].number]
        assert 0 < lead < 0.03
        return search.winner if lead > 0.01 else None

    assert winner(100) is None and winner(100_000) is not None


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_of_equals_the_one_with_the_highest_forecast_is_kept(share: float) -> None:
    """Also of those that are right on all images, or on none: that is chance too."""
    search = begin(2, [0.0] * 6, images=10)
    while due := search.due:
        for step in due:
            seen = observation(SEGMENTS[step.segment], 0.6 if step.candidate else 0.5)
            search.tell(step.number, StepResult(seen, 0.5, share))
    assert search.winner is not None and search.winner.candidate == 1


def test_what_has_diverged_does_not_go_on() -> None:
    search = begin(4, [3.0, 2.0, 1.0, 0.0, 0.0, 0.0])
    for step in search.due:
        gone = step.number != 1
        search.tell(step.number, StepResult(None if gone else observation(0.2, 0.5), 0.1 if gone else 0.5))
    assert {step.parent for step in search.due} == {1}
    for step in search.due:
        search.tell(step.number, StepResult(None, 0.1))
    assert search.due == [] and search.winner is None


def test_ended_candidates_are_compared_by_the_network_that_they_would_keep() -> None:
    search = begin(4, [0.0] * 6, noise=0.5, images=100_000)
    finish(search, [0.5] * 6)
    first, second, *_ = (step for step in search.steps if step.segment == 2)
    search.results[first.number] = StepResult(observation(1, 0.5), 0.60)
    search.results[second.number] = StepResult(observation(1, 0.5), 0.55, kept_accuracy=0.65)
    assert search.winner == second
    told = {step["step"]: (step["accuracy"], step["kept_accuracy"]) for step in search.to_json()}
    assert (told[first.number], told[second.number]) == ((0.60, None), (0.55, 0.65))


def test_a_caller_trains_the_steps() -> None:
    trained: list[tuple[int, ...]] = []

    def train_segment(step: Step, state: list[int] | None) -> tuple[list[int], StepResult]:
        after = [*(state or []), ACTIONS.index(step.action)]
        trained.append(tuple(after))
        return after, StepResult(observation(SEGMENTS[step.segment], 0.1 * after[0]), 0.1 * after[0])

    search = begin(3, [0.0] * 6, noise=2.0)
    last, state = search_budget(search, train_segment)
    assert state == [ACTIONS.index(step.action) for step in search.path(last)]
    assert state[0] == max(actions[0] for actions in trained if len(actions) == len(SEGMENTS))
    assert len(trained) == len(search.steps) == sum(search.counts)

    def diverges(step: Step, state: None) -> tuple[None, StepResult]:
        return None, StepResult(None, 0.0)

    with pytest.raises(ValueError, match="diverged"):
        search_budget(begin(2, [0.0] * 6), diverges)


def test_a_state_that_two_continue_may_be_changed_by_both() -> None:
    def train_segment(step: Step, state: list[int] | None) -> tuple[list[int], StepResult]:
        state = state or []
        state.append(step.number)
        return state, StepResult(observation(SEGMENTS[step.segment], 0.5), 0.1 * ACTIONS.index(step.action))

    search = begin(8, [0.0] * 6, branching=True)
    last, state = search_budget(search, train_segment)
    assert len({step.parent for step in search.steps if step.segment}) < 16
    assert state == [step.number for step in search.path(last)]


def test_a_forecaster_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    values = drawn_values(MENU, DEFAULT_FEATURES, members=3, seed=1)
    saved = Forecaster(
        values, MENU, SEGMENTS, DEFAULT_FEATURES, (2.0, 1.0, 0.5), {"tasks": 3}, 0.4, ((0, 0, 1, 0), (2, 0, 0, 0))
    )
    saved.save(tmp_path)
    loaded = Forecaster.load(tmp_path)
    seen = np.stack([observation(0.3, 0.4), observation(0.0, 0.0)])
    assert np.array_equal(saved(seen), loaded(seen)) and loaded(seen).shape == (3, 2, len(ACTIONS))
    assert (loaded.menu, loaded.segments, loaded.features) == (MENU, SEGMENTS, DEFAULT_FEATURES)
    assert (loaded.noise, loaded.provenance) == ((2.0, 1.0, 0.5), {"tasks": 3})
    text = (tmp_path / "forecaster.json").read_text()
    without = json.loads(text)
    assert without.pop("realised") == loaded.realised == 0.4
    (tmp_path / "forecaster.json").write_text(json.dumps(without))
    assert Forecaster.load(tmp_path).realised == 1  # as older files are
    assert loaded.portfolio == saved.portfolio == tuple(tuple(action) for action in without.pop("portfolio"))
    (tmp_path / "forecaster.json").write_text(json.dumps(without))
    assert Forecaster.load(tmp_path).portfolio == ()
    unknown = json.dumps({**json.loads(text), "portfolio": [[7, 0, 0, 0]]})
    for old, new in (
        (text, unknown),
        ('"members": 3', '"members": 4'),
        ("2.0,", "-2.0,"),
        ("0.4", "1.4"),
    ):
        (tmp_path / "forecaster.json").write_text(text.replace(old, new, 1))
        with pytest.raises(DamagedFileError, match="forecaster"):
            Forecaster.load(tmp_path)
