"""Training of one task of the family, as the logs of the studies keep it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmix.agent.agent import Agent
from rlmix.classifier.training.config import Precision
from rlmix.envs import MixPolicyEnv
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.experiments.search.task_family import environment, part_of, task

DIGITS = 4  # decimals of a logged feature

Choose = Callable[[int, NDArray[np.float32]], tuple[int, ...]]  # from a segment's number and an observation


def record_training(
    number: int, seed: int, choose: Choose, precision: Precision, data_root: str | None
) -> dict[str, Any]:
    """Train a task and return what a log keeps of it.

    Args:
        number: number of the task.
        seed: seed of the episode.
        choose: chooses the action of each segment.
        precision: number format of the network.
        data_root: folder of the data set; optional, defaults to `$RLMIX_DATA`, else `~/.cache/rlmix/data`.

    Returns:
        The task and the actions taken; observations before each choice and at the end, of `DEFAULT_FEATURES`;
        validation accuracy after each segment and development accuracy at the end, in [0, 1] and at chance after a
        diverged training.
    """
    env, drawn = shared_environment(part_of(number), precision, data_root), task(number)
    observation, _ = env.reset(seed=seed, options={"task": drawn})
    observations, accuracies, terminated, diverged = [observation], [], False, False
    actions: list[tuple[int, ...]] = []
    while not terminated:
        actions.append(choose(len(actions), observation))
        observation, _, terminated, _, info = env.step(actions[-1])
        observations.append(observation)
        accuracies.append(info["validation_accuracy"])
        diverged = info["diverged"]
    return {
        "actions": actions,
        "task_drawn": drawn.to_json(),
        "observations": [
            [round(float(value), DIGITS) for value in row[: len(DEFAULT_FEATURES)]] for row in observations
        ],
        "validation": [round(accuracy, 5) for accuracy in accuracies],
        "development": round(env.task_trainer.measure(["development"])["development"], 5),
        "diverged": diverged,
    }


def draw_action(agent: Agent, observation: NDArray[np.float32], random: np.random.Generator) -> tuple[int, ...]:
    """Draw an action from an agent's probabilities."""
    return tuple(
        int(random.choice(len(choices), p=np.array([*choices.values()]) / sum(choices.values())))
        for choices in agent.probabilities(observation).values()
    )


@functools.cache
def shared_environment(part: str, precision: Precision, data_root: str | None) -> MixPolicyEnv:
    """Return the environment of a part of the family, built once in each process."""
    return environment(part, precision=precision, data_root=data_root)
