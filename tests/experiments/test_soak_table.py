"""The documented table of soaks is what their committed results say."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlmix.experiments.runs.errors import RunError
from tests.soak.table import HEAD, table

ROOT = Path(__file__).parents[2]
RESULTS: dict[str, dict[str, Any]] = {
    "kills": {
        "programs": {
            "train_agent.py": {
                "runs": 3,
                "ended as undisturbed": 2,
                "kills": 7,
                "by signal": {"SIGKILL": 4, "SIGTERM": 3},
                "of a worker alone": 1,
            }
        }
    },
    "writes": {
        "programs": {
            "a": {"faults": {"stop": {"tried": 1000, "survived": 999}, "error EIO": {"tried": 5, "survived": 5}}},
            "b": {"faults": {"stop": {"tried": 10, "survived": 10}, "error ENOSPC": {"tried": 4, "survived": 3}}},
        }
    },
    "inputs": {
        "kinds": {
            "policy, cut": {"tried": 9, "refused": 9, "read": 0},
            "command line of x": {"tried": 8, "refused": 5, "read": 2, "another error": 1},
            "policy": {"tried": 20, "refused": 15, "read": 5},
            "weights": {"tried": 30, "refused": 30, "read": 0},
        }
    },
    "memory": {"mib": [1.0] * 500, "flat": True, "slope_mib_per_episode": 0.0},
}


def test_the_page_has_the_table_of_the_committed_results() -> None:
    assert table(ROOT / "experiments/results/soak") in (ROOT / "docs/reliability.md").read_text()


def test_what_is_counted(tmp_path: Path) -> None:
    for name, result in RESULTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    text = table(tmp_path)
    assert text.startswith(HEAD)
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.removeprefix(HEAD).splitlines()]
    assert cells[0] == [
        "`train_agent.py` killed by SIGKILL (4), SIGTERM (3), a worker alone in 1 of them",
        "7 in 3 runs",
        "2 runs",
    ]
    counts = [(tried, kept) for _, tried, kept in cells[1:]]
    assert counts[:2] == [("1,010", "1,009"), ("9", "8")]
    assert counts[-4:] == [("9", "9"), ("8", "7"), ("50", "50"), ("500", "0.000 MiB an episode")]
    (tmp_path / "memory.json").unlink()
    with pytest.raises(RunError, match="expected the results of all soaks, got FileNotFoundError"):
        table(tmp_path)
