"""An episode is a pure function of its seed and its actions, and is observed as the class docstring specifies."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Menu, MixPolicyEnv
from rlmix.envs.observation import DEFAULT_FEATURES, FEATURES, Feature, TrainingState
from rlmix.envs.seeds import training_seed
from tests.envs.tiny import TRAINING, arguments, digits, play, same_weights, tiny, train_under, weights

POOL = {"train_size": (60, 150), "updates": (12, 30), "label_noise": (0.0, 0.4), "pool": 3}
ACTIONS = [(5, 0, 1, 0), (0, 0, 2, 0), (4, 2, 0, 1), (6, 0, 3, 2)]


def poison(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Let every training's weights stop being numbers at update `at`, in its last update's step: no loss shows it."""
    train = Trainer.train

    def train_then_poison(self: Trainer, *arguments: Any, **keywords: Any) -> Any:
        stats = train(self, *arguments, **keywords)
        if self.updates_done >= at:
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.fill_(math.nan)
        return stats

    monkeypatch.setattr(Trainer, "train", train_then_poison)


# A pure function of seed and actions


@pytest.mark.parametrize("reward", ["relative", "change"])
def test_an_episode_is_a_pure_function_of_seed_and_actions(reward: str) -> None:
    env = tiny(tasks=POOL, reward=reward, reference_seeds=1)
    expected = play(env, ACTIONS, seed=4)
    expected_weights = weights(env)
    other = tiny(tasks=POOL, reward=reward, reference_seeds=1, render_mode="rgb_array")
    play(other, [(6, 0, 0, 0)] * 4, seed=5)
    play(other, ACTIONS[:2], seed=6)  # left in the middle
    if other.references is not None:
        other.references.prepare(other.tasks.task(1))
    train_under(other, PolicySchedule.fixed(MixPolicy({"mixup": 1.0})), other.tasks.task(2), 7, ["validation"])
    other.reset(seed=4)
    torch.manual_seed(999)
    for env_again in (env, other):
        observation, info = env_again.reset(seed=4)
        episode: tuple[list[Any], list[float], list[dict[str, Any]]] = ([observation], [], [info])
        for action in ACTIONS:
            env_again.render()
            torch.rand(3)
            observation, step_reward, *_, info = env_again.step(action)
            for values, value in zip(episode, (observation, step_reward, info), strict=True):
                values.append(value)
        np.testing.assert_array_equal(episode[0], expected[0])
        assert episode[1:] == expected[1:]
        assert same_weights(weights(env_again), expected_weights)


def test_another_seed_or_action_is_another_episode() -> None:
    env = tiny(reward="change")
    play(env, ACTIONS, seed=4)
    first = weights(env)
    play(env, ACTIONS, seed=5)
    assert not same_weights(first, weights(env))
    play(env, [*ACTIONS[:3], (6, 0, 3, 1)], seed=4)
    assert not same_weights(first, weights(env))
    play(env, ACTIONS, seed=4)
    assert same_weights(first, weights(env))


def test_the_callers_random_state_is_left_alone() -> None:
    env = tiny()
    env.reset(seed=0)
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    play(env, ACTIONS, seed=3)
    assert torch.equal(torch.rand(2), expected)


def test_without_a_seed_the_info_names_the_one_that_gives_the_episode_again() -> None:
    env = tiny(tasks=POOL, reward="change")
    env.reset(seed=9)
    unseeded = [play(env, ACTIONS) for _ in range(2)]
    assert unseeded[0][2][0]["episode_seed"] != unseeded[1][2][0]["episode_seed"]
    for observations, rewards, infos in unseeded:
        again = play(tiny(tasks=POOL, reward="change"), ACTIONS, seed=infos[0]["episode_seed"])
        np.testing.assert_array_equal(again[0], observations)
        assert again[1:] == (rewards, infos)
    env.reset(seed=9)
    assert play(env, ACTIONS)[2] == unseeded[0][2], "unseeded episodes follow from the last seed"


