"""Record of every reading of the test set."""

from __future__ import annotations

import time
from pathlib import Path

from rlmix.classifier.files import LineLog

TEST_READS = "test_set_reads.jsonl"


def record_test_read(folder: Path, command: str, **counts: int) -> None:
    """Append time and command of a reading of the test set to a folder's `test_set_reads.jsonl`.

    Args:
        folder: folder of the run, comparison or contest.
        command: the command line.
        counts: number of images or entries that are read, by name.
    """
    LineLog(folder / TEST_READS).append({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": command, **counts})
