"""Training of a classifier in an `RLMixEnv` under any choice of thresholds, an epoch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlmix.classifier.mixing.draw import THRESHOLDS
from rlmix.envs import RLMixEnv
from rlmix.envs.rl_mix import Observation

STREAMS = {"random": 0, "frozen": 1}  # draws of one chooser never meet those of another

Choice = NDArray[np.int64]
Choose = Callable[[Observation, int], Choice]  # (observation, number of the update) -> threshold index of each image
Learn = Callable[[float, Observation, bool, bool], None]  # (reward, next observation, terminated, truncated)


def random_thresholds(seed: int, images: int) -> Choose:
    """Return a function that draws thresholds as R-Mix does, the control of every learned agent.

    Args:
        seed: RNG seed; a draw is a function of it and of the update's number alone.
        images: number of images of a batch.
    """

    def choose(observation: Observation, update: int) -> Choice:
        random = np.random.default_rng([seed, STREAMS["random"], update])
        return random.integers(len(THRESHOLDS), size=images)

    return choose


@dataclass(frozen=True)
class Epoch:
    """Results of an epoch.

    Attributes:
        counts: number of choices of each threshold, `[10]`.
        reward: mean reward over its updates.
        loss: mean loss of the mixed batches over its updates, in nats.
        updates: number of its updates.
        updates_done: number of updates of the training at its end.
        diverged: whether a loss was not finite.
        observation: current observation of the environment.
    """

    counts: NDArray[np.int64]
    reward: float
    loss: float
    updates: int
    updates_done: int
    diverged: bool
    observation: Observation

    def line(self) -> dict[str, Any]:
        """Return the epoch's line in a log, as JSON: `counts`, `reward`, `loss`, `updates` and `updates_done`."""
        values = {name: getattr(self, name) for name in ("reward", "loss", "updates", "updates_done")}
        return {"counts": self.counts.tolist(), **values}


def play(env: RLMixEnv, observation: Observation, choose: Choose, learn: Learn | None = None) -> Iterator[Epoch]:
    """Train the environment's classifier to its end, an epoch at a time.

    Between two epochs everything can be saved (`env.state_dict`, `RLMixLearner.state_dict`) and resumed from.

    Args:
        env: environment at the start of an epoch.
        observation: its current observation.
        choose: function that chooses the thresholds.
        learn: function that is given the result of each choice; optional, defaults to no learning.
    """
    while not env.training_over:
        counts, rewards, losses, over = np.zeros(len(THRESHOLDS), dtype=np.int64), [], [], False
        while not over:
            action = choose(observation, env.trainer.updates_done)
            observation, reward, terminated, truncated, info = env.step(action)
            if learn is not None:
                learn(reward, observation, terminated, truncated)
            counts += np.bincount(action, minlength=len(counts))
            rewards.append(reward)
            losses.append(info["loss"])
            over = terminated or truncated
        if not info["training_over"]:
            observation, _ = env.reset()
        yield Epoch(
            counts,
            float(np.mean(rewards)),
            float(np.mean(losses)),
            len(rewards),
            info["updates_done"],
            info["diverged"],
            observation,
        )


def last_quarter(epochs: Sequence[Mapping[str, Any]], updates: int) -> dict[str, Any]:
    """Return the mean reward and each threshold's share over the epochs that end in a training's last quarter.

    Args:
        epochs: lines of `Epoch.line`, at least one; the last one is used where the training ended earlier.
        updates: number of updates of the training.
    """
    last = [epoch for epoch in epochs if epoch["updates_done"] > 0.75 * updates] or epochs[-1:]
    counts = np.sum([epoch["counts"] for epoch in last], axis=0)
    return {
        "reward": float(np.average([epoch["reward"] for epoch in last], weights=[epoch["updates"] for epoch in last])),
        "thresholds": (counts / counts.sum()).tolist(),
    }