def test_given_splits_serve_as_the_named_data_set() -> None:
    expected = play(MixPolicyEnv(**arguments()), ACTIONS, seed=2)
    observations, rewards, infos = play(tiny(splits=digits(), dataset="not read"), ACTIONS, seed=2)
    np.testing.assert_array_equal(observations, expected[0])
    assert (rewards, infos) == expected[1:]


# Segments


@pytest.mark.parametrize(
    ("segments", "ends"),
    [(1, [20]), (4, [5, 10, 15, 20]), (3, [7, 13, 20]), ((0.5, 0.9, 1.0), [10, 18, 20]), ((0.05, 1.0), [1, 20])],
)
def test_segments_end_where_they_should(segments: Any, ends: list[int]) -> None:
    env = tiny(segments=segments, reward="change")
    env.reset(seed=0)
    done = 0
    for end in ends:
        observation, _, terminated, truncated, info = env.step((0, 0, 0, 0))
        assert info["progress"] == end / 20
        assert observation[4] == pytest.approx(end / 20)
        assert info["images"] == (end - done) * TRAINING["batch_size"]
        assert (terminated, truncated) == (end == 20, False)
        assert ("task" in info) == terminated
        done = end


@pytest.mark.parametrize("segments", [1, 4, 3, (0.15, 0.6, 1.0)])
def test_train_under_a_schedule_is_stepping_through_it(segments: Any) -> None:
    env = tiny(tasks=POOL, segments=segments, reward="change")
    actions = ACTIONS[: len(env.segments)]
    _, _, infos = play(env, actions, seed=13)
    stepped = weights(env)
    policies = [env.menu.policy(action) for action in actions]
    schedule = PolicySchedule(tuple(zip(env.segments, policies, strict=True)))
    accuracies = train_under(env, schedule, env.tasks.task(13), 13, ["validation", "development"])
    assert accuracies["validation"] == infos[-1]["validation_accuracy"]
    assert same_weights(weights(env), stepped)
    assert accuracies["development"] == env.trainer.evaluate("development").accuracy
    assert [MixPolicy.from_json(info["policy"]) for info in infos[1:]] == policies


def test_train_under_is_training_by_hand() -> None:
    env = tiny(reward="change")
    task = env.tasks.task(0)
    trainer = Trainer(env.task_trainer.training, digits().draw(100, data_seed=task.data_seed), seed=0)
    trainer.reset(training_seed(21), updates=20)
    policy = MixPolicy({"clean": 0.5, "rmix": 0.5})
    trainer.train(policy, 20)
    found = train_under(env, PolicySchedule.fixed(policy), task, 21, ["validation", "development"])
    assert found == {name: trainer.evaluate(name).accuracy for name in ("validation", "development")}


# Observations


def table() -> list[tuple[str, str, str, float, float]]:
    """Index, name, meaning, low and high of each row of the docstring's observation table."""
    section = (MixPolicyEnv.__doc__ or "").split("## Observation Space")[1].split("## Rewards")[0]
    rows = re.findall(r"^ +\| (\S+) \| (\S*) ?\| (.*?) \| (-?\d+) \| (-?\d+) \|$", section, flags=re.MULTILINE)
    return [(index, name, meaning, float(low), float(high)) for index, name, meaning, low, high in rows]


def test_the_docstrings_observation_table_is_the_space() -> None:
    *features, choices = table()
    assert [row[0] for row in features] == [str(index) for index in range(len(DEFAULT_FEATURES))]
    assert [row[1:] for row in features] == [
        (f"`{name}`", feature.meaning, feature.low, feature.high)
        for name, feature in list(FEATURES.items())[: len(DEFAULT_FEATURES)]
    ]
    assert (choices[0], *choices[3:]) == (f"{len(DEFAULT_FEATURES)}...", 0, 1)
    space = tiny().observation_space
    sizes = Menu().sizes
    assert space.shape == (len(features) + sum(sizes),)
    np.testing.assert_array_equal(space.low, [row[3] for row in features] + [0] * sum(sizes))
    np.testing.assert_array_equal(space.high, [row[4] for row in features] + [1] * sum(sizes))


