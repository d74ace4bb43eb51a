"""Search within a budget: against results that are planted, on trainings that take no time."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmix.agent.budget import BudgetSearch, Step, StepResult, counts_within, search_budget
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
    budget: float, *members: Sequence[float], own: int = 0, noise: float = 1.0, images: int = 1000
) -> BudgetSearch:
    told = forecaster(*members, noise=noise)
    return BudgetSearch(told, budget, observation(0, 0), tuple(ACTIONS[own]), images=images)


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
    # Nothing is left that would buy one more step of the first segment alone.
    assert spent + segment_lengths(segments)[0] + sum(segment_lengths(segments)) > budget


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


def test_the_order_of_results_does_not_matter() -> None:
    worth = [0.5, 0.6, 0.7, 0.4, 0.3, 0.65]
    one, other = (begin(3, [1.0] * 6, [0.0, 2.0, 0.0, 2.0, 0.0, 2.0]) for _ in range(2))
    finish(one, worth)
    finish(other, worth, backwards=True)
    assert one.to_json() == other.to_json()


def test_candidates_complement_each_other() -> None:
    """Where one network is right an action is best, where the other is right another; two of a kind gain less."""
    search = begin(2.0, [5.0, 4.9, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 4.0], noise=0.01)
    assert {search.due[0].action, search.due[1].action} == {tuple(ACTIONS[0]), tuple(ACTIONS[5])}
    assert search.due[1].gain == pytest.approx(2.0, abs=0.2)  # 4 in the half of the cases in which it is better


@pytest.mark.parametrize(("worth", "realised", "begin"), [(1.7, 1, 2), (2.3, 1, 1), (0.9, 0.5, 2), (1.1, 0.5, 1)])
def test_what_is_not_worth_its_cost_does_not_begin(worth: float, realised: float, begin: int) -> None:
    """The second one is 4 points better in half of the cases: it adds 2 points, of which a share comes."""
    told = forecaster([5.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0, 4.0], noise=0.01, realised=realised)
    search = BudgetSearch(told, 8, observation(0, 0), tuple(ACTIONS[0]), images=1000, worth=worth)
    assert len(search.due) == begin and search.due[0].action == tuple(ACTIONS[0])
    (outlook,) = search.outlooks
    assert (outlook.candidates, outlook.left, outlook.spread) == (begin, pytest.approx(1), None)
    gain, further = (2 * realised, 0) if begin == 2 else (0, 2 * realised)
    assert (outlook.gain, outlook.further) == (pytest.approx(gain, abs=0.1), pytest.approx(further, abs=0.1))


def test_nothing_is_saved_where_more_costs_nothing() -> None:
    worth = [0.5, 0.6, 0.7, 0.4, 0.3, 0.65]
    told = forecaster([1.0] * 6, [0.0, 2.0, 0.0, 2.0, 0.0, 2.0])
    searches = [
        BudgetSearch(told, 3, observation(0, 0), tuple(ACTIONS[0]), images=1000, worth=least) for least in (None, 0.0)
    ]
    for search in searches:
        finish(search, worth)
    assert searches[0].to_json() == searches[1].to_json()
    assert [outlook.candidates for outlook in searches[0].outlooks] == searches[0].counts


def test_spread_stands_beside_chance() -> None:
    search = begin(2, [0.0] * 6, images=100)
    accuracies = np.linspace(0.4, 0.6, len(search.due)).tolist()
    for step, accuracy in zip(search.due, accuracies, strict=True):
        search.tell(step.number, StepResult(observation(0.2, 0.5), accuracy))
    spread, chance = search.outlooks[1].spread, search.outlooks[1].chance
    assert spread == pytest.approx(100 * np.std(accuracies, ddof=1))
    # Of 100 images, so many are right by chance: the binomial distribution's, averaged over the candidates.
    variances = [100 * accuracy * (1 - accuracy) for accuracy in accuracies]
    assert chance == pytest.approx(np.mean(variances) ** 0.5)


def test_chance_is_that_of_the_images_measured_on_before_the_end() -> None:
    chances = []
    for images, between in ((400, None), (40_000, 400), (40_000, None)):
        told = forecaster([0.0] * 6)
        search = BudgetSearch(
            told, 2, observation(0, 0), tuple(ACTIONS[0]), images=images, images_between=between, seed=1
        )
        for step in search.due:
            search.tell(step.number, StepResult(observation(0.2, 0.5), 0.5))
        chances.append(search.outlooks[1].chance)
    assert chances == pytest.approx([2.5, 2.5, 0.25])


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


def test_candidates_that_go_on_in_two_ways_have_two_names() -> None:
    search = begin(6, [0.0] * 6, noise=2.0)
    finish(search, [0.5, 0.6, 0.7, 0.4, 0.3, 0.65])
    names = {step.number: search.name(step) for step in search.steps}
    assert [step["name"] for step in search.to_json()] == list(names.values())
    for step in search.steps:
        ways = [other.number for other in search.steps if other.parent == step.number]
        expected = [names[step.number]] if len(ways) == 1 else [f"{names[step.number]}{letter}" for letter in "ab"]
        assert [names[way] for way in ways] == expected[: len(ways)]
        assert step.parent is not None or names[step.number] == str(step.candidate)
    assert any(len(name) > 1 for name in names.values())


def test_no_gain_is_below_zero() -> None:
    """What can add nothing adds 0, not the rounding of two sums in other orders."""
    told = forecaster([50.0, 0.0, 0.0, 0.0, 0.0, 0.0], noise=0.7)
    for seed in range(20):
        search = BudgetSearch(told, 4, observation(0, 0), tuple(ACTIONS[0]), images=1000, seed=seed, held=True)
        assert not np.signbit([step.gain for step in search.steps]).any()
        assert not np.signbit([search.outlooks[0].gain, search.outlooks[0].further]).any()


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


def test_a_forecaster_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    values = drawn_values(MENU, DEFAULT_FEATURES, members=3, seed=1)
    saved = Forecaster(values, MENU, SEGMENTS, DEFAULT_FEATURES, (2.0, 1.0, 0.5), {"tasks": 3}, 0.4)
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
    for old, new in (
        ('"members": 3', '"members": 4'),
        ("2.0,", "-2.0,"),
        ("0.4", "1.4"),
    ):
        (tmp_path / "forecaster.json").write_text(text.replace(old, new, 1))
        with pytest.raises(DamagedFileError, match="forecaster"):
            Forecaster.load(tmp_path)
