"""Measure what a budget of several trainings costs by the clock, in memory and on disk, beside one plain training.

    python experiments/benchmarks/budget_cost.py --out budget_cost.json

Each way is a whole command in a process of its own, in turn in each round: a plain training, then `replay_policy.py`
with the agent alone and with budgets, candidates one after the other with all threads, or several at a time. The ratios
are of seconds within a round, so that a busy machine disturbs all alike. Memory is the highest resident size of any
process of the command; with several candidates at a time there are several.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.limits import usable_cores
from rlmix.experiments.benchmarks.timing import prepare_output, ratios, rotated, say, spread, summary
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine

PLAIN = "plain training"
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class CostConfig:
    """Measure what a budget of several trainings costs."""

    budgets: tuple[int, ...] = (2, 4)
    """Budgets, in trainings, each of 2 or more."""
    workers: int = 2
    """Number of candidates at a time, in the ways that train several."""
    dataset: str = "fashion_mnist"
    """Data set, as for train_classifier.py."""
    model: str = "search"
    """Network, as for train_classifier.py."""
    train_size: int = 1000
    """Number of training images."""
    updates: int = 300
    """Updates of a training."""
    rounds: int = 3
    """Number of rounds."""
    out: str = "budget_cost.json"
    """File of the report."""

    def __post_init__(self) -> None:
        require_at_least(self, workers=2, train_size=2, updates=20, rounds=1)
        if not self.budgets or min(self.budgets) < 2:
            raise RunError(f"--budgets must be whole numbers of 2 or more, got {' '.join(map(str, self.budgets))}")


def ways(config: CostConfig) -> dict[str, list[str]]:
    """Return the commands by name, without their run folder."""
    setting = ["--dataset", config.dataset, "--model", config.model, "--train-size", str(config.train_size)]
    setting += ["--updates", str(config.updates)]
    led = ["replay_policy.py", "--agent", "shipped", *setting]
    found = {PLAIN: ["train_classifier.py", "--method", "clean", *setting], "the agent alone": led}
    for budget in config.budgets:
        spent = [*led, "--budget", str(budget)]
        found[f"budget {budget}"] = spent
        found[f"budget {budget}, {config.workers} at a time"] = [*spent, "--workers", str(config.workers)]
    return found


def measure(way: Sequence[str], folder: Path) -> dict[str, float]:
    """Run a command to its end and return its seconds, highest memory and the size of its run folder, in MB.

    Raises:
        RunError: it failed.
    """
    script, *options = way
    call = [sys.executable, str(ROOT / script), *options, "--out", str(folder)]
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(call, stdout=said, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RunError(f"{' '.join(way)} failed: {said.read().decode(errors='replace')[-500:].strip()}")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return {"seconds": seconds, "memory_mb": used.ru_maxrss / 1024, "folder_mb": size / 1e6}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/budget_cost", arguments) as call:
        config = call.parse(CostConfig, __doc__)
        prepare_output(Path(config.out))
        commands = ways(config)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for number in range(config.rounds):
            for name in rotated(list(commands), number):
                with tempfile.TemporaryDirectory() as folder:
                    found[name].append(measure(commands[name], Path(folder) / "run"))
                say(f"round {number + 1}  {name:<28} {found[name][-1]['seconds']:.1f} s")
        report: dict[str, Any] = {
            "command": call.line,
            "config": asdict(config),
            "machine": machine(),
            "cores": usable_cores(),
            "ways": summarise(found),
        }
        write_atomic(Path(config.out), (json.dumps(report, indent=2) + "\n").encode())
        rows = [
            [
                name,
                f"{way['seconds']['median']:.1f}",
                spread(way["times_plain"]),
                f"{way['memory_mb']['median']:,.0f}",
                f"{way['folder_mb']['median']:,.1f}",
            ]
            for name, way in report["ways"].items()
        ]
        header = ["", "seconds", "times plain: median [quartiles] (range)", "memory, MB", "run folder, MB"]
        print(tabulate(rows, header, tablefmt="plain", disable_numparse=True))


def summarise(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Return what was measured by way: seconds, memory, run folder, and seconds over those of the plain training."""
    plain = [one["seconds"] for one in found[PLAIN]]
    return {
        name: {
            **{what: summary([one[what] for one in rounds]) for what in rounds[0]},
            "times_plain": summary(ratios([one["seconds"] for one in rounds], plain)),
        }
        for name, rounds in found.items()
    }


if __name__ == "__main__":
    main()