ENV = tiny(tasks=POOL, reference_seeds=1)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=st.lists(st.tuples(*(st.integers(0, size - 1) for size in Menu().sizes)), min_size=4, max_size=4),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_episode_stays_inside_the_space(actions: list[tuple[int, ...]], seed: int) -> None:
    observations, rewards, infos = play(ENV, actions, seed)
    assert observations.dtype == np.float32
    assert np.isfinite(observations).all()
    assert all(ENV.observation_space.contains(observation) for observation in observations)
    assert np.isfinite(rewards).all()
    assert all(type(reward) is float for reward in rewards)
    sizes = ENV.menu.sizes
    assert not observations[0, len(DEFAULT_FEATURES) :].any()
    for observation, action in zip(observations[1:], actions, strict=True):
        shown = np.split(observation[len(DEFAULT_FEATURES) :], np.cumsum(sizes)[:-1])
        np.testing.assert_array_equal([part.argmax() for part in shown], action)
        np.testing.assert_array_equal([part.sum() for part in shown], [1] * 4)
    assert all(0 <= info["validation_accuracy"] <= 1 for info in infos[1:])


def test_observations_are_what_the_table_says() -> None:
    noisy = {"train_size": (80, 80), "updates": (21, 21), "label_noise": (0.2, 0.2)}
    env = tiny(tasks=noisy, segments=3, validation_limit=40, reward="change")
    actions = [(2, 0, 2, 0), (6, 0, 0, 0), (0, 0, 0, 0)]
    observations, _, _ = play(env, actions, seed=31)
    task = env.tasks.task(31)
    trainer = Trainer(env.task_trainer.training, digits().draw(80, data_seed=task.data_seed, label_noise=0.2), seed=0)
    trainer.reset(training_seed(31), updates=21)
    log_k = math.log(10)
    about_the_task = [math.log10(80) / 5, math.log10(21) / 5, math.log10(1 + 21 * 20 / 80) / 4, 1 / 3]
    at_chance = [0] * 6 + [1, 0.1, 0, 0, 0.1, 0, 0, 0, 0]
    expected = [[*about_the_task, 0, trainer.relative_lr, *at_chance]]
    before = 0.1
    for action, limit in zip(actions, (40, 40, None), strict=True):
        stats = trainer.train(env.menu.policy(action), 7)
        held_out = trainer.evaluate("validation", limit=limit)
        assert held_out.images == (limit or 100)
        kinds: list[float] = []
        for kind in (stats.clean, stats.mixed):
            excess = 0 if kind is None else min(max((kind.loss - kind.target_entropy) / log_k, 0), 4)
            kinds += [0, 0, 0] if kind is None else [1, excess, kind.accuracy]
        gap = 0 if stats.clean is None else stats.clean.accuracy - held_out.accuracy
        probes = [0.0, 0.0, 0.0]
        if stats.clean is not None:
            assert stats.saliency_entropy is not None and stats.gradient_norm is not None
            probes = [1, stats.saliency_entropy, math.log10(stats.gradient_norm) / 5]
        expected.append(
            [
                *about_the_task,
                trainer.updates_done / 21,
                min(trainer.relative_lr, 1),
                *kinds,
                min(held_out.loss / log_k, 4),
                held_out.accuracy,
                held_out.accuracy - before,
                gap,
                held_out.confidence,
                held_out.calibration_error,
                *probes,
            ]
        )
        before = held_out.accuracy
    np.testing.assert_allclose(observations[:, : len(DEFAULT_FEATURES)], expected, rtol=1e-6, atol=1e-7)
    assert observations[2, 6] == 0 and observations[2, 18] == 0, "CutMix on every update: no clean ones"
    assert observations[3, 9] == 0, "clean throughout: no mixed ones"


