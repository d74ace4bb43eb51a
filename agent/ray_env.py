"""Stable-Baselines3 VecEnv whose environments are Ray actors, anywhere on a cluster, and replaced when lost.

A worker's episodes are pure functions of their seeds and actions. A log of kilobytes, kept here, is therefore enough to
replace one that died or hangs: a new actor repeats the running episode, then the last request.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from rlmix.agent.vec_env import EnvServer, Make, RemoteVecEnv, WorkerFailedError, error_line
from rlmix.agent.workers import EpisodeCursor
from rlmix.classifier.errors import DataWarning, InputError

NOTICE_SECONDS = 20.0  # a warning is printed if a worker has not started after this long
START_SECONDS = 600.0  # a worker that has not started after this long has failed
ENDS_EPISODE = ("prepare_reference", "train_under")  # methods of `Worker` that end a running episode


@dataclass(frozen=True)
class WorkerResources:
    """Resources of each worker.

    Attributes:
        cpus: number of CPUs, above 0; a worker has as many threads, at least one.
        gpus: number of GPUs; below 1, the share of one that workers have in common; above 1, a whole number.

    Raises:
        ValueError: one is out of range.
    """

    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.cpus < float("inf"):
            raise InputError(f"a worker's CPUs must be a finite number above 0, got {self.cpus}")
        if not 0 <= self.gpus < float("inf") or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise InputError(f"a worker's GPUs must be a fraction up to 1, or a whole number, got {self.gpus}")

    @property
    def threads(self) -> int:
        """Number of torch's threads in a worker."""
        return max(int(self.cpus), 1)

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")


