"""Evaluation of a trained network: the choice of measures and images, and the report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from rlmix.classifier.evaluation.libraries import library
from rlmix.classifier.evaluation.measure import NotMeasurable, Subject
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device, set_threads
from rlmix.experiments.comparison.held_out import record_test_read
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.training.config import EvaluateConfig
from rlmix.experiments.training.trained_run import TrainedRun


def open_run(config: EvaluateConfig) -> TrainedRun:
    """Open the run to be evaluated, after a check of the options.

    Raises:
        RunError: an option is out of range, or the run cannot be evaluated.
    """
    for measure in config.measures:
        if measure not in MEASURES:
            raise RunError(f"--measures must be among {', '.join(MEASURES)}, got {measure!r}")
    if config.boxes is not None and config.measures and "localisation" not in config.measures:
        raise RunError("--boxes is for localisation, which --measures leaves out; name it too")
    set_threads(config.threads)
    device = resolve_device(config.device)
    run = TrainedRun.open(config.run, device=device, data_root=config.data_root, trust=config.trust)
    if not config.test_set and not len(run.data.development):
        raise RunError(
            f"{config.run}: this training kept no development images (--development-size 0); read the test set with "
            "--test-set"
        )
    for name in config.measures or MEASURES:
        for module in MEASURES[name].modules:
            _require(module, name)
    return run


def _require(module: str, measure: str) -> None:
    """Check that a module can be imported, before any measure begins.

    Raises:
        RunError: it cannot.
    """
    try:
        library(module, measure)
    except ImportError as error:
        raise RunError(str(error)) from None


def evaluate(config: EvaluateConfig, run: TrainedRun, command: str) -> dict[str, Any]:
    """Take the measures and return the report; a reading of the test set is recorded first.

    Raises:
        RunError: a library is missing, or a measure that the options name cannot be taken.
        DataError: images cannot be read.
    """
    part = run.data.test if config.test_set else run.data.development
    count = len(part) if config.images is None else min(config.images, len(part))
    if config.test_set:
        record_test_read(run.path, command, images=count)

    subject = Subject(
        network=run.network,
        part=part,
        count=count,
        class_names=run.data.class_names,
        device=run.device,
        seed=config.seed,
        batch_size=config.batch_size,
        boxes=config.boxes,
        readers=run.config.train.readers,
    )
    seconds, measured, left_out = {}, {}, {}
    for name in [name for name in MEASURES if name in config.measures or not config.measures]:
        started = time.perf_counter()
        try:
            measured[name] = MEASURES[name].run(subject)
        except (ImportError, NotMeasurable) as error:
            if config.measures or isinstance(error, ImportError):
                raise RunError(str(error)) from error
            left_out[name] = str(error)
            print(f"without {name}: {error}", file=sys.stderr)
        seconds[name] = round(time.perf_counter() - started, 2)
    return {
        "kind": "evaluation",
        "run": str(run.path),
        "model": run.config.train.model,
        "dataset": run.data.name,
        "split": "test" if config.test_set else "development",
        "images": count,
        "precision": "fp32",
        "seed": config.seed,
        "machine": machine(),
        "seconds": seconds,
        "left_out": left_out,
        **measured,
    }


def write_evaluation(run: TrainedRun, report: Mapping[str, Any]) -> Path:
    """Write the report into the run folder; one on the test set has a file of its own.

    Raises:
        RunError: the file cannot be written.
    """
    path = run.path / ("evaluation_test.json" if report["split"] == "test" else "evaluation.json")
    try:
        write_atomic(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}); check the folder's permissions") from None
    return path


def table(report: Mapping[str, Any]) -> str:
    """Format the report as text: a line for each number."""
    title = f"Network {report['model']!r} on {report['images']:,} {report['split']} images of {report['dataset']}, in %"
    rows = [row for name, measure in MEASURES.items() if name in report for row in measure.rows(report[name])]
    return f"{title}\n{tabulate(rows, tablefmt='plain', disable_numparse=True)}"
