"""From an agent to a schedule and back: greedy episodes, majorities, and what policy holds at which progress."""

from collections import Counter
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmix.agent.baselines import FIXED, balanced_schedules, random_schedule
from rlmix.agent.decisions import (
    Probabilities,
    as_provenance,
    from_agent,
    from_schedule,
    probabilities_of,
    reasons_of,
)
from rlmix.agent.replay import candidates, greedy_schedules, likeliest_schedules, majority, to_schedule
from rlmix.agent.workers import EpisodeCursor, episode_seed
from rlmix.classifier.mixing import MixPolicy, PolicyError, PolicySchedule
from rlmix.envs import DIMENSIONS, Menu
from rlmix.envs.observation import TrainingState, observe
from rlmix.envs.segments import segment_ends
from rlmix.envs.tasks import Task
from tests.agent.stub import SEGMENTS, Stub, stub_workers
from tests.agent.test_agent_files import new_agent
from tests.envs.tiny import play, tiny, train_under, weights

MENU = Menu()
CLEAN, CUTMIX, MIXUP = (MixPolicy({name: 1.0}) for name in ("clean", "cutmix", "mixup"))


def schedule(*policies: MixPolicy) -> PolicySchedule:
    return PolicySchedule(tuple(zip(segment_ends(len(policies)), policies, strict=True)))


def state(progress: float, updates: int) -> TrainingState:
    return TrainingState(Task(100, updates, 0.0, 0), 10, 20, progress, 1.0)


# Majorities and candidates


def test_majority_is_each_segments_most_frequent_policy() -> None:
    rolled = [schedule(CLEAN, CUTMIX, MIXUP), schedule(CUTMIX, CUTMIX, CLEAN), schedule(CUTMIX, MIXUP, MIXUP)]
    assert majority(rolled) == schedule(CUTMIX, CUTMIX, MIXUP)
    assert majority(rolled[:1]) == rolled[0]
    assert majority([schedule(CLEAN, MIXUP), schedule(CUTMIX, CUTMIX)]) == schedule(CLEAN, MIXUP), "the first seen"
    with pytest.raises(ValueError):
        majority([schedule(CLEAN), schedule(CLEAN, CLEAN)])


def test_candidates_are_the_majority_and_the_most_frequent_others() -> None:
    a, b, c = schedule(CLEAN, CUTMIX), schedule(CUTMIX, MIXUP), schedule(MIXUP, MIXUP)
    # majority: CutMix (3 of 6, 2 CLEAN, 1 MIXUP), then MixUp (4 of 6)
    rolled = [a, a, b, b, b, c]
    assert candidates(rolled, 3) == {"majority": b, "greedy 2": a, "greedy 3": c}
    assert candidates(rolled, 2) == {"majority": b, "greedy 2": a}
    assert candidates(rolled, 1) == {"majority": b}
    mixed = [schedule(CLEAN, CUTMIX), schedule(CUTMIX, CLEAN), schedule(CUTMIX, CUTMIX), schedule(CLEAN, CUTMIX)]
    assert candidates(mixed, 9)["majority"] == schedule(CLEAN, CUTMIX)
    assert len(candidates(mixed, 9)) == 3
    assert candidates([a, a], 5) == {"majority": a}


def test_to_schedule_is_one_policy_for_each_segment() -> None:
    actions = [(2, 3, 0, 0), (0, 0, 2, 1), (4, 1, 1, 1)]
    found = to_schedule(actions, MENU, (0.2, 0.5, 1.0))
    assert [until for until, _ in found.segments] == [0.2, 0.5, 1.0]
    assert [policy for _, policy in found.segments] == [MENU.policy(action) for action in actions]
    with pytest.raises(ValueError):
        to_schedule(actions[:2], MENU, (0.2, 0.5, 1.0))


class FixedAgent:
    """Chooses by the first number that it sees."""

    menu, segments = MENU, SEGMENTS

    def choose(self, observation: np.ndarray, allowed: object = None) -> tuple[int, ...]:
        return int(observation[0] * 7), 0, 0, 0

    def probabilities(self, observation: np.ndarray) -> Probabilities:
        return {"source": {"one": float(observation[1]), "other": float(1 - observation[1])}}


