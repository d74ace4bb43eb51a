"""The surrogate: it learns what a process does, and its environments keep the promises of Gymnasium's and SB3's."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from safetensors.torch import load_file, save_file
from scipy import stats
from stable_baselines3.common.env_checker import check_env as sb3_check

from rlmix.classifier.errors import InputError
from rlmix.classifier.files import DamagedFileError
from rlmix.envs import FlatMixPolicyEnv, Menu, MixPolicyEnv
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.rewards import REWARDS
from rlmix.envs.surrogate import SurrogateEnv, SurrogateVectorEnv, standard_normal
from rlmix.envs.surrogate_fit import fit_surrogate
from rlmix.envs.surrogate_model import FILE, SurrogateModel
from rlmix.envs.surrogate_tasks import SPLITS, Recording, split_of
from tests.envs import recorded

IDS = ("rlmix:MixPolicySurrogate-v0", "rlmix:MixPolicySurrogateFlat-v0")
ACCURACY = DEFAULT_FEATURES.index("validation_accuracy")


def play(env: gym.Env[Any, Any], actions: Any, **reset: Any) -> tuple[list[Any], list[float], list[dict[str, Any]]]:
    """Observations, rewards and infos of one episode."""
    observation, _ = env.reset(**reset)
    observations, rewards, infos = [observation], [], []
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
    assert terminated and not truncated
    return observations, rewards, infos


def finals(actions: Any, task: int, count: int = 2000) -> np.ndarray:
    """Final accuracy of many episodes of one task under the same actions."""
    vector = SurrogateVectorEnv(count, model=recorded.model(), reward="final", autoreset_mode="Disabled")
    vector.reset(seed=0, options={"task": task})
    for action in actions:
        _, rewards, *_ = vector.step(np.tile(action, (count, 1)))
    return rewards


# What is learned


@pytest.mark.parametrize("task", [8, 19, 38])
def test_the_model_recovers_a_known_process_on_tasks_that_it_has_not_seen(task: int) -> None:
    assert split_of(task) == "test"
    for action in recorded.MENU.actions():
        found = finals([action] * 3, task)
        expected = 0.1 + sum(recorded.gain(task, action, segment) for segment in range(3))
        assert found.mean() == pytest.approx(expected, abs=0.03)
        assert found.std() == pytest.approx(recorded.STD * 3**0.5, rel=0.5)


def test_the_best_action_of_the_process_is_the_best_in_the_model() -> None:
    for task in (8, 9, 18, 28, 38):
        known = [
            sum(recorded.gain(task, action, segment) for segment in range(3)) for action in recorded.MENU.actions()
        ]
        found = [finals([action] * 3, task, 500).mean() for action in recorded.MENU.actions()]
        assert known[int(np.argmax(found))] >= max(known) - 0.03


def test_what_a_segment_does_not_measure_is_not_shown() -> None:
    env = SurrogateEnv(model=recorded.model())
    observations, _, _ = play(env, [(0, 0, 0, 0), (2, 0, 0, 0), (1, 0, 1, 0)], seed=0)
    shown = {name: [row[place] for row in observations] for place, name in enumerate(DEFAULT_FEATURES)}
    assert shown["clean_seen"] == [0, 1, 0, 1] == shown["probes_seen"]
    assert shown["mixed_seen"] == [0, 0, 1, 1]
    assert [value != 0 for value in shown["clean_accuracy"]] == [False, True, False, True]
    assert [value != 0 for value in shown["mixed_excess_loss"]] == [False, False, True, True]
    assert shown["progress"] == [0, *recorded.SEGMENTS]
    for place in (1, 2, 3):
        accuracy = shown["validation_accuracy"]
        assert shown["validation_change"][place] == pytest.approx(accuracy[place] - accuracy[place - 1], abs=1e-6)
    assert shown["accuracy_gap"][3] == pytest.approx(shown["clean_accuracy"][3] - accuracy[3], abs=1e-6)
    assert observations[3][len(DEFAULT_FEATURES) :].tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert not observations[0][len(DEFAULT_FEATURES) :].any()


def test_test_tasks_are_not_learned_from() -> None:
    changed = [
        recording
        if split_of(recording.task) != "test"
        else Recording(recording.task, np.flip(recording.observations, axis=1).copy(), recording.actions)
        for recording in recorded.recordings()
    ]
    keywords: dict[str, Any] = {"menu": recorded.MENU, "segments": recorded.SEGMENTS, "seed": 0, "provenance": {}}
    again = fit_surrogate(changed, recorded.recorded_tasks(), config=recorded.FAST, **keywords)
    for name, tensor in recorded.model().ensemble.state.items():
        assert torch.equal(again.ensemble.state[name], tensor)


def test_another_seed_fits_other_networks() -> None:
    other = recorded.fit(seed=1)
    assert not torch.equal(other.ensemble.weight0, recorded.model().ensemble.weight0)


def test_nothing_of_split_train_is_refused() -> None:
    keywords: dict[str, Any] = {"menu": recorded.MENU, "segments": recorded.SEGMENTS, "seed": 0, "provenance": {}}
    held_out = [recording for recording in recorded.recordings() if split_of(recording.task) == "test"]
    with pytest.raises(InputError, match="split train"):
        fit_surrogate(held_out, recorded.recorded_tasks(), config=recorded.FAST, **keywords)


# The environments


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.filterwarnings("error")
def test_both_checkers_find_nothing(name: str, reward: str) -> None:
    env = gym.make(name, model=recorded.model(), reward=reward)
    gymnasium_check(env.unwrapped, skip_render_check=True)
    sb3_check(env.unwrapped, skip_render_check=True)


def test_spaces_are_those_of_the_real_environment() -> None:
    features = ("progress", "validation_accuracy", "log_classes")
    options: dict[str, Any] = {"menu": recorded.MENU, "segments": recorded.SEGMENTS, "features": features}
    for name, real in zip(IDS, (MixPolicyEnv, FlatMixPolicyEnv), strict=True):
        env, expected = gym.make(name, model=recorded.model(), **options), real(**options)
        assert env.observation_space == expected.observation_space
        assert env.action_space == expected.action_space


def test_an_episode_is_a_function_of_its_seed_and_actions() -> None:
    actions = [(0, 0, 0, 0), (1, 0, 1, 0), (2, 0, 0, 0)]
    first = play(SurrogateEnv(model=recorded.model()), actions, seed=5)
    env = SurrogateEnv(model=recorded.model())
    play(env, actions, seed=4)
    again = play(env, actions, seed=5)
    np.testing.assert_array_equal(first[0], again[0])
    assert first[1:] == again[1:]
    assert play(env, actions, seed=6)[1] != first[1]
    _, follows = env.reset()
    by_seed = play(SurrogateEnv(model=recorded.model()), actions, seed=follows["episode_seed"])
    np.testing.assert_array_equal(by_seed[0], play_on(env, actions))


def play_on(env: gym.Env[Any, Any], actions: Any) -> list[Any]:
    """Observations of the episode that has begun, after its first."""
    first = env.unwrapped.episodes.observe()[0]  # type: ignore[attr-defined]
    return [first, *(env.step(action)[0] for action in actions)]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("name", IDS)
def test_a_vector_gives_what_each_environment_gives_alone(name: str, mode: AutoresetMode) -> None:
    options: dict[str, Any] = {"model": recorded.model(), "caution": 0.5}
    many = gym.make_vec(name, num_envs=5, vectorization_mode="vector_entry_point", autoreset_mode=mode, **options)
    expected = gym.make_vec(
        name, num_envs=5, vectorization_mode="sync", vector_kwargs={"autoreset_mode": mode}, **options
    )
    assert many.action_space == expected.action_space
    assert many.observation_space == expected.observation_space
    assert many.metadata["autoreset_mode"] == expected.metadata["autoreset_mode"]
    many.action_space.seed(0)
    found, told = many.reset(seed=7), expected.reset(seed=7)
    for _ in range(13):
        np.testing.assert_allclose(found[0], told[0], atol=1e-5)
        for key in ("episode_seed", "task"):
            np.testing.assert_array_equal(found[-1][key], told[-1][key])
        actions = many.action_space.sample()
        found, told = many.step(actions), expected.step(actions)
        np.testing.assert_allclose(found[1], told[1], atol=1e-3)
        np.testing.assert_array_equal(found[2], told[2])
        np.testing.assert_array_equal(found[3], told[3])
        assert ("final_obs" in found[4]) == ("final_obs" in told[4])
        if "final_obs" in told[4]:
            np.testing.assert_allclose(np.stack(found[4]["final_obs"]), np.stack(told[4]["final_obs"]), atol=1e-5)


def test_a_part_of_the_games_can_be_reset() -> None:
    vector = SurrogateVectorEnv(3, model=recorded.model(), autoreset_mode=AutoresetMode.DISABLED)
    before, _ = vector.reset(seed=0)
    vector.action_space.seed(0)
    actions = vector.action_space.sample()
    after, *_ = vector.step(actions)
    mask = np.array([True, False, True])
    reset, _ = vector.reset(seed=[0, None, 2], options={"reset_mask": mask})
    np.testing.assert_array_equal(reset[mask], before[mask])
    np.testing.assert_array_equal(reset[1], after[1])
    for _ in range(2):
        _, _, terminated, *_ = vector.step(actions)
    assert terminated.tolist() == [False, True, False]
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        vector.step(actions)


def test_rewards_are_those_of_the_outcome() -> None:
    actions = [(1, 0, 0, 0)] * 3
    rewards = {name: play(SurrogateEnv(model=recorded.model(), reward=name), actions, seed=3) for name in REWARDS}
    accuracies = [info["validation_accuracy"] for info in rewards["final"][2]]
    task = recorded.recorded_tasks()[rewards["final"][2][0]["task"]]
    scores = [(accuracy - at) / 0.05 for accuracy, at in zip(accuracies, task.reference, strict=True)]
    assert rewards["final"][1] == pytest.approx([0, 0, accuracies[-1]])
    assert rewards["change"][1] == pytest.approx(np.diff([0.1, *accuracies]).tolist(), abs=1e-6)
    assert rewards["standing"][1] == pytest.approx([0, 0, scores[-1]], abs=1e-4)
    assert rewards["relative"][1] == pytest.approx(np.diff([0, *scores]).tolist(), abs=1e-4)


def test_caution_takes_off_what_the_ensemble_does_not_agree_on() -> None:
    actions = [(1, 0, 0, 0)] * 3
    plain = play(SurrogateEnv(model=recorded.model(), reward="final"), actions, seed=3)
    careful = play(SurrogateEnv(model=recorded.model(), reward="final", caution=2.0), actions, seed=3)
    np.testing.assert_array_equal(plain[0], careful[0])
    assert all(less < more for less, more in zip(careful[1], plain[1], strict=True))


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_drawn_from_the_split(split: str) -> None:
    vector = SurrogateVectorEnv(400, model=recorded.model(), split=split)
    _, info = vector.reset(seed=0)
    assert set(info["task"].tolist()) == {task for task in range(recorded.TASKS) if split_of(task) == split}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"menu": Menu()}, "menu.*recorded"),
        ({"segments": 4}, r"segments.*0\.25, 0\.5, 1"),
        ({"split": "dev"}, "train, validation, test.*'dev'"),
        ({"reward": "best"}, "relative, standing, change, final.*'best'"),
        ({"features": ("no_such",)}, "features.*no_such"),
        ({"caution": -1.0}, "caution.*-1"),
        ({"caution": float("nan")}, "caution.*nan"),
    ],
)
def test_arguments_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    for make in (SurrogateEnv, SurrogateVectorEnv):
        with pytest.raises(InputError, match=message):
            make(model=recorded.model(), **changes)


def test_what_cannot_be_played_is_refused() -> None:
    with pytest.raises(InputError, match=r"num_envs.*0"):
        SurrogateVectorEnv(0, model=recorded.model())
    env = SurrogateEnv(model=recorded.model())
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        env.step((0, 0, 0, 0))
    with pytest.raises(InputError, match="recorded task, got 77"):
        env.reset(seed=0, options={"task": 77})
    env.reset(seed=0)
    for action in ((3, 0, 0, 0), (-1, 0, 0, 0), (0, 0, 0)):
        with pytest.raises(ValueError, match="action must be"):
            env.step(action)
    flat = SurrogateEnv(model=recorded.model(), flat=True)
    flat.reset(seed=0)
    with pytest.raises(ValueError, match=r"in \[0, 5\]"):
        flat.step(6)


def test_noise_is_standard_normal_and_a_function_of_seed_and_segment_alone() -> None:
    seeds, segment = torch.arange(400_000), torch.zeros(400_000, dtype=torch.int64)
    noise = standard_normal(seeds, segment, 10)
    assert torch.isfinite(noise).all()
    assert noise.abs().max() < 6
    columns = torch.cat((noise, standard_normal(seeds, segment + 1, 10)), dim=1)
    np.testing.assert_allclose(columns.mean(dim=0), 0, atol=0.01)
    np.testing.assert_allclose(torch.cov(columns.T), np.eye(20), atol=0.01)
    for level in (-2.0, -0.5, 1.0):
        assert float((noise < level).float().mean()) == pytest.approx(stats.norm.cdf(level), abs=1e-3)
    assert torch.equal(standard_normal(seeds[5:9], segment[5:9], 10), noise[5:9])


# Files


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    recorded.model().save(tmp_path)
    again = SurrogateModel.load(tmp_path)
    assert (again.menu, again.segments) == (recorded.MENU, recorded.SEGMENTS)
    assert (again.described, again.provenance) == (recorded.model().described, recorded.model().provenance)
    actions = [(0, 0, 0, 0), (1, 0, 1, 0), (2, 0, 0, 0)]
    found, expected = (play(SurrogateEnv(model=model), actions, seed=5) for model in (tmp_path, recorded.model()))
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]


def test_damaged_files_give_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DamagedFileError, match=FILE):
        SurrogateModel.load(tmp_path)
    recorded.model().save(tmp_path)
    whole = (tmp_path / FILE).read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], b"", whole[:-100] + bytes(99) + b"\1"):
        (tmp_path / FILE).write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=FILE):
            SurrogateModel.load(tmp_path)
    (tmp_path / FILE).write_bytes(whole)
    save_file(load_file(tmp_path / FILE), tmp_path / FILE)  # without what describes it
    with pytest.raises(DamagedFileError, match=FILE):
        SurrogateModel.load(tmp_path)


@pytest.mark.parametrize("name", ["input_spread", "weight1", "linear"])
def test_a_whole_file_whose_parts_do_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    model = recorded.fit(recorded.FAST)
    object.__setattr__(model.ensemble, name, getattr(model.ensemble, name)[:1] * 0)
    model.save(tmp_path)
    with pytest.raises(DamagedFileError, match=f"{name}|spreads"):
        SurrogateModel.load(tmp_path)
