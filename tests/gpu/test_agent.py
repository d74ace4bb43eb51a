"""Agents and their environments on a GPU: processes that share it, the same choices, a loop of one's own."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from rlmix import RLMix
from rlmix.agent.agent import Agent
from rlmix.agent.vec_env import ProcessVecEnv
from rlmix.agent.workers import EpisodeCursor, make_worker
from rlmix.envs import MixPolicyEnv, Task, TaskTrainer
from tests.agent.loops import batches, network, sgd
from tests.envs.tiny import arguments, digits
from tests.gpu.conftest import CUDA, there

TASK = Task(100, 24, 0.2, 3)


def environment(device: torch.device) -> dict[str, Any]:
    """Arguments of a small environment with the search network, which reads the digits itself, in any process.

    bf16 on a GPU: other processes have no `full_float32`.
    """
    training = {"model": "search", "device": str(device), "precision": "auto"}
    return arguments(training=training, tasks={"updates": (8, 8)}, reference_seeds=1)


@pytest.mark.parametrize("place", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_a_search_has_its_environments_on_the_device(place: str) -> None:
    device = there(place)
    if device.type == "cuda":
        torch.ones(3, device=device).sum().item()  # a parent that has used the GPU already
    positions = [EpisodeCursor(), EpisodeCursor()]
    workers = ProcessVecEnv(partial(make_worker, environment(device), 5), positions, processes=2)
    try:
        here = [make_worker(environment(device), 5, index, position) for index, position in enumerate(positions)]
        expected = np.stack([worker.reset()[0] for worker in here])
        assert np.array_equal(workers.reset(), expected)
        actions = np.array([[3, 0, 0, 0], [4, 1, 1, 2]])
        observations, rewards, _, _ = workers.step(actions)
        steps = [worker.step(action) for worker, action in zip(here, actions, strict=True)]
        assert np.array_equal(observations, np.stack([step[0] for step in steps]))
        assert rewards.tolist() == [step[1] for step in steps]
        model = PPO("MlpPolicy", workers, n_steps=4, batch_size=8, gamma=1.0, device="cpu", seed=0).learn(8)
        assert model.num_timesteps == 8
        assert all(torch.isfinite(parameter).all() for parameter in model.policy.parameters())
    finally:
        workers.close()


def test_the_shipped_agent_chooses_the_same_again(device: torch.device) -> None:
    agent = Agent.load("shipped")
    choices = []
    for place in (device, device, torch.device("cpu")):
        trainer = TaskTrainer(training={"device": str(place), "precision": "fp32"}, splits=digits())
        choices.append(agent.play(agent.environment(trainer, TASK), TASK, 7))
    assert choices[0] == choices[1]
    # Later ones see measured numbers, which differ in their last bits and may stand at an edge.
    assert choices[0][0] == choices[2][0]


def test_an_environment_gives_the_same_episode_again(device: torch.device) -> None:
    env = MixPolicyEnv(splits=digits(), **environment(device))
    episodes = []
    for _ in range(2):
        first, _ = env.reset(seed=4)
        episodes.append([first, *(env.step(action)[0] for action in [(4, 0, 0, 0), (3, 2, 1, 1), (6, 0, 3, 2)])])
    assert all(np.array_equal(one, other) for one, other in zip(*episodes, strict=True))


@pytest.mark.parametrize("policy", ["shipped", "rmix", "cutmix"])
def test_a_loop_of_ones_own(policy: str, device: torch.device, tmp_path: Path) -> None:
    losses = []
    for place in (torch.device("cpu"), device):
        model = network().to(place)
        optimizer = sgd(model)
        mix = RLMix(policy, num_classes=10, total_updates=20, train_size=200, seed=3)
        for images, labels in batches(20):
            mixed, targets = mix(images.to(place), labels.to(place), model)
            assert mixed.device.type == targets.device.type == place.type
            loss = mix.loss(model(mixed), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if mix.due:
                mix.observe(val_accuracy=0.5, val_loss=1.5)
        losses.append(float(loss.detach()))
        mix.save(tmp_path / f"{place.type}.json")
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
