"""The environments are what Gymnasium and Stable-Baselines3 take them for: by id, wrapped, vectorised, learned from."""

import multiprocessing
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers import (
    FlattenObservation,
    NormalizeObservation,
    RecordEpisodeStatistics,
    TimeLimit,
    TransformReward,
)
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_checker import check_env as sb3_check
from stable_baselines3.common.env_util import make_vec_env

from rlmix.envs import Menu, MixPolicyEnv
from tests.envs.tiny import TRAINING, arguments, play, streamed, tiny

IDS = ("rlmix:MixPolicy-v0", "rlmix:MixPolicyFlat-v0")
SMALL_MENU = Menu(
    sources=(("clean", {"clean": 1.0}), ("cutmix half", {"clean": 0.5, "cutmix": 0.5})),
    thresholds=(None,),
    labels=((1.0, 0.0), (1.0, 0.1)),
    lams=("beta(1)",),
)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (IDS[0], {}),
        (IDS[1], {}),
        (IDS[0], {"segments": 1}),
        (IDS[0], {"segments": (0.5, 0.9, 1.0)}),
        (IDS[1], {"menu": SMALL_MENU}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_both_checkers_find_nothing(name: str, changes: dict[str, Any]) -> None:
    env = gym.make(name, render_mode="rgb_array", **arguments(reference_seeds=1, **changes))
    gymnasium_check(env.unwrapped)
    sb3_check(env.unwrapped)


@pytest.mark.parametrize("reward", ["change", "final"])
@pytest.mark.filterwarnings("error")
def test_checkers_find_nothing_with_the_other_rewards(reward: str) -> None:
    env = gym.make(IDS[0], **arguments(reward=reward, reference_seeds=1))
    gymnasium_check(env.unwrapped, skip_render_check=True)
    sb3_check(env.unwrapped, skip_render_check=True)


@pytest.mark.filterwarnings("error")
def test_passive_checker_of_make_finds_nothing_in_an_episode() -> None:
    env = gym.make(IDS[0], **arguments())
    _, rewards, _ = play(env, [[1, 0, 0, 0]] * 4, seed=0)
    assert len(rewards) == 4


def test_flat_actions_are_the_menus_distinct_policies() -> None:
    env = gym.make(IDS[1], **arguments(reward="change", menu=SMALL_MENU))
    assert env.action_space == spaces.Discrete(4)
    grid = tiny(reward="change", menu=SMALL_MENU)
    for flat, action in enumerate(SMALL_MENU.actions()):
        observations, rewards, infos = play(env, [flat] * 4, seed=5)
        expected_observations, expected_rewards, expected_infos = play(grid, [action] * 4, seed=5)
        np.testing.assert_array_equal(observations, expected_observations)
        assert rewards == expected_rewards
        assert infos == expected_infos


@pytest.mark.parametrize("action", [4, -1, 100])
def test_a_flat_action_outside_is_refused(action: int) -> None:
    env = gym.make(IDS[1], disable_env_checker=True, **arguments(reward="change", menu=SMALL_MENU))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"\[0, 3\].*{action}"):
        env.step(action)


# Errors


def test_step_before_reset_and_after_the_end_says_what_to_do() -> None:
    env = tiny(reward="change", segments=1)
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step([0, 0, 0, 0])
    env.reset(seed=0)
    env.step([0, 0, 0, 0])
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step([0, 0, 0, 0])
    env.reset(seed=0)
    env.task_trainer.start(env.tasks.task(0), 0)  # another training
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step([0, 0, 0, 0])


