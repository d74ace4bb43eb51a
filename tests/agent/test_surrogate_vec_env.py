"""The surrogate behind Stable-Baselines3's VecEnv: the games of its environment, and agents that learn in it."""

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.evaluation import evaluate_policy

from rlmix.agent.config import PPOConfig
from rlmix.agent.ppo import build_agent
from rlmix.agent.surrogate_vec_env import SurrogateVecEnv
from rlmix.envs.surrogate import SurrogateEnv
from tests.envs import recorded


def test_games_are_those_of_the_single_environment() -> None:
    workers = SurrogateVecEnv(3, model=recorded.model())
    alone = [SurrogateEnv(model=recorded.model()) for _ in range(3)]
    workers.seed(4)
    observations = workers.reset()
    expected = [env.reset(seed=4 + index)[0] for index, env in enumerate(alone)]
    random = np.random.default_rng(0)
    for step in range(1, 8):
        np.testing.assert_allclose(observations, expected, atol=1e-5)
        actions = random.integers(recorded.MENU.sizes, size=(3, 4))
        observations, rewards, dones, infos = workers.step(actions)
        stepped = [env.step(action) for env, action in zip(alone, actions, strict=True)]
        expected = [answer[0] for answer in stepped]
        assert rewards == pytest.approx([answer[1] for answer in stepped], abs=1e-3)
        assert dones.tolist() == [step % 3 == 0] * 3
        if dones.all():
            np.testing.assert_allclose([info["terminal_observation"] for info in infos], expected, atol=1e-5)
            assert [info["task"] for info in infos] == [answer[4]["task"] for answer in stepped]
            expected = [env.reset()[0] for env in alone]


def test_ppo_learns_what_the_process_pays_for() -> None:
    workers = SurrogateVecEnv(32, model=recorded.model(), reward="final")
    config = PPOConfig(episodes_per_update=64, learning_rate=3e-3, start_probability=0.6)
    model = build_agent(config, workers, segments=3, seed=0, start=(1, 0, 0, 0))
    games = SurrogateVecEnv(100, model=recorded.model(), reward="final", split="test")
    games.seed(0)
    before, _ = evaluate_policy(model, games, n_eval_episodes=200, warn=False)
    model.learn(64 * 3 * 12)
    games.seed(0)
    after, _ = evaluate_policy(model, games, n_eval_episodes=200, warn=False)
    # Smoothing alone gains 0.1; the rest is mixing where labels are wrong.
    assert after > before + 0.04


def test_dqn_takes_the_flat_games() -> None:
    workers = SurrogateVecEnv(4, model=recorded.model(), flat=True)
    assert workers.action_space == spaces.Discrete(6)
    model = DQN("MlpPolicy", workers, learning_starts=8, buffer_size=100, train_freq=1, seed=0, device="cpu")
    assert model.learn(48).num_timesteps == 48
    assert [episode["l"] for episode in model.ep_info_buffer or ()] == [3] * 16


def test_what_one_batch_cannot_do_is_refused() -> None:
    workers = SurrogateVecEnv(2, model=recorded.model())
    assert workers.get_attr("render_mode") == [None, None]
    assert workers.env_is_wrapped(object) == [False, False]  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="reward"):
        workers.set_attr("reward", "final")
    with pytest.raises(NotImplementedError, match="render"):
        workers.env_method("render")