def test_an_added_feature_is_observed_by_name_and_changes_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def images(state: TrainingState) -> float:
        return 0.0 if state.segment is None else state.segment.images

    monkeypatch.setitem(FEATURES, "images", Feature("images of the last segment", 0.0, 1e3, images))
    expected, _, infos = play(tiny(reward="final"), ACTIONS, seed=3)
    env = tiny(reward="final", features=("progress", "images", "validation_accuracy"))
    observations, _, _ = play(env, ACTIONS, seed=3)
    names = list(FEATURES)
    np.testing.assert_array_equal(observations[:, 0], expected[:, names.index("progress")])
    np.testing.assert_array_equal(observations[:, 1], [0, *(info["images"] for info in infos[1:])])
    np.testing.assert_array_equal(observations[:, 2], expected[:, names.index("validation_accuracy")])
    np.testing.assert_array_equal(observations[:, 3:], expected[:, len(DEFAULT_FEATURES) :])
    assert env.observation_space.contains(observations[-1])
    for wrong in (("progress", "nothing"), ("progress", "progress")):
        with pytest.raises(ValueError, match="features must be different ones of log_train_size"):
            tiny(features=wrong)


# Divergence


@pytest.mark.parametrize("reward", ["relative", "change", "final"])
@pytest.mark.parametrize("lr", [1e6, 1e12])
def test_a_training_that_diverges_ends_at_chance(reward: str, lr: float) -> None:
    env = tiny(reward=reward, training={"lr": lr}, reference_seeds=1)
    for seed in (0, 1):
        observations, rewards, infos = play(env, ACTIONS, seed=seed)
        assert infos[-1]["diverged"]
        assert infos[-1]["validation_accuracy"] == 0.1
        assert len(rewards) < 4
        assert all(env.observation_space.contains(observation) for observation in observations)
        assert np.isfinite(rewards).all()
        assert sum(rewards) >= -10
        if reward != "relative":
            assert sum(rewards) == pytest.approx({"change": 0.0, "final": 0.1}[reward])
        with pytest.raises(RuntimeError, match="reset"):
            env.step(ACTIONS[0])


def test_after_a_divergence_everything_is_as_if_it_had_not_been() -> None:
    env = tiny(reward="change", training={"lr": 1e6})
    _, _, infos = play(env, ACTIONS, seed=0)
    assert infos[-1]["diverged"]
    healthy = tiny(reward="change")
    expected = play(healthy, ACTIONS, seed=0)
    env.trainer.config = healthy.trainer.config
    observations, rewards, infos = play(env, ACTIONS, seed=0)
    np.testing.assert_array_equal(observations, expected[0])
    assert (rewards, infos) == expected[1:]
    assert same_weights(weights(env), weights(healthy))


@pytest.mark.parametrize("reward", ["relative", "change", "final"])
def test_weights_that_are_not_numbers_are_a_divergence_even_where_no_loss_shows_it(
    reward: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = tiny(reward=reward, reference_seeds=1)
    env.reset(seed=0)  # the reference is measured while all is well
    poison(monkeypatch, at=10)
    observations, rewards, infos = play(env, ACTIONS, seed=0)
    assert [info["diverged"] for info in infos[1:]] == [False, True]
    assert infos[-1]["validation_accuracy"] == 0.1
    assert np.isfinite(observations).all()
    assert -10 <= sum(rewards) < 10


def test_a_reference_that_diverges_stands_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        poison(patched, at=10)
        env = tiny(reference_seeds=1)
        env.reset(seed=0)
    _, rewards, infos = play(env, ACTIONS, seed=0)
    # one reference, so that the scale is that of measuring 0.1 on 100 images
    score = (infos[-1]["validation_accuracy"] - 0.1) / math.sqrt(0.1 * 0.9 / 100)
    assert sum(rewards) == pytest.approx(min(max(score, -10), 10))


def test_training_under_a_schedule_that_diverges_is_at_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = PolicySchedule.fixed(MixPolicy({"clean": 1.0}))
    env = MixPolicyEnv(**arguments(training={"lr": 1e6}))
    assert train_under(env, schedule, env.tasks.task(0), 0, ["validation"]) == {"validation": 0.1}
    healthy = tiny()
    poison(monkeypatch, at=20)
    assert train_under(healthy, schedule, healthy.tasks.task(0), 0, ["development"]) == {"development": 0.1}