class RayWorker(EnvServer):
    """A `Worker` in an actor's process.

    Args:
        make: builds the worker from its number and position.
        index: number of the worker.
        position: position to start at.
        threads: number of torch's threads.
    """

    def __init__(self, make: Make, index: int, position: EpisodeCursor, threads: int) -> None:
        torch.set_num_threads(threads)
        self._make = partial(make, index, position)

    def build(self) -> None:
        """Build the worker; in the constructor, Ray would hide an error's own message."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # the driver has read the same data, and said so once
            super().__init__(self._make())


@dataclass
class _Log:
    """Position of a worker, for its replacement.

    Attributes:
        running: the running episode with its actions so far; None before the first reset and after it was ended.
        coming: the episode that the next reset starts.
    """

    running: EpisodeCursor | None
    coming: EpisodeCursor

    def started(self) -> None:
        self.running, self.coming = self.coming, EpisodeCursor(self.coming.stream, self.coming.episode + 1)


class RayVecEnv(RemoteVecEnv):
    """Environments in Ray actors, one in each; Ray must be connected.

    A worker that dies, hangs or raises is replaced: its running episode is repeated and the request sent again, so that
    results stay the same; a line on standard error says so. Inside a placement group that captures its children, as a
    Ray Tune trial's does, the actors are placed in it.

    Args:
        make: builds a worker from its number and position; pickled for the actor.
        positions: start position of each worker.
        share: resources of each worker.
        timeout: seconds after which a worker without an answer has failed; at least the length of the longest training
            under a schedule. The repetition of an episode may take as long for each step.
        max_failures: number of failures of one worker in a row that end the search.
        actor: class of the actors, with the methods of `RayWorker`.

    Raises:
        WorkerFailedError: a worker failed `max_failures` times in a row, here or in any method.
    """

    def __init__(
        self,
        make: Make,
        positions: Sequence[EpisodeCursor],
        *,
        share: WorkerResources,
        timeout: float = 3600.0,
        max_failures: int = 3,
        actor: type = RayWorker,
    ) -> None:
        import ray

        self._ray = ray
        self._make, self._share = make, share
        self._timeout, self._max_failures = timeout, max_failures
        self._logs = [_Log(None, position) for position in positions]
        # An actor that Ray itself restarted would not know its episode.
        self._remote: Any = ray.remote(num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0)(actor)
        started = [self._new_actor(index, position) for index, position in enumerate(positions)]
        self._actors, self._born = [actor for actor, _ in started], [born for _, born in started]
        try:
            super().__init__(len(positions))
        except BaseException:
            self.close()
            raise

    def reset(self) -> NDArray[np.float32]:
        """Start the next episode of every worker; seeds and options are not used."""
        observations = super().reset()
        for log in self._logs:
            log.started()
        return observations

    def step_wait(self) -> VecEnvStepReturn:
        """Return each worker's observation, reward, whether its episode ended, and info."""
        observations, rewards, dones, infos = super().step_wait()
        for log, action, done in zip(self._logs, self._actions, dones, strict=True):
            if done:
                log.started()
            elif log.running is not None:
                log.running = replace(log.running, actions=(*log.running.actions, _plain(action)))
        return observations, rewards, dones, infos

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of workers; a replacement keeps the changes of `Worker`'s own methods only."""
        answers = super().env_method(method_name, *method_args, indices=indices, **method_kwargs)
        for index in self._get_indices(indices):
            if method_name == "seek":
                (self._logs[index].coming,) = method_args
            elif method_name in ENDS_EPISODE:
                self._logs[index].running = None
        return answers

    def close(self) -> None:
        """Kill every worker at once."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []

    def _send(self, index: int, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._actors[index], method).remote(*arguments)

    def _receive(self, index: int, method: str, arguments: tuple[Any, ...], sent: Any) -> Any:
        """Return a worker's answer; where it fails, its replacement's answer to the same request."""
        failures = 0
        while True:
            try:
                if failures:
                    self._replace(index)
                    sent = self._send(index, method, arguments)
                return self._wait(index, sent, self._timeout)
            except self._ray.exceptions.RayError as error:
                failures += 1
                reason = self._reason(index, error)
                if failures == self._max_failures:
                    raise WorkerFailedError(f"worker {index} failed {failures} times in a row: {reason}") from error
                _say(f"worker {index}: {reason}; it is replaced and its episode repeated")

    def _replace(self, index: int) -> None:
        """Start a new actor at the position of the old one."""
        log = self._logs[index]
        self._ray.kill(self._actors[index])
        self._actors[index], self._born[index] = self._new_actor(index, log.running or log.coming)
        if log.running is not None:
            actor = self._actors[index]
            self._wait(index, actor.reset.remote(), self._timeout * (1 + len(log.running.actions)))
            self._wait(index, actor.call.remote("seek", (log.coming,), {}), self._timeout)

    def _new_actor(self, index: int, position: EpisodeCursor) -> tuple[Any, Any]:
        """Return an actor, and a future that is ready once the actor has been placed and built."""
        actor = self._remote.remote(self._make, index, position, self._share.threads)
        return actor, actor.build.remote()

    def _wait(self, index: int, future: Any, timeout: float) -> Any:
        """Return the value of a future; warn where the worker has not started, perhaps for lack of resources.

        Raises:
            RayError: the worker died, raised, was not placed, or did not answer in time.
        """
        ray, born = self._ray, self._born[index]
        if born is not None:
            if not ray.wait([born], timeout=NOTICE_SECONDS)[0]:
                free, total = ray.available_resources(), ray.cluster_resources()
                there = ", ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
                _say(f"worker {index} has not started yet; it needs {self._share}, free in the cluster: {there}")
            ray.get(born, timeout=START_SECONDS)
            self._born[index] = None
        return ray.get(future, timeout=timeout)

    def _reason(self, index: int, error: Exception) -> str:
        """Return the message of a Ray error in one line, that of the worker's own error where there is one."""
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.GetTimeoutError) and self._born[index] is not None:
            return f"did not start within {START_SECONDS:g} seconds: it needs {self._share}, not free in the cluster"
        if isinstance(error, exceptions.GetTimeoutError):
            return f"gave no answer in time ({self._timeout:g} seconds a step)"
        if isinstance(error, exceptions.RayTaskError):
            return error_line(error.cause)
        told = " ".join(str(error).split())
        _, _, cause = told.partition("Worker exit detail: ")  # behind names of the actor that mean nothing to a user
        return f"was lost ({cause or told:.300})"


def _plain(action: NDArray[Any]) -> tuple[int, ...]:
    return tuple(int(index) for index in action)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
