"""Trainings of comparisons and studies in the test's own process, which is quicker to start."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import pytest

from rlmix.experiments.comparison import runner


def run_inline(patch: pytest.MonkeyPatch) -> list[Any]:
    """Let `TrainingLog` run trainings one after another in this process; returns the keys of those that it runs."""
    keys: list[Any] = []

    def run_all(jobs: Mapping[Hashable, Callable[[], Any]], processes: int) -> Iterator[tuple[Hashable, Any]]:
        for key, job in jobs.items():
            keys.append(key)
            yield key, job()

    patch.setattr(runner, "run_all", run_all)
    return keys
