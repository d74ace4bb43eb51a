"""Trainings side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from rlmix.experiments.runs.errors import RunError


def run_all(jobs: Sequence[Callable[[], dict[str, Any]]], processes: int) -> Iterator[dict[str, Any]]:
    """Run trainings, each in one thread, and give each result as soon as it is there.

    Args:
        jobs: what can be sent to another process.
        processes: how many at a time.

    Raises:
        RunError: a process died, or a training says so.
    """
    if not jobs:
        return
    executor = ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        for future in as_completed([executor.submit(job) for job in jobs]):
            yield future.result()
        executor.shutdown()
    except BaseException as error:
        # Not waiting for trainings that nobody will read: they are run again next time.
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunError(
                "a training's process died, perhaps for want of memory; the same command goes on, "
                "with --processes 1 it needs less"
            ) from None
        raise


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
