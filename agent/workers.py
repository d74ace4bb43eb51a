"""Environment workers: the order of their episodes, and trainings that they are sent."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from rlmix.agent.agent import Agent
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs import MixPolicyEnv, Task
from rlmix.envs.seeds import derive_seed, training_seed

STREAMS = ("search", "greedy", "candidates", "contest")  # no two share a seed


def episode_seed(search_seed: int, stream: str, *numbers: int) -> int:
    """Return the seed of an episode or training, which depends on nothing but the arguments.

    Args:
        search_seed: RNG seed of the search.
        stream: purpose of the training, one of `STREAMS`.
        numbers: numbers that tell it from others of its purpose, such as those of its worker and of the episode.
    """
    return derive_seed(search_seed, STREAMS.index(stream), *numbers)


@dataclass(frozen=True)
class EpisodeCursor:
    """Position of a worker in its sequence of episodes.

    Attributes:
        stream: purpose of the episodes, one of `STREAMS`.
        episode: number of the running episode, from 0.
        actions: actions taken in it so far.
    """

    stream: str = "search"
    episode: int = 0
    actions: tuple[tuple[int, ...], ...] = ()


class Worker(gym.Wrapper[NDArray[np.float32], Any, NDArray[np.float32], Any]):
    """Wrapper that gives each episode its seed, so that a search can be resumed, and runs trainings under schedules.

    Args:
        env: the environment.
        search_seed: RNG seed of the search.
        index: number of this worker.
        position: position to start at; the actions of an unfinished episode are repeated at the first reset.
    """

    def __init__(self, env: MixPolicyEnv, search_seed: int, index: int, position: EpisodeCursor) -> None:
        super().__init__(env)
        self.mix_policy_env = env
        self._search_seed, self._index = search_seed, index
        self.seek(position)

    def seek(self, position: EpisodeCursor) -> None:
        """Set the position at which the next reset starts."""
        self._stream, self._next_episode, self._repeat = position.stream, position.episode, position.actions

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next episode of the stream; a seed, if given, is not used."""
        own = episode_seed(self._search_seed, self._stream, self._index, self._next_episode)
        self._next_episode += 1
        observation, info = self.env.reset(seed=own, options=options)
        for action in self._repeat:
            observation, *_ = self.env.step(action)
        self._repeat = ()
        return observation, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return the environment's picture of its last mixed images; None before the first."""
        return None if self.mix_policy_env.trainer.last_mixed is None else self.mix_policy_env.render()

    def rendered_policy(self) -> str:
        """Return the policy of that picture's images, in words."""
        return str(self.mix_policy_env.trainer.last_mixed_policy)

    def prepare_reference(self, tasks: Sequence[int]) -> None:
        """Measure the reference on task `tasks[index]`, if there is one."""
        if self._index < len(tasks):
            env = self.mix_policy_env
            if env.references is not None:
                env.references.prepare(env.tasks.task(tasks[self._index]))

    def train_under(self, jobs: Sequence["Job"]) -> dict[str, float] | None:
        """Run `jobs[index]` and return accuracy by split; None where there is no such job."""
        if self._index >= len(jobs):
            return None
        job, trainer = jobs[self._index], self.mix_policy_env.task_trainer
        task = Task(**job.task)
        if job.agent is None:
            assert job.schedule is not None
            trainer.run(PolicySchedule.from_json(job.schedule), task, training_seed(job.seed))
        else:
            agent = Agent.from_files(job.agent)
            agent.play(agent.environment(trainer, task), task, job.seed)
        return trainer.measure(job.splits)


@dataclass(frozen=True)
class Job:
    """A training under a schedule, or under an agent that chooses at every segment, as it is sent to a worker.

    Attributes:
        name: name of the contestant or candidate.
        schedule: `PolicySchedule.to_json()`; None for an agent.
        task: fields of the `Task`.
        seed: RNG seed of the training.
        splits: splits to measure at the end.
        agent: `Agent.to_files()`; None for a schedule.
    """

    name: str
    schedule: dict[str, Any] | None
    task: dict[str, Any]
    seed: int
    splits: tuple[str, ...]
    agent: dict[str, bytes] | None = None

    @classmethod
    def from_chooser(
        cls, name: str, chooser: PolicySchedule | Agent, task: Task, seed: int, splits: Sequence[str]
    ) -> "Job":
        """Return the job that trains under a schedule or an agent."""
        if isinstance(chooser, Agent):
            return cls(name, None, task.to_json(), seed, tuple(splits), chooser.to_files())
        return cls(name, PolicySchedule(chooser.segments).to_json(), task.to_json(), seed, tuple(splits))


def make_worker(environment: dict[str, Any], search_seed: int, index: int, position: EpisodeCursor) -> Worker:
    """Return a worker with an environment of its own.

    Args:
        environment: arguments of `MixPolicyEnv`.
        search_seed: RNG seed of the search.
        index: number of the worker.
        position: position to start at.
    """
    return Worker(MixPolicyEnv(**environment), search_seed, index, position)


def run_jobs(workers: VecEnv, jobs: Sequence[Job]) -> Iterator[tuple[Job, dict[str, float]]]:
    """Run every job, one on each worker at a time; yield each with its accuracies, in order."""
    for start in range(0, len(jobs), workers.num_envs):
        together = jobs[start : start + workers.num_envs]
        results = workers.env_method("train_under", together)
        yield from zip(together, results, strict=False)
