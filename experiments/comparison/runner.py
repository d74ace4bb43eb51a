"""Run many trainings in parallel processes and keep each result in a log, so that an interrupted study resumes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from rlmix.classifier.files import LineLog
from rlmix.experiments.runs.command import format_warning
from rlmix.experiments.runs.errors import RunError, reject_incompatible

Key = TypeVar("Key", bound=Hashable)
Line = dict[str, Any]  # a finished training: one line of the log
Job = Callable[[], Line]  # a training that can be sent to another process


class TrainingLog(Generic[Key]):
    """Finished trainings in a JSON-lines file, one line each, in the order in which they finished.

    Args:
        path: the log; created with the first line. A last line torn by an interruption is removed.
        index: maps the log's lines to the trainings that need not run again, by key. It may raise `RunError` for lines
            that do not belong here.

    Attributes:
        finished: finished trainings by key, in the order of the log.

    Raises:
        RunError: the log does not hold what `index` expects.
        DamagedFileError: a line before the last one is damaged.
    """

    def __init__(self, path: Path, index: Callable[[Sequence[Line]], dict[Key, Line]]) -> None:
        self._log = LineLog(path)
        lines = self._log.read()
        with reject_incompatible(path):
            self.finished = index(lines)
        self._log.keep(len(lines))  # a torn last line would spoil the next one

    @property
    def path(self) -> Path:
        """The log's path."""
        return self._log.path

    def missing(self, jobs: Mapping[Key, Job]) -> list[Key]:
        """Return the keys of the trainings that have not finished, in their order."""
        return [key for key in jobs if key not in self.finished]

    def add(self, key: Key, line: Line) -> None:
        """Append one finished training."""
        self._log.append(line)
        self.finished[key] = line

    def run(self, jobs: Mapping[Key, Job], *, processes: int, describe: Callable[[Line], str]) -> None:
        """Run the missing trainings, append each to the log as soon as it finishes, and print the progress.

        Args:
            jobs: all trainings by key, in the order in which they start.
            processes: maximum number of trainings at a time.
            describe: text for a finished training's line of progress.

        Raises:
            RunError: a process died, or a training cannot run.
        """
        missing = self.missing(jobs)
        done, total = len(jobs) - len(missing), len(jobs)
        print(f"{total} trainings, {done} of them finished before", flush=True)
        started = time.monotonic()
        for number, (key, line) in enumerate(run_all({key: jobs[key] for key in missing}, processes), start=done + 1):
            self.add(key, line)
            print(f"{number:>5} of {total}  {time.monotonic() - started:6.0f} s  {describe(line)}", flush=True)


def run_all(jobs: Mapping[Key, Job], processes: int) -> Iterator[tuple[Key, Line]]:
    """Run trainings in processes of one thread each and yield each result with its key as soon as it is available.

    Args:
        jobs: trainings by key, in the order in which they start.
        processes: maximum number of trainings at a time.

    Raises:
        RunError: a process died, or a training cannot run.
    """
    if jobs:
        with training_processes(min(processes, len(jobs))) as run:
            yield from run(jobs)


@contextmanager
def training_processes(
    processes: int, resume: str = "the same command resumes, and fewer --processes need less memory"
) -> Iterator[Callable[[Mapping[Key, Job]], Iterator[tuple[Key, Line]]]]:
    """Yield a function that runs trainings, several times if need be, in the same processes of one thread each.

    The function yields each result with its key as soon as it is available.

    Args:
        processes: number of processes. They end when this one does, however it ends.
        resume: what to do after one died; optional, defaults to that of a study.

    Raises:
        RunError: a process died, or a training cannot run.
    """
    executor = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )

    def run(jobs: Mapping[Key, Job]) -> Iterator[tuple[Key, Line]]:
        keys = {executor.submit(job): key for key, job in jobs.items()}
        for future in as_completed(keys):
            yield keys[future], future.result()

    try:
        yield run
        executor.shutdown()
    except BaseException as error:
        # Do not wait for trainings whose results are lost anyway: they run again when the command resumes.
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunError(f"a training's process died, perhaps because memory ran out; {resume}") from None
        raise


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; only the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warnings.formatwarning = format_warning  # a study's parent may not have read the data: the workers tell


def _end_with_parent() -> None:
    """End this process when its parent ends: one that was killed cannot, and a resumed run must be alone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
