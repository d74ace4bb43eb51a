"""The smallest training that still is one: 20 updates of a small network on 100 digits, some 0.05 s."""

import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from rlmix.classifier.data import Splits, load_dataset, load_image_folder, split
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs import MixPolicyEnv, Task
from rlmix.envs.seeds import training_seed

TRAINING: dict[str, Any] = {
    "model": "tests.envs.tiny:network",
    "batch_size": 20,
    "lr": 0.05,
    "precision": "fp32",
    "device": "cpu",
}
TASKS: dict[str, Any] = {"train_size": (100, 100), "updates": (20, 20)}
VALIDATION = 100


def network(num_classes: int, in_channels: int) -> nn.Module:
    """One convolution; with batch statistics and dropout, so that whatever lives on in a training does so here."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * 4 * 4, num_classes),
    )


PAUSE = "RLMIX_TESTS_PAUSE"  # environment variable: seconds


class Pause(nn.Module):
    """Makes each pass of a training last as long as the environment says, so that it can be disturbed on its way."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            time.sleep(float(os.environ.get(PAUSE, 0)))
        return images


def patient(num_classes: int, in_channels: int) -> nn.Module:
    """The same network, behind a pause."""
    return nn.Sequential(Pause(), network(num_classes, in_channels))


def arguments(**changes: Any) -> dict[str, Any]:
    """Arguments of a tiny `MixPolicyEnv`; `training` and `tasks` are merged with the usual ones."""
    return {
        "validation_size": VALIDATION,
        **changes,
        "training": {**TRAINING, **changes.get("training", {})},
        "tasks": {**TASKS, **changes.get("tasks", {})},
    }


def tiny(**changes: Any) -> MixPolicyEnv:
    """A tiny environment; the digits are read once, which takes longer than an episode."""
    if "dataset" not in changes:
        changes = {"splits": digits(changes.get("validation_size", VALIDATION)), **changes}
    return MixPolicyEnv(**arguments(**changes))


@cache
def digits(validation_size: int = VALIDATION) -> Splits:
    return split(load_dataset("digits"), validation_size=validation_size)


def streamed(folder: Path) -> Splits:
    """30 images of each of two classes, 8 x 8 pixels, which stay in their files."""
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir()
        for number in range(30):
            pixels = np.random.default_rng([label, number]).integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return split(load_image_folder(folder, streamed=True))


def play(
    env: Any, actions: Any, seed: int | None = None
) -> tuple[NDArray[np.float32], list[float], list[dict[str, Any]]]:
    """Observations `[steps + 1, n]`, rewards and infos of an episode; it may end before the actions do."""
    observation, info = env.reset(seed=seed)
    observations, rewards, infos = [observation], [], [info]
    for action in actions:
        observation, reward, terminated, truncated, info = env.step(action)
        assert not truncated
        observations.append(observation)
        rewards.append(reward)
        infos.append(info)
        if terminated:
            break
    return np.array(observations), rewards, infos


def train_under(
    env: MixPolicyEnv, schedule: PolicySchedule, task: Task, seed: int, splits: Sequence[str]
) -> dict[str, float]:
    """Accuracy on the splits after a training under a schedule, from the seed of an episode."""
    env.task_trainer.run(schedule, task, training_seed(seed))
    return env.task_trainer.measure(splits)


def weights(env: MixPolicyEnv) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in env.trainer.network_state().items()}


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all are equal to the last bit, NaN and NaN being equal."""
    return one.keys() == other.keys() and all(
        torch.equal(one[name].reshape(-1).view(torch.uint8), other[name].reshape(-1).view(torch.uint8)) for name in one
    )
