"""Compare trainings in lockstep with the same trainings one by one.

    python experiments/benchmarks/lockstep_speed.py
    python experiments/benchmarks/lockstep_speed.py --models search --counts 1 8 64 256 --alone 8 --device cuda

In every round each number of trainings has a short segment both ways, in rotated order, so that other load of a shared
machine affects both alike; a ratio is the median of the rounds' own ratios. The trainings have generated images, and
policies in turn: plain, CutMix on half and R-Mix on half of the updates. Dispatched operations are counted too: on a
GPU each is a launch or more, which is what an update of a small network takes its time for.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from torch.utils._python_dispatch import TorchDispatchMode

from rlmix.classifier.errors import InputError, require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.lockstep import Lockstep
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.benchmarks.gpu_sizes import Case, Note, Sizes
from rlmix.experiments.benchmarks.timing import (
    prepare_output,
    ratios,
    rotated,
    say,
    set_threads_for,
    spread,
    summary,
)
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.machine import machine

POLICIES = [MixPolicy({"clean": 1.0}), *(MixPolicy({"clean": 0.5, method: 0.5}) for method in ("cutmix", "rmix"))]
CASES = {
    "search": Case("search", 28, 1, 100, 10, 1000),
    "preact_resnet18": Case("preact_resnet18", 32, 3, 100, 100, 1000),
}
WARM_UP = 2  # updates


class CountedLaunches(TorchDispatchMode):
    """Number of operations that are dispatched while the block runs, views not counted."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += not func.is_view
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class LockstepConfig:
    """Compare trainings in lockstep with the same trainings one by one."""

    models: tuple[str, ...] = tuple(CASES)
    """Networks: search, preact_resnet18."""
    counts: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of trainings in lockstep."""
    alone: int = 8
    """Largest number of trainings that are made one by one; larger ones are compared with one training."""
    updates: int = 20
    """Updates of a segment."""
    rounds: int = 7
    """Number of rounds."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    threads: int | None = None
    """Number of threads on a CPU; optional, defaults to 1 for the network search and 2 for others."""
    out: str = "experiments/results/benchmark_lockstep.json"
    """File of the report, JSON."""

    def __post_init__(self) -> None:
        require_at_least(self, alone=1, updates=2, rounds=1, threads=1)
        if not self.counts or min(self.counts) < 1:
            raise InputError(f"--counts must be at least 1 each, got {' '.join(map(str, self.counts)) or 'none'}")
        if unknown := set(self.models) - set(CASES):
            raise InputError(f"--models must be among {', '.join(CASES)}, got {', '.join(sorted(unknown))}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/lockstep_speed", arguments) as call:
        config = call.parse(LockstepConfig, __doc__)
        out = Path(config.out)
        prepare_output(out)
        models = {}
        for model in config.models:
            set_threads_for(model, config.threads)
            models[model] = measure(
                CASES[model],
                config.device,
                counts=config.counts,
                alone=config.alone,
                updates=config.updates,
                rounds=config.rounds,
            )
        report = {
            "kind": "benchmark_lockstep",
            "command": call.line,
            "config": asdict(config),
            "machine": machine(),
            "models": models,
            "load_average_after": os.getloadavg(),
        }
        write_atomic(out, (json.dumps(report, indent=2) + "\n").encode())
    print(f"\n{text_report(report)}\nwritten: {out}")


