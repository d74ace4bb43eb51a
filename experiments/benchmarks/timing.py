"""Clocks, rotated rounds, ratios and their spread: shared by the benchmarks."""

from __future__ import annotations

import functools
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tyro.conf import Suppress

from rlmix.classifier.errors import InputError
from rlmix.classifier.limits import usable_cores
from rlmix.classifier.training.config import Precision, TrainConfig
from rlmix.experiments.runs.errors import RunError


@dataclass(frozen=True)
class BenchmarkTrainConfig(TrainConfig):
    """Setting of the timed updates; the benchmark says which networks, and how each of its contestants trains."""

    model: Suppress[str] = "search"
    updates: Suppress[int] = 10**6  # of the learning-rate schedule; no segment gets far into it
    saliency: Suppress[Literal["recycled", "exact"]] = "recycled"
    precision: Suppress[Precision] = "auto"
    compile: Suppress[Literal["auto", "on", "off"]] = "off"


def require_seconds(seconds: float) -> None:
    """Refuse seconds of a round that are not a finite number above 0.

    Raises:
        InputError: they are not.
    """
    if not 0 < seconds < math.inf:
        raise InputError(f"seconds must be a finite number above 0, got {seconds:g}")


def prepare_output(path: Path) -> None:
    """Create the folder of a report before minutes of measuring.

    Raises:
        RunError: the report cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(path.parent, os.W_OK) and not path.is_dir()
    except OSError as error:
        raise RunError(f"--out {path}: cannot be written there ({error.strerror}); choose another") from None
    if not writable:
        raise RunError(f"--out {path}: cannot be written there; choose another file")


@contextmanager
def clocked(owner: type, name: str) -> Iterator[list[float]]:
    """Record the seconds of every call of a public method while the block runs."""
    method, seconds = getattr(owner, name), []

    @functools.wraps(method)
    def timed(*arguments: Any, **keywords: Any) -> Any:
        started = time.perf_counter()
        try:
            return method(*arguments, **keywords)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, timed)
    try:
        yield seconds
    finally:
        setattr(owner, name, method)


def say(text: str) -> None:
    """Print a line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def set_threads_for(model: str, threads: int | None) -> None:
    """Set the number of CPU threads; by default 1 for the network `search`, as in a search's worker, else 2.

    Args:
        model: name of the network.
        threads: number of threads; optional.
    """
    default = 1 if model == "search" else min(2, usable_cores())
    torch.set_num_threads(threads or default)


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of a round: each round starts one name later."""
    start = number % len(names)
    return [*names[start:], *names[:start]]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and range of the rounds' values, and the values themselves."""
    low, q25, median, q75, high = np.quantile(values, (0, 0.25, 0.5, 0.75, 1)).tolist()
    return {"median": median, "q25": q25, "q75": q75, "low": low, "high": high, "rounds": list(values)}


def ratios(values: Sequence[float], bases: Sequence[float]) -> list[float]:
    """Divide each round's value by the same round's base."""
    return [value / base for value, base in zip(values, bases, strict=True)]


def spread(values: Mapping[str, Any]) -> str:
    """Format a `summary` as `median [quartiles] (range)`."""
    quartiles, extremes = (f"{values[low]:.2f}-{values[high]:.2f}" for low, high in (("q25", "q75"), ("low", "high")))
    return f"{values['median']:.2f} [{quartiles}] ({extremes})"