def greedy_by_hand(worker: int, episode: int, diverges: int | None) -> tuple[list[tuple[int, ...]], Any, bool]:
    env, agent = Stub(diverges=diverges), FixedAgent()
    observation, _ = env.reset(seed=episode_seed(3, "greedy", worker, episode))
    actions, seen, done, info = [], [], False, {}
    while not done:
        seen.append(observation[1])
        actions.append(agent.choose(observation))
        observation, _, done, _, info = env.step(actions[-1])
    return actions, seen, info["diverged"]


@pytest.mark.parametrize("diverges", [None, 3, 0])
@pytest.mark.parametrize(("workers", "episodes", "rounds"), [(1, 3, 3), (2, 4, 2), (2, 5, 3)])
def test_greedy_schedules_are_what_the_agent_does_on_fresh_seeds(
    workers: int, episodes: int, rounds: int, diverges: int | None
) -> None:
    vector = stub_workers([EpisodeCursor()] * workers, diverges=diverges)
    vector.reset()
    vector.step(np.zeros((workers, 4), dtype=int))  # in the middle of something else
    found = greedy_schedules(FixedAgent(), vector, episodes)  # type: ignore[arg-type]
    rolled = [greedy_by_hand(worker, episode, diverges) for worker in range(workers) for episode in range(rounds)]
    # An episode that diverged in its last segment has as many actions as any other.
    assert found == [to_schedule(actions, MENU, SEGMENTS) for actions, _, diverged in rolled if not diverged]
    for schedule, seen in zip(found, [seen for _, seen, diverged in rolled if not diverged], strict=True):
        shares = [[one["source"]["one"], one["source"]["other"]] for one in probabilities_of(schedule) or []]
        np.testing.assert_allclose(shares, [[share, 1 - share] for share in seen], atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_likeliest_schedules_are_those_drawn_most_often(seed: int) -> None:
    random = np.random.default_rng(seed)
    shares = [random.dirichlet(np.ones(size)) for size in MENU.sizes]
    given = {
        name: dict(zip(MENU.names(name), one.tolist(), strict=True))
        for name, one in zip(DIMENSIONS, shares, strict=True)
    }

    class Once(FixedAgent):
        menu = MENU

        def probabilities(self, _observation: np.ndarray) -> Probabilities:
            return given

    found = likeliest_schedules(Once(), stub_workers([EpisodeCursor()]), 3)  # type: ignore[arg-type]
    drawn = Counter(
        MENU.policy(tuple(int(random.choice(len(one), p=one)) for one in shares)) for _ in range(20_000)
    ).most_common(8)
    often = {policy: count / 20_000 for policy, count in drawn}
    assert list(found) == ["choice 1", "choice 2", "choice 3"]
    for (expected, _), chosen in zip(drawn, found.values(), strict=False):
        ((until, policy),) = chosen.segments
        assert until == 1.0 and probabilities_of(chosen) == as_provenance([given])["probabilities"]
        # Policies of almost the same probability may change places in a sample.
        assert often.get(policy, 0.0) == pytest.approx(often[expected], abs=0.02)


def test_an_episode_that_diverges_at_its_very_end_gives_no_schedule() -> None:
    class LastDiverges(FixedAgent):
        def choose(self, observation: np.ndarray, allowed: object = None) -> tuple[int, ...]:
            self.steps = getattr(self, "steps", 0) + 1
            return (6 if self.steps % 4 == 0 else 1), 0, 0, 0

    assert greedy_schedules(LastDiverges(), stub_workers([EpisodeCursor()], diverges=6), 2) == []  # type: ignore[arg-type]
    assert len(greedy_schedules(LastDiverges(), stub_workers([EpisodeCursor()]), 2)) == 2  # type: ignore[arg-type]


# The probabilities behind a schedule


def with_probabilities(rolled: PolicySchedule, *shares: float) -> PolicySchedule:
    kept = as_provenance([{"source": {"one": share, "other": 1 - share}} for share in shares])
    return PolicySchedule(rolled.segments, kept)


def test_probabilities_of_candidates_are_means_over_the_trainings_that_they_come_from() -> None:
    a, b = schedule(CLEAN, CUTMIX), schedule(MIXUP, CUTMIX)
    rolled = [with_probabilities(a, 0.2, 0.8), with_probabilities(b, 0.9, 0.4), with_probabilities(a, 0.7, 0.6)]
    found = {name: probabilities_of(entry) for name, entry in candidates(rolled, 3).items()}
    # (0.2 + 0.9 + 0.7) / 3 and (0.8 + 0.4 + 0.6) / 3 of the majority, which is the schedule a; b was seen once
    assert found == {
        "majority": [{"source": {"one": 0.6, "other": 0.4}}] * 2,
        "greedy 2": [{"source": {"one": 0.9, "other": 0.1}}, {"source": {"one": 0.4, "other": 0.6}}],
    }
    assert probabilities_of(majority([*rolled, a])) is None, "not known of one of them"
    assert as_provenance([None, {"source": {"one": 1.0}}]) == {}


@pytest.mark.parametrize(
    ("kept", "named"),
    [
        ({"source": {}}, "probabilities must be a list of 2"),
        ([{"source": {"one": 1.0}}], "probabilities must be a list of 2"),
        ([{"source": {"one": 1.0}}, ["source"]], r"probabilities\[1\] must be an object of objects"),
        ([{"source": {"one": 1.0}}, {"lam": {"one": 1.0}}], r"probabilities\[1\] must be an object of objects"),
        ([{"source": 1.0}] * 2, r"probabilities\[0\] must be an object of objects"),
        ([{"source": {"one": 1.0}}, {"source": {"two": 1.0}}], r"probabilities\[1\].source must name the choices"),
        ([{"source": {"one": 1.5}}] * 2, r"probabilities\[0\].source.one must be a number in \[0, 1\], got 1.5"),
        ([{"source": {"one": True}}] * 2, r"source.one must be a number in \[0, 1\], got True"),
        ([{"source": {"one": "<b>"}}] * 2, r"source.one must be a number in \[0, 1\], got '<b>'"),
        ([{"source": {"one": float("nan")}}] * 2, r"source.one must be a number in \[0, 1\], got nan"),
        ([{}, {}], r"probabilities\[0\] must be an object of objects"),
        ([{"source": {}}] * 2, r"probabilities\[0\] must be an object of objects"),
    ],
)
def test_what_is_no_probabilities_is_refused(kept: Any, named: str) -> None:
    with pytest.raises(PolicyError, match=named):
        probabilities_of(PolicySchedule(schedule(CLEAN, CUTMIX).segments, {"probabilities": kept}))


@pytest.mark.parametrize("kept", ["seen", ["seen"], ["seen", 1], {"0": "seen"}])
def test_what_is_no_reasons_is_refused(kept: Any) -> None:
    segments = schedule(CLEAN, CUTMIX).segments
    assert reasons_of(PolicySchedule(segments, {"reasons": [None, "seen"]})) == [None, "seen"]
    with pytest.raises(PolicyError, match=r"provenance.reasons must be 2 texts"):
        reasons_of(PolicySchedule(segments, {"reasons": kept}))


# Following a schedule


@given(
    segments=st.integers(1, 8).map(segment_ends)
    | st.lists(st.integers(1, 99), min_size=1, max_size=6, unique=True).map(
        lambda ends: (*(end / 100 for end in sorted(ends)), 1.0)
    ),
    updates=st.integers(1, 400),
)
def test_follow_agrees_with_the_schedules_own_ends(segments: tuple[float, ...], updates: int) -> None:
    policies = [MixPolicy({"clean": 1.0}, label_smoothing=number / 20) for number in range(len(segments))]
    whole = PolicySchedule(tuple(zip(segments, policies, strict=True)))
    ends = whole.ends(updates)
    assert ends[-1][0] == updates
    choose = from_schedule(whole)
    expected = [policy for (start, _), (end, policy) in pairwise([(0, CLEAN), *ends]) for _ in range(start, end)]
    assert [choose(state(done / updates, updates))[0] for done in range(updates)] == expected


def test_thirds_of_an_odd_number_of_updates() -> None:
    choose = from_schedule(schedule(CLEAN, CUTMIX, MIXUP))
    # round(7 / 3) = 2 and round(14 / 3) = 5
    found = [choose(state(float(Fraction(done, 7)), 7))[0] for done in range(7)]
    assert found == [CLEAN, CLEAN, CUTMIX, CUTMIX, CUTMIX, MIXUP, MIXUP]
    assert choose(state(0.0, 7))[1:] == (None, None, None)


def test_following_a_schedule_is_the_training_that_it_came_from() -> None:
    env = tiny(reward="change", tasks={"updates": (19, 19)}, segments=3)
    actions = [(2, 0, 1, 0), (0, 0, 0, 0), (4, 2, 0, 0)]
    _, _, infos = play(env, actions, seed=3)
    expected = weights(env)
    choose = from_schedule(to_schedule(actions, env.menu, env.segments))
    observation, _ = env.reset(seed=3)
    for info in infos[1:]:
        policy = choose(state(float(observation[4]), 19)).policy
        assert policy.to_json() == info["policy"]
        observation, *_ = env.step(env.menu.find(policy))
    found = weights(env)
    assert all((found[name] == expected[name]).all() for name in expected)


def test_ask_chooses_as_the_agent_at_what_it_would_see() -> None:
    agent = new_agent()
    env = tiny(reward="change")
    env.reset(seed=0)
    for _ in range(3):
        assert env.state is not None
        policy, action, probabilities, reason = from_agent(agent)(env.state)
        assert reason is None
        assert action == agent.choose(observe(env.state, env.menu))
        assert probabilities == agent.probabilities(observe(env.state, env.menu))
        assert policy == agent.menu.policy(action)
        env.step(action)


# Baselines


def test_random_schedules_are_reproducible_and_cover_the_menu() -> None:
    segments = (0.25, 0.5, 1.0)
    assert random_schedule(MENU, segments, 4) == random_schedule(MENU, segments, 4)
    drawn = [random_schedule(MENU, segments, seed) for seed in range(300)]
    assert all(tuple(until for until, _ in entry.segments) == segments for entry in drawn)
    chosen: dict[Any, int] = {}
    for entry in drawn:
        for _, policy in entry.segments:
            source = tuple(policy.shares.items())
            chosen[source] = chosen.get(source, 0) + 1
    # 900 draws out of 7 sources: 129 each, with a standard deviation of 10.5
    assert len(chosen) == 7
    assert all(abs(count - 900 / 7) < 50 for count in chosen.values())


def test_balanced_schedules_hold_every_combination_equally_often_in_every_segment() -> None:
    policies = [MENU.policy(action) for action in MENU.combinations()]
    count = 2 * len(policies) + 5
    schedules = balanced_schedules(MENU, (0.5, 1.0), count, seed=3)
    assert schedules == balanced_schedules(MENU, (0.5, 1.0), count, seed=3)
    assert schedules != balanced_schedules(MENU, (0.5, 1.0), count, seed=4)
    for segment in (0, 1):
        drawn = [schedule.segments[segment][1] for schedule in schedules]
        for policy in policies:
            # Several combinations may have the same effect.
            least = 2 * policies.count(policy)
            assert least <= drawn.count(policy) <= least + policies.count(policy)
    assert any(first[1] != second[1] for first, second in (schedule.segments for schedule in schedules))


def test_fixed_baselines_can_be_chosen_by_the_agent() -> None:
    assert [MENU.find(policy) for policy in FIXED.values()] == [(0, 0, 0, 0), (2, 0, 0, 0)]


def test_an_agent_asked_live_trains_as_the_schedule_of_its_actions_does() -> None:
    agent = new_agent()
    env = tiny(reward="final", segments=agent.segments, menu=agent.menu)
    for seed in (1, 2):
        task = env.tasks.task(seed)
        actions = agent.play(env, task, seed)
        live = weights(env)
        observations, _, _ = play(env, actions, seed=seed)
        assert actions == [agent.choose(observation) for observation in observations[:-1]]
        train_under(env, to_schedule(actions, agent.menu, agent.segments), task, seed, [])
        assert all(torch.equal(tensor, live[name]) for name, tensor in weights(env).items())