@pytest.mark.parametrize("action", [[7, 0, 0, 0], [-1, 0, 0, 0], [0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 3]])
def test_an_action_outside_the_menu_is_refused(action: list[int]) -> None:
    env = tiny(reward="change")
    env.reset(seed=0)
    with pytest.raises(ValueError, match="action must be"):
        env.step(action)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": "best"}, "relative, standing, change, final.*'best'"),
        ({"segments": 0}, "at least 1, got 0"),
        ({"segments": ()}, r"rise in \(0, 1\]"),
        ({"segments": (0.5, 0.5, 1.0)}, "rise"),
        ({"segments": (0.5, 0.9)}, "rise"),
        ({"segments": (0.0, 1.0)}, "rise"),
        ({"segments": (0.5, 1.5)}, "rise"),
        ({"segments": (float("nan"), 1.0)}, "rise"),
        ({"segments": 21}, "every segment needs an update"),
        ({"segments": (0.01, 1.0)}, "every segment needs an update"),
        ({"segments": (1e-320, 1.0)}, "every segment needs an update"),
        ({"segments": (0.5, 0.51, 1.0)}, "every segment needs an update"),
        ({"segments": (0.05, 1.0), "tasks": {"updates": (10, 1000)}}, "every segment needs an update"),
        ({"reference_seeds": -1}, "reference_seeds.*-1"),
        ({"validation_limit": 0}, "validation_limit.*0"),
        ({"tasks": {"updates": (0, 5)}}, "updates.*0"),
        ({"training": {"lr": -1}}, "lr.*-1"),
        ({"training": {"batch_size": 1}}, "batch_size.*1"),
    ],
)
def test_arguments_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_data_that_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="train_size"):
        tiny(tasks={"train_size": (100_000, 100_000)}).reset(seed=0)
    with pytest.raises(ValueError, match="no_such_data"):
        tiny(dataset="no_such_data").reset(seed=0)
    with pytest.raises(ValueError, match="no_such_model"):
        tiny(training={"model": "no_such_model"}).reset(seed=0)


@pytest.mark.parametrize("updates", [(20, 20), (7, 7), (7, 400)])
@pytest.mark.parametrize("segments", [(0.2, 0.45, 0.7, 1.0), (1 / 3, 2 / 3, 1.0), (0.15, 1.0)])
def test_segments_that_are_accepted_all_train(updates: tuple[int, int], segments: tuple[float, ...]) -> None:
    tiny(tasks={"updates": updates}, segments=segments)
    for length in range(updates[0], updates[1] + 1):
        ends = [0, *(round(end * length) for end in segments)]
        assert all(low < high for low, high in pairwise(ends))


# Vectors and wrappers


