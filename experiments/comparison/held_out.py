"""A record of every time that the test set was read."""

from __future__ import annotations

import time
from pathlib import Path

from rlmix.classifier.files import LineLog

TEST_READS = "test_set_reads.jsonl"


def record_test_read(folder: Path, command: str, **counts: int) -> None:
    """Append to a folder's `test_set_reads.jsonl` when and by which command the test set is read.

    Args:
        folder: folder of the run, comparison or contest.
        command: the command line.
        counts: how much is read, by what is counted.
    """
    LineLog(folder / TEST_READS).append({"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "command": command, **counts})
