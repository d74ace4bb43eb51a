"""The order of the files, and Ray, where tests start it: clusters of their own, alike in what they ask."""

import os
import secrets
from collections import Counter

import pytest

# A cluster that runs on this machine is none of the tests' business.
os.environ.pop("RAY_ADDRESS", None)
# Ray asks for a token where it is started by `ray.init`, writing one into the home folder, and not where
# `ray.cluster_utils` starts it. A process that has done the first keeps to it: it then refuses what the second's
# servers ask of it, and Ray takes its actors for forgotten ("cancelled before it started"). With a token for both,
# tests of both kinds can share a process.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
# Ray's workers would give way to the tests beside them, and theirs would take several times as long.
os.environ["RAY_worker_niceness"] = "0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the most slow tests first: one that starts last is waited for by all other processes."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
