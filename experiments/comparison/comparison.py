"""Comparison of training methods, from its options to its results."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlmix.agent.plots import png
from rlmix.classifier.files import write_atomic
from rlmix.experiments.comparison.config import ComparisonConfig
from rlmix.experiments.comparison.contestants import CONTESTANTS
from rlmix.experiments.comparison.held_out import record_test_read
from rlmix.experiments.comparison.results import as_csv, markdown, plot_comparison, summarise_comparison
from rlmix.experiments.comparison.trainings import (
    collect_trainings,
    open_log,
    resolve,
    select_contestants,
    train,
    whole_splits,
)
from rlmix.experiments.runs.data_record import record_data, require_same_data
from rlmix.experiments.runs.errors import reject_incompatible
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import flatten


def compare(config: ComparisonConfig, command: str) -> dict[str, Any]:
    """Run the trainings that have not finished, and summarise all of them.

    Args:
        config: options of the comparison.
        command: the command line, for the records.

    Returns:
        The content of `results.json`.

    Raises:
        RunError: an option cannot be used, the folder holds other trainings, or a training cannot run.
        DataError: the data set is not available, or too small.
    """
    contestants = select_contestants(config)
    setting, images, notes = resolve(config, contestants.values())
    out = Path(config.out)
    count = min(config.measured_images or images, images)
    whole = whole_splits(config.data)
    collected = [
        collect_trainings(Path(folder), setting, contestants, config.measures, count) for folder in config.collect
    ]
    log = open_log(out, setting, contestants, config.measures, count)
    for folder in (*config.collect, config.out):
        require_same_data(Path(folder), whole)
    record_data(out, whole)
    for key, run in (entry for trainings in collected for entry in trainings.items()):
        if key not in log.finished and key[0] in contestants and key[1] < config.seeds:
            log.add(key, run)
    # Seed by seed, so that the trainings of an interrupted comparison are nearly paired.
    jobs = {
        (name, seed): functools.partial(train, name, contestant, seed, setting, config)
        for seed in range(config.seeds)
        for name, contestant in contestants.items()
    }
    if config.test_set and log.missing(jobs):
        record_test_read(out, command, images=images)
    for note in notes:
        print(f"note: {note}", flush=True)
    log.run(jobs, processes=config.parallel.processes, describe=_describe)
    runs = {name: [log.finished[name, seed] for seed in range(config.seeds)] for name in contestants}
    with reject_incompatible(log.path):
        compared = summarise_comparison(contestants, runs, config.baseline, images)
        lines = [line for each in runs.values() for line in each if line.get("measures")]
        numbers = {int(line["measured_images"]) for line in lines if "measured_images" in line}
        if len(numbers) > 1:  # by calls with other options: such measures are not shown beside each other
            for row in compared["methods"].values():
                row["measures"] = {}
        count = max(numbers, default=count)
    return {
        "kind": "comparison",
        "command": command,
        "config": flatten(asdict(replace(config, contestants=config.contestants or tuple(CONTESTANTS)))),
        "setting": setting.to_json(),
        "machine": machine(),
        "seeds": list(range(config.seeds)),
        "measured_images": count,
        "notes": notes,
        **compared,
    }


def write_results(out: Path, report: Mapping[str, Any]) -> list[str]:
    """Write a comparison's results as JSON, Markdown, CSV and a picture.

    Args:
        out: folder of the comparison.
        report: result of `compare`.

    Returns:
        The names of the files.
    """
    files = {
        "results.json": (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode(),
        "results.md": markdown(report).encode(),
        "results.csv": as_csv(report).encode(),
        "results.png": png(plot_comparison(report)),
    }
    for name, content in files.items():
        write_atomic(out / name, content)
    return list(files)


def _describe(run: Mapping[str, Any]) -> str:
    return f"{run['method']:<16}  seed {run['seed']:<3}  {100 * run['accuracy']:.2f} %  {run['seconds']:.1f} s"