def random_actions(steps: int, environments: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(Menu().sizes, size=(steps, environments, 4))


def test_a_vector_gives_what_each_environment_gives_alone() -> None:
    vector = gym.make_vec(IDS[0], num_envs=2, vectorization_mode="sync", **arguments(reward="change"))
    actions = random_actions(4, 2, seed=0)
    observations, _ = vector.reset(seed=[3, 8])
    alone = [play(tiny(reward="change"), actions[:, index], seed) for index, seed in enumerate((3, 8))]
    for step in range(4):
        np.testing.assert_array_equal(observations, [episode[0][step] for episode in alone])
        observations, rewards, terminated, truncated, _ = vector.step(actions[step])
        np.testing.assert_array_equal(rewards, [episode[1][step] for episode in alone])
        assert list(terminated) == [step == 3] * 2
        assert not truncated.any()
    vector.close()


def _make_tiny() -> gym.Env[Any, Any]:
    torch.set_num_threads(1)  # another number adds in another order, which the last bits show
    return gym.make(IDS[0], **arguments(reward="change"))


def test_environments_of_a_vector_play_different_episodes() -> None:
    """As RLlib's runners did not: ray-project/ray#54039."""
    many = gym.make_vec(IDS[0], num_envs=3, vectorization_mode="sync", **arguments(reward="change"))
    seen = [many.reset(seed=seed)[1]["episode_seed"].tolist() for seed in (None, None, 0)]
    assert seen[2] == [0, 1, 2] and len({*seen[0], *seen[1]}) == 6


def test_a_vector_of_processes_gives_the_same_as_this_process() -> None:
    actions = random_actions(4, 1, seed=1)
    vector = AsyncVectorEnv([_make_tiny], context="spawn")  # a fork of a process with torch's threads may hang
    try:
        observation, info = vector.reset(seed=[11])
        expected_observations, expected_rewards, _ = play(tiny(reward="change"), actions[:, 0], seed=11)
        assert info["episode_seed"] == [11]
        for step in range(4):
            np.testing.assert_array_equal(observation[0], expected_observations[step])
            observation, reward, *_ = vector.step(actions[step])
            assert reward[0] == expected_rewards[step]
        np.testing.assert_array_equal(observation[0], expected_observations[4])
    finally:
        vector.close()


def test_the_usual_wrappers_wrap() -> None:
    actions = random_actions(4, 1, seed=2)[:, 0]
    expected_observations, expected_rewards, _ = play(tiny(reward="change"), actions, seed=4)
    base = gym.make(IDS[0], **arguments(reward="change"))
    env = TransformReward(FlattenObservation(RecordEpisodeStatistics(base)), lambda reward: 10 * reward)
    observations, rewards, infos = play(env, actions, seed=4)
    np.testing.assert_array_equal(observations, expected_observations)
    assert rewards == [10 * reward for reward in expected_rewards]
    assert infos[-1]["episode"]["l"] == 4
    assert infos[-1]["episode"]["r"] == pytest.approx(sum(expected_rewards))
    normalised = NormalizeObservation(gym.make(IDS[0], **arguments(reward="change")))
    assert np.isfinite(play(normalised, actions, seed=4)[0]).all()
    limited = TimeLimit(gym.make(IDS[0], **arguments(reward="change")), max_episode_steps=2)
    limited.reset(seed=0)
    assert [limited.step(action)[2:4] for action in actions[:2]] == [(False, False), (False, True)]


# Learners


@pytest.mark.parametrize("name", IDS)
def test_stable_baselines3_learns_by_id(name: str) -> None:
    workers = make_vec_env(name, n_envs=2, env_kwargs=arguments(reward="change"), seed=0)
    A2C("MlpPolicy", workers, n_steps=4, seed=0, device="cpu").learn(16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = PPO("MlpPolicy", workers, n_steps=4, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(16)
    episodes = [episode["l"] for episode in model.ep_info_buffer or ()]
    assert episodes == [4, 4, 4, 4]


def test_sb3_contrib_learns_by_id() -> None:
    contrib = pytest.importorskip("sb3_contrib")
    flat = make_vec_env(IDS[1], n_envs=1, env_kwargs=arguments(reward="change"), seed=0)
    assert contrib.TRPO("MlpPolicy", flat, n_steps=8, batch_size=8, seed=0, device="cpu").learn(8).num_timesteps == 8
    grid = make_vec_env(IDS[0], n_envs=1, env_kwargs=arguments(reward="change"), seed=0)
    recurrent = contrib.RecurrentPPO("MlpLstmPolicy", grid, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu")
    assert recurrent.learn(8).num_timesteps == 8


# Streamed images


def test_closing_ends_the_readers_of_streamed_images(tmp_path: Path) -> None:
    before = set(multiprocessing.active_children())
    training = {**TRAINING, "batch_size": 10, "readers": 2}
    tasks = {"train_size": (20, 20), "updates": (4, 4)}
    env = MixPolicyEnv(training=training, tasks=tasks, segments=2, reward="change", splits=streamed(tmp_path))
    env.close()
    env.reset(seed=0)
    env.step([2, 0, 0, 0])
    assert len(set(multiprocessing.active_children()) - before) == 2
    env.close()
    assert set(multiprocessing.active_children()) <= before


# Pictures


def test_rendering_shows_the_mixed_images() -> None:
    env = tiny(reward="change", render_mode="rgb_array")
    env.reset(seed=0)
    env.step([2, 0, 0, 0])
    picture = env.render()
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.shape == (142, 896, 3)
    assert env.trainer.last_mixed is not None
    pixels = (
        env.trainer.last_mixed[0] * env.trainer.batches.std[:, None, None] + env.trainer.batches.mean[:, None, None]
    )
    for column in range(8):
        shown = picture[2:110, 112 * column + 2 : 112 * column + 110, 0].astype(float) / 255
        expected = pixels[column, 0].clamp(0, 1)
        height, width = expected.shape
        for row, place in ((0, 0), (height // 2, width // 2), (height - 1, width // 3)):
            # the middle of the pixel in the enlarged image
            there = shown[int((row + 0.5) * 108 / height), int((place + 0.5) * 108 / width)]
            assert there == pytest.approx(float(expected[row, place]), abs=0.003)
    assert (picture[112:] == 255).mean() < 0.999, "targets are written underneath"


def test_before_the_first_mixed_batch_the_picture_is_white() -> None:
    env = tiny(reward="change", render_mode="rgb_array")
    pictures = [env.render()]
    env.reset(seed=0)
    pictures.append(env.render())
    for clean_or_mixed in (0, 2):
        env.step([clean_or_mixed, 0, 0, 0])
        pictures.append(env.render())
    for picture in pictures:
        assert picture is not None and picture.shape == (142, 896, 3) and picture.dtype == np.uint8
    assert [bool((picture == 255).all()) for picture in pictures] == [True, True, True, False]


def test_nothing_is_rendered_unasked() -> None:
    env = tiny(reward="change")
    env.reset(seed=0)
    env.step([2, 0, 0, 0])
    assert env.render() is None
    assert MixPolicyEnv.metadata["render_modes"] == ["rgb_array"]