def measure(
    case: Case, device: str, *, counts: Sequence[int], alone: int, updates: int, rounds: int
) -> dict[str, dict[str, Any]]:
    """Return images a second of each number of trainings, together and one by one, the ratio, and operations.

    Args:
        case: the network and its images.
        device: name of the device.
        counts: numbers of trainings.
        alone: largest number that is made one by one.
        updates: updates of a segment.
        rounds: number of rounds.
    """
    data = case.data().to(resolve_device(device))  # once for all
    most = max((count for count in counts if count <= alone), default=1)
    trainers = [Trainer(case.training(device), data, seed=index) for index in range(most)]
    shared = {count: Lockstep([Trainer(case.training(device), data, seed=i) for i in range(count)]) for count in counts}
    for count in counts:
        seconds_together(shared[count], WARM_UP)
    seconds_alone(trainers[:1], WARM_UP)
    together: dict[int, list[float]] = {count: [] for count in counts}
    single: dict[int, list[float]] = {count: [] for count in counts}
    names = [str(count) for count in counts]
    for number in range(rounds):
        say(f"{case.model}: round {number + 1} of {rounds}")
        for count in map(int, rotated(names, number)):
            images = case.batch_size * updates
            by_themselves = trainers[: count if count <= alone else 1]
            single[count].append(len(by_themselves) * images / seconds_alone(by_themselves, updates))
            together[count].append(count * images / seconds_together(shared[count], updates))
    return {
        str(count): {
            "images_per_second": summary(together[count]),
            "one_by_one": summary(single[count]),
            "ratio": summary(ratios(together[count], single[count])),
            "operations": operations(shared[count], trainers[: count if count <= alone else 1], updates),
        }
        for count in counts
    }


def operations(lockstep: Lockstep, trainers: Sequence[Trainer], updates: int) -> dict[str, float]:
    """Return the operations that are dispatched for an update of one training, in lockstep and by itself.

    Args:
        lockstep: trainings in lockstep.
        trainers: trainings by themselves.
        updates: number of updates that are counted.
    """
    with CountedLaunches() as together:
        seconds_together(lockstep, updates)
    with CountedLaunches() as alone:
        seconds_alone(trainers, updates)
    return {
        "in_lockstep": together.total / (updates * len(lockstep.trainers)),
        "by_itself": alone.total / (updates * len(trainers)),
    }


def seconds_alone(trainers: Sequence[Trainer], updates: int) -> float:
    """Return the seconds of a segment of each training, one after another."""
    started = time.perf_counter()
    for index, trainer in enumerate(trainers):
        trainer.train(POLICIES[index % len(POLICIES)], updates, probe=False)
    return time.perf_counter() - started


def seconds_together(lockstep: Lockstep, updates: int) -> float:
    """Return the seconds of a segment of all trainings in lockstep."""
    count = len(lockstep.trainers)
    policies = [POLICIES[index % len(POLICIES)] for index in range(count)]
    started = time.perf_counter()
    lockstep.train(policies, [updates] * count, probe=False)
    return time.perf_counter() - started


def measure_part(device: str, sizes: Sizes, _tests: str, note: Note) -> None:
    """Note the rates on a GPU, each number of trainings as soon as it is measured: a part of the GPU check."""
    updates = 20
    for count in sizes.lockstep:
        found = measure(sizes.cases[0], device, counts=[count], alone=4, updates=updates, rounds=sizes.rounds)[
            str(count)
        ]
        training = sizes.updates * sizes.cases[0].batch_size  # images
        found["trainings_per_hour"] = 3600 * found["images_per_second"]["median"] / training
        note(f"{count} in lockstep", found)


def text_report(report: dict[str, Any]) -> str:
    """Format the report as aligned tables."""
    rows = [
        (
            model,
            count,
            f"{row['images_per_second']['median']:,.0f}",
            f"{row['one_by_one']['median']:,.0f}",
            spread(row["ratio"]),
            f"{row['operations']['in_lockstep']:.0f}",
            f"{row['operations']['by_itself']:.0f}",
        )
        for model, counts in report["models"].items()
        for count, row in counts.items()
    ]
    headers = (
        "network",
        "trainings",
        "images/s in lockstep",
        "one by one",
        "ratio",
        "operations in lockstep",
        "by itself",
    )
    return tabulate(rows, headers, tablefmt="plain", disable_numparse=True)


if __name__ == "__main__":
    main()
