"""Stable-Baselines3 VecEnvs whose environments live in other processes."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from rlmix.agent.workers import EpisodeCursor, Worker
from rlmix.classifier.errors import DataWarning, InputError

MAX_HELD = 64  # environments of a process: more answers at a time than a pipe holds would deadlock
PATIENCE = 10.0  # seconds for a process to end before it is killed
Make = Callable[[int, EpisodeCursor], Worker]  # builds a worker from its number and position, in the worker's process


class WorkerFailedError(ConnectionError):
    """A worker raised, was killed or did not answer; the message holds its own error, or the signal."""


def error_line(error: BaseException) -> str:
    """Return an error in one line: its message, with its type unless it is a user's mistake."""
    message = " ".join(str(error).split())
    if isinstance(error, InputError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


class EnvServer:
    """Server of a `Worker` in its own process; `RemoteVecEnv` calls the methods by name.

    Args:
        worker: the worker.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def spaces(self) -> tuple[gym.Space[Any], gym.Space[Any]]:
        """Return the spaces of observations and actions."""
        return self._worker.observation_space, self._worker.action_space

    def reset(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start the next episode."""
        return self._worker.reset()

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, dict[str, Any]]:
        """Make a step; at an episode's end the next one is reset, as Stable-Baselines3 requires."""
        observation, reward, terminated, truncated, info = self._worker.step(action)
        info["TimeLimit.truncated"] = truncated and not terminated
        if terminated or truncated:
            info["terminal_observation"] = observation
            observation, _ = self._worker.reset()
        return observation, float(reward), terminated or truncated, info

    def attribute(self, name: str) -> Any:
        """Return an attribute of the worker or of what it wraps."""
        return self._worker.get_wrapper_attr(name)

    def call(self, name: str, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """Call a method of the worker or of what it wraps."""
        return self._worker.get_wrapper_attr(name)(*arguments, **keywords)

    def is_wrapped(self, wrapper: type[gym.Wrapper[Any, Any, Any, Any]]) -> bool:
        """Return whether the environment has a wrapper of this class."""
        return is_wrapped(self._worker, wrapper)


class RemoteVecEnv(VecEnv, ABC):
    """Environments in other processes; each request names a method of `EnvServer`.

    Args:
        count: number of environments; all must be ready for requests.
    """

    def __init__(self, count: int) -> None:
        self._everybody = range(count)
        super().__init__(count, *self._call("spaces", indices=0)[0])

    @abstractmethod
    def _send(self, index: int, method: str, arguments: tuple[Any, ...]) -> Any:
        """Send a request to environment `index`; return what `_receive` needs to get the answer."""

    @abstractmethod
    def _receive(self, index: int, method: str, arguments: tuple[Any, ...], sent: Any) -> Any:
        """Wait for an answer; called in the order of the requests to an environment."""

    def reset(self) -> NDArray[np.float32]:
        """Start the next episode of every environment; seeds and options are not used."""
        observations, self.reset_infos = zip(*self._call("reset"), strict=True)  # type: ignore[assignment]
        return np.stack(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Send every environment its action."""
        self._actions = actions
        self._sent = [self._send(index, "step", (action,)) for index, action in enumerate(actions)]

    def step_wait(self) -> VecEnvStepReturn:
        """Return each environment's observation, reward, whether its episode ended, and info."""
        answers = [
            self._receive(index, "step", (action,), sent)
            for index, (action, sent) in enumerate(zip(self._actions, self._sent, strict=True))
        ]
        observations, rewards, dones, infos = zip(*answers, strict=True)
        return np.stack(observations), np.stack(rewards), np.stack(dones), list(infos)

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method of environments."""
        return self._call("call", method_name, method_args, method_kwargs, indices=indices)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of environments."""
        return self._call("attribute", attr_name, indices=indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Not supported: an environment is defined by its constructor, so that it can be rebuilt.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(f"{attr_name} cannot be set in workers: give it to what makes them")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None
    ) -> list[bool]:
        """Return whether each environment has a wrapper of this class."""
        return self._call("is_wrapped", wrapper_class, indices=indices)

    def _get_indices(self, indices: VecEnvIndices) -> list[int]:
        return list(self._everybody) if indices is None else list(super()._get_indices(indices))

    def _call(self, method: str, *arguments: Any, indices: VecEnvIndices = None) -> list[Any]:
        asked = self._get_indices(indices)
        sent = [self._send(index, method, arguments) for index in asked]
        return [self._receive(index, method, arguments, each) for index, each in zip(asked, sent, strict=True)]


class ProcessVecEnv(RemoteVecEnv):
    """Environments in processes of this machine, one or several in each; processes are spawned, not forked.

    Results do not depend on the number of processes.

    Args:
        make: builds a worker from its number and position; pickled for the processes.
        positions: start position of each environment.
        processes: number of processes, each with one thread; environments are dealt to them in turn.

    Raises:
        ValueError: a process would hold more than `MAX_HELD` environments.
        WorkerFailedError: an environment raised, or a process was killed, here or in any method. The traceback of an
            error that is no `InputError` is on standard error.
    """

    def __init__(self, make: Make, positions: Sequence[EpisodeCursor], *, processes: int) -> None:
        if len(positions) > MAX_HELD * processes:
            raise InputError(f"a process holds at most {MAX_HELD} environments, got {len(positions)} for {processes}")
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self.processes: list[Any] = []
        for first in range(processes):
            ours, theirs = context.Pipe()
            held = dict(list(enumerate(positions))[first::processes])
            # As a daemon it ends with this process, however that ends.
            process = context.Process(target=_serve, args=(theirs, make, held), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self.processes.append(process)
        try:
            super().__init__(len(positions))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process at once; one that does not end within `PATIENCE` is killed."""
        for process in self.processes:
            process.terminate()
        for process, pipe in zip(self.processes, self._pipes, strict=True):
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
            pipe.close()

    def _send(self, index: int, method: str, arguments: tuple[Any, ...]) -> None:
        with suppress(ConnectionError):  # `_receive` tells why the process has ended
            self._pipes[index % len(self._pipes)].send((index, method, arguments))

    def _receive(self, index: int, _method: str, _arguments: tuple[Any, ...], _sent: None) -> Any:
        held_by = index % len(self._pipes)
        try:
            # A process answers in the order of the requests.
            answer = self._pipes[held_by].recv()
        except (EOFError, ConnectionError):
            raise WorkerFailedError(f"worker {index}'s process {_ending(self.processes[held_by])}") from None
        if isinstance(answer, _Failure):
            raise WorkerFailedError(f"worker {answer.index} failed: {answer.reason}")
        return answer


def _exit(*_: Any) -> None:
    # An exit, so that resources such as a compiler's semaphores are released; a second signal must not disturb that.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + signal.SIGTERM)


@dataclass(frozen=True)
class _Failure:
    """A process's last answer: which of its environments raised, and what."""

    index: int
    reason: str


def _ending(process: Any) -> str:
    """Return how a process ended that has closed its pipe without an answer."""
    process.join(PATIENCE)
    status = process.exitcode
    if status is None:
        return "does not answer any more"
    number = -status if status < 0 else status - 128  # as shells count, where a handler has exited
    if number not in signal.valid_signals():
        return f"ended with status {status}; its error is above"
    hint = ", from outside or for lack of memory" if number == signal.SIGKILL else ""
    return f"was ended by signal {number} ({signal.strsignal(number)}{hint})"


def _serve(pipe: Connection, make: Make, positions: dict[int, EpisodeCursor]) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", DataWarning)  # the parent has read the same data, and said so once
    served: dict[int, EnvServer] = {}
    try:
        for index, position in positions.items():
            answer = _try(index, partial(_server, make, index, position))
            if isinstance(answer, _Failure):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself
                pipe.send(answer)
                return
            served[index] = answer
        while True:
            index, method, arguments = pipe.recv()
            answer = _try(index, getattr(served[index], method), *arguments)
            if isinstance(answer, _Failure):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends by itself
            pipe.send(answer)
            if isinstance(answer, _Failure):
                return
    except (EOFError, ConnectionError):  # the parent has ended, or closed the pipe
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _server(make: Make, index: int, position: EpisodeCursor) -> EnvServer:
    return EnvServer(make(index, position))


def _try(index: int, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return a function's value, or a `_Failure` where it raises; a user's mistake is told without a traceback."""
    try:
        return function(*arguments)
    except Exception as error:
        if not isinstance(error, InputError):
            traceback.print_exc()
        return _Failure(index, error_line(error))
