"""Part of the GPU check that runs the tests: each result is noted as it comes, so that an end by force loses none."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rlmix.experiments.benchmarks.gpu_sizes import Note, Sizes

LONGEST = 4_000  # characters of a failure's text


class Results:
    """Plugin of pytest that notes every test's outcome.

    Args:
        note: where.
    """

    def __init__(self, note: Note) -> None:
        self._note = note
        self._counts: Counter[str] = Counter()
        self._failures: dict[str, str] = {}
        self._skips: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Count a test's outcome; keep the text of a failure and the reason of a skip."""
        if report.when != "call" and report.outcome == "passed":
            return
        self._counts[report.outcome] += 1
        if report.outcome == "failed":
            self._failures[report.nodeid] = report.longreprtext[-LONGEST:]
        elif report.outcome == "skipped":
            self._skips[report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext] += 1
        self._note("counts", dict(self._counts))
        self._note("failures", self._failures)
        self._note("skips", dict(self._skips))


def run_tests(device: str, _sizes: Sizes, tests: str, note: Note) -> None:
    """Run the tests marked `gpu`; on a CPU the same ones that are not.

    Raises:
        AssertionError: a test failed, or none was found.
    """
    import pytest

    marked = "not gpu and not slow" if device == "cpu" else "gpu"
    options = ["-m", marked, "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--durations=10", "-o", "addopts="]
    status = pytest.main([tests, "--import-mode=importlib", *options], plugins=[Results(note)])
    note("status", int(status))
    assert status == 0, f"pytest ended with status {int(status)}"
