"""Measure how long data sets take to load, and that a classifier trains on each.

    python experiments/benchmarks/loading.py --data-sets path/to/one.zip path/to/folder fashion_mnist

Whatever `--dataset` takes: names, folders, zip files, tables. Each is loaded so many times, in turn, and trained for
one update. No accuracy is computed, so that data sets kept for a last test can be among them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from rlmix.classifier.data import Dataset, load_dataset, split
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.benchmarks.timing import prepare_output, rotated, spread, summary
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine


@dataclass(frozen=True)
class LoadingConfig:
    """Measure how long data sets take to load."""

    data_sets: tuple[str, ...]
    """Data sets, as for --dataset of the other commands."""
    data_root: str | None = None
    """Folder of data sets given by name; optional, defaults to $RLMIX_DATA, else ~/.cache/rlmix/data."""
    rounds: int = 3
    """Number of times that each is loaded."""
    threads: int = 1
    """Number of CPU threads."""
    out: str = "loading.json"
    """File of the report."""

    def __post_init__(self) -> None:
        require_at_least(self, rounds=1, threads=1)
        if not self.data_sets:
            raise RunError("--data-sets: expected at least one data set, got none")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/loading", arguments) as call:
        config = call.parse(LoadingConfig, __doc__)
        prepare_output(Path(config.out))
        torch.set_num_threads(config.threads)
        seconds: dict[str, list[float]] = {name: [] for name in config.data_sets}
        loaded: dict[str, dict[str, Any]] = {}
        for number in range(config.rounds):
            for name in rotated(list(config.data_sets), number):
                started = time.perf_counter()
                dataset = load_dataset(name, config.data_root)
                seconds[name].append(time.perf_counter() - started)
                if name not in loaded:
                    loaded[name] = described(dataset)
                    train_once(dataset)
        found = [{"data_set": name, **loaded[name], "seconds": summary(seconds[name])} for name in config.data_sets]
        report = {"command": call.line, "config": asdict(config), "machine": machine(), "data_sets": found}
        write_atomic(Path(config.out), (json.dumps(report, indent=2) + "\n").encode())
        rows = [
            [Path(entry["data_set"]).name, entry["images"], entry["classes"], "x".join(map(str, entry["shape"])),
             spread(entry["seconds"])]
            for entry in found
        ]  # fmt: skip
        head = ["", "images", "classes", "shape", "seconds: median [quartiles] (range)"]
        print(tabulate(rows, head, tablefmt="plain", disable_numparse=True))
        print(f"written: {config.out}")


def described(dataset: Dataset) -> dict[str, Any]:
    """Return the number of images in all parts, that of classes, and the shape of an image, `[C, H, W]`."""
    parts = [part for part in (dataset.pool, dataset.validation, dataset.test) if part is not None]
    return {
        "images": sum(len(part) for part in parts),
        "classes": dataset.num_classes,
        "shape": list(dataset.pool.image_shape),
    }


def train_once(dataset: Dataset) -> None:
    """Train the search network for one update.

    Raises:
        RunError: the loss is not finite.
    """
    trainer = Trainer(TrainConfig(updates=1, device="cpu", precision="fp32"), split(dataset), seed=0)
    if trainer.train(MixPolicy({"cutmix": 1.0}), 1).diverged:
        raise RunError("the loss of the first update is not finite; look at the images")


if __name__ == "__main__":
    main()
