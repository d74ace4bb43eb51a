"""Table of the soak tests' results: each fault, the number of tries, and how often the program kept its promise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmix.experiments.runs.errors import RunError

HEAD = "| fault or input | tried | as promised | what is promised |\n|---|---|---|---|\n"
SAME = "`--resume` goes on to the undisturbed run's result, byte for byte"
KILLED = f"{SAME}; no process and no lock is left"
TOLD = "one line names the file and how to go on; then the same result"
KEPT = "the damaged file is named, the checkpoint before is taken; the same result"
FAULTS = {  # kinds of `soak.py writes`, by the start of their names: description in the table, and promise
    "stop": ("stopped at a write, flush, rename or deletion", SAME),
    "error": ("full, failing, forbidden or read-only disk at such an operation", TOLD),
    "TensorBoard": ("the same under TensorBoard's events", TOLD),
    "full disk": ("a small file system that fills up, then is read-only", TOLD),
    "file size": ("a limit on a file's size", TOLD),
    "newest checkpoint": ("newest checkpoint cut at every tenth, with a wrong bit, or unreadable", KEPT),
    "clock": ("clock that jumps by days", "the same result"),
}
INPUTS = {  # kinds of `soak.py inputs`, by the start of their names; all others are files
    "policy, cut": ("policy file cut at every byte", "refused in one line"),
    "command line": ("command lines with wrong values", "refused in one line, or they work"),
    "": ("wrong files of {kinds} kinds", "refused in one line that names the file, or read; within 10 s and 1 GiB"),
}


@dataclass(frozen=True)
class TableSoak:
    """Print the results in a folder as a Markdown table."""

    results: str = "experiments/results/soak"
    """Folder with kills.json, writes.json, inputs.json and memory.json."""


def table(folder: Path) -> str:
    """Return the results in a folder as a Markdown table.

    Raises:
        RunError: a result is missing or damaged.
    """
    try:
        kills, writes, inputs, memory = (
            json.loads((folder / f"{name}.json").read_bytes()) for name in ("kills", "writes", "inputs", "memory")
        )
        rows = [*_kills(kills), *_writes(writes), *_inputs(inputs), _memory(memory)]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"{folder}: expected the results of all soaks, got {type(error).__name__}: {error}") from None
    return HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _kills(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            f"`{name}` killed by {', '.join(f'{signal} ({n})' for signal, n in row['by signal'].items())}"
            + (f", a worker alone in {row['of a worker alone']} of them" if row["of a worker alone"] else ""),
            f"{row['kills']} in {row['runs']} runs",
            f"{row['ended as undisturbed']} runs",
            KILLED if name != "tune_agent.py" else f"each trial: {KILLED}",
        )
        for name, row in result["programs"].items()
    ]


def _writes(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for start, (description, promise) in FAULTS.items():
        counts = [
            row
            for program in result["programs"].values()
            for kind, row in program["faults"].items()
            if kind.startswith(start)
        ]
        tried, survived = (sum(row[key] for row in counts) for key in ("tried", "survived"))
        rows.append((description, f"{tried:,}", f"{survived:,}", promise))
    return rows


def _inputs(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows, remaining = [], dict(result["kinds"])
    for start, (description, promise) in INPUTS.items():
        counts = [remaining.pop(kind) for kind in list(remaining) if kind.startswith(start)]
        tried = sum(row["tried"] for row in counts)
        kept = sum(row["refused"] + row["read"] for row in counts)
        rows.append((description.format(kinds=len(counts)), f"{tried:,}", f"{kept:,}", promise))
    return rows


def _memory(result: Mapping[str, Any]) -> tuple[str, ...]:
    episodes, flat = len(result["mib"]), result["flat"]
    return (
        "episodes of one worker, one after the other",
        f"{episodes:,}",
        f"{result['slope_mib_per_episode']:.3f} MiB an episode" if flat else "no",
        "resident memory is flat",
    )
