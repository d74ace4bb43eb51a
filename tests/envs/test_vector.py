"""`MixPolicyVectorEnv` is N single environments: spaces, seeds, rewards, infos, ends."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlmix.classifier.training.lockstep import Lockstep
from rlmix.envs import MixPolicyVectorEnv
from rlmix.envs.mix_policy import FlatMixPolicyEnv, MixPolicyEnv
from rlmix.envs.observation import OBSERVATION_V2
from tests.envs.tiny import digits

# Without batch statistics or dropout rounding stays small, and accuracies are the same.
OPTIONS: dict[str, Any] = {
    "training": {"model": "lenet", "batch_size": 20, "lr": 0.02, "precision": "fp32", "device": "cpu"},
    "tasks": {"train_size": (60, 100), "updates": (8, 12), "label_noise": (0.0, 0.3), "pool": 3, "lr_scale": (0.5, 2)},
    "segments": 2,
    "reference_seeds": 1,
}
COUNT = 3


def vector(count: int = COUNT, **changes: Any) -> MixPolicyVectorEnv:
    return MixPolicyVectorEnv(count, splits=digits(), **{**OPTIONS, **changes})


def singles(
    kind: type[MixPolicyEnv] = MixPolicyEnv, mode: Any = AutoresetMode.NEXT_STEP, **changes: Any
) -> SyncVectorEnv:
    build = lambda: kind(splits=digits(), **{**OPTIONS, **changes})  # noqa: E731
    return SyncVectorEnv([build] * COUNT, autoreset_mode=mode)


def assert_same(found: Any, expected: Any) -> None:
    """Values of a step or reset agree but for rounding, infos but for nothing else."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, np.ndarray) and expected.dtype != object:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    elif isinstance(expected, np.ndarray | tuple | list):
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-3) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
@pytest.mark.parametrize("flat", [False, True])
def test_it_is_n_single_environments(mode: AutoresetMode, flat: bool) -> None:
    features = [*OBSERVATION_V2] if flat else ["progress", "validation_loss", "clean_excess_loss", "saliency_entropy"]
    found = vector(flat=flat, autoreset_mode=mode, features=features)
    expected = singles(FlatMixPolicyEnv if flat else MixPolicyEnv, mode, features=features)
    assert found.single_observation_space == expected.single_observation_space
    assert found.single_action_space == expected.single_action_space
    assert found.metadata["autoreset_mode"] == mode
    assert "autoreset_mode" not in MixPolicyEnv.metadata or found.metadata is not MixPolicyEnv.metadata
    assert_same(found.reset(seed=[4, 5, 6]), expected.reset(seed=[4, 5, 6]))
    found.action_space.seed(1)
    for _ in range(3):  # past the end of an episode
        actions = found.action_space.sample()
        assert_same(found.step(actions), expected.step(actions))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_all_that_train_in_a_step_train_in_lockstep(mode: AutoresetMode, monkeypatch: pytest.MonkeyPatch) -> None:
    together, train = [], Lockstep.train

    def noted(self: Lockstep, policies: Any, updates: Any, **options: Any) -> Any:
        together.append(sum(policy is not None for policy in policies))
        return train(self, policies, updates, **options)

    monkeypatch.setattr(Lockstep, "train", noted)
    envs = vector(autoreset_mode=mode)
    envs.reset(seed=1)
    for _ in range(6):  # episodes of two segments
        envs.step(envs.action_space.sample())
    assert together == [COUNT, COUNT, COUNT if mode == AutoresetMode.SAME_STEP else 0] * 2


@pytest.mark.filterwarnings("error")
def test_each_environment_passes_gymnasiums_checks() -> None:
    from gymnasium.utils.env_checker import check_env

    envs = vector(2)
    for env in envs.envs:
        check_env(env, skip_render_check=True)
    observations, _ = envs.reset(seed=0)
    assert envs.observation_space.contains(observations)
    observations, rewards, terminations, truncations, _ = envs.step(envs.action_space.sample())
    assert envs.observation_space.contains(observations)
    assert rewards.dtype == np.float64 and terminations.dtype == truncations.dtype == np.bool_
    envs.close()


def test_an_episode_is_a_function_of_its_seed_and_actions() -> None:
    envs = vector()
    actions = [
        np.array([[3, 0, 0, 0], [4, 1, 1, 2], [0, 0, 2, 1]]),
        np.array([[6, 0, 0, 0], [1, 0, 0, 1], [5, 2, 0, 0]]),
    ]
    episodes = []
    for _ in range(2):
        first, _ = envs.reset(seed=8)
        episodes.append([first, *(value for action in actions for value in envs.step(action)[:2])])
    assert all(np.array_equal(one, other) for one, other in zip(*episodes, strict=True))


def test_the_reference_is_measured_once_for_all() -> None:
    envs = vector(tasks={**OPTIONS["tasks"], "pool": 1})
    envs.reset(seed=0)
    references = {id(env.references) for env in envs.envs}  # type: ignore[attr-defined]
    assert len(references) == 1
    (curve,) = envs.envs[0].references._curves.values()  # type: ignore[attr-defined]
    single = MixPolicyEnv(splits=digits(), **{**OPTIONS, "tasks": {**OPTIONS["tasks"], "pool": 1}})
    single.reset(seed=0)
    assert single.references is not None
    assert curve == next(iter(single.references._curves.values()))


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="num_envs must be at least 1, got 0"):
        vector(0)
    envs = vector(2, training={**OPTIONS["training"], "optimizer": "adamw"})
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="optimiser sgd"):
        envs.step(envs.action_space.sample())
    with pytest.raises(RuntimeError, match="call reset"):
        vector(2).step(gym.vector.utils.batch_space(envs.single_action_space, 2).sample())
