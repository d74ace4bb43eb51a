"""Measure what accuracy alone does not say of a trained network: calibration, robustness, embeddings, localisation.

python experiments/evaluate.py --run runs/classifier-20260101-120000
python experiments/evaluate.py --run runs/classifier-20260101-120000 --measures accuracy attacks --images 1000
python experiments/evaluate.py --run runs/classifier-20260101-120000 --measures localisation --boxes CUB_200_2011
python experiments/evaluate.py --run runs/classifier-20260101-120000 --test-set

On development images, which neither training nor a search has seen, in float32. The test set needs --test-set, and
every reading is recorded in the run folder. Attacks, calibration and class activation maps need
`pip install 'rl-mix[evaluation]'`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from rlmix.classifier.evaluation.measure import NotMeasurable, Subject
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device, set_threads
from rlmix.experiments.comparison.held_out import record_test_read
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.training.trained_run import TrainedRun


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a trained network."""

    run: str
    """Run folder of train_classifier.py or replay_policy.py."""
    measures: tuple[str, ...] = ()
    """Measures by their names in classifier/evaluation/measures.py: accuracy, attacks, ...; defaults to all that are
    available."""
    boxes: str | None = None
    """Folder of images with boxes in the layout of CUB-200-2011; none places the items on larger canvases."""
    test_set: bool = False
    """Read the test set instead of the development images; that it was read is written down."""
    images: int | None = None
    """Images that are measured on, from the start of the split; none takes all."""
    seed: int = 0
    """Of PGD's random start, noise, and places of occlusion and of items."""
    batch_size: int = 500
    """Images at a time."""
    data_root: str | None = None
    """Folder where the data set lies; none looks where the training did."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    threads: int = 0
    """Threads on a CPU; 0 takes one for each core."""
    trust: bool = False
    """The folder is your own: code that it names (package.module:function) may run."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("evaluate", arguments) as call:
        call.resume = call.line
        config = call.parse(EvaluateConfig, __doc__)
        run = open_run(config)
        report = {"command": call.line, **evaluate(config, run, call.line)}
        path = run.path / ("evaluation_test.json" if config.test_set else "evaluation.json")
        try:
            write_atomic(path, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); let this user write there") from None
    print(f"{table(report)}\nwritten: {path}")


def open_run(config: EvaluateConfig) -> TrainedRun:
    """The run that is asked for, once everything that is asked for makes sense.

    Raises:
        RunError: an option is out of range, or the run cannot be evaluated.
    """
    for name, least in (("images", 2), ("batch_size", 1), ("seed", 0)):
        value = getattr(config, name)
        if value is not None and value < least:
            raise RunError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    for measure in config.measures:
        if measure not in MEASURES:
            raise RunError(f"--measures must be among {', '.join(MEASURES)}, got {measure!r}")
    if config.boxes is not None and config.measures and "localisation" not in config.measures:
        raise RunError("--boxes is for localisation, which --measures leaves out; name it too")
    try:
        set_threads(config.threads)
        device = resolve_device(config.device)
    except ValueError as error:
        raise RunError(str(error)) from error
    run = TrainedRun.open(config.run, device=device, data_root=config.data_root, trust=config.trust)
    if not config.test_set and not len(run.data.development):
        raise RunError(
            f"{config.run}: this training kept no development images (--development-size 0), and those it learned from "
            "tell nothing; read the test set with --test-set"
        )
    return run


def evaluate(config: EvaluateConfig, run: TrainedRun, command: str) -> dict[str, Any]:
    """Take the measures, and write down that the test set was read where it is.

    Raises:
        RunError: a library is missing, or a measure that was asked for by its name cannot be taken.
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


def table(report: Mapping[str, Any]) -> str:
    """Format the report as text: a line for each number."""
    title = f"{report['model']} on {report['images']:,} {report['split']} images of {report['dataset']}, in %"
    rows = [row for name, measure in MEASURES.items() if name in report for row in measure.rows(report[name])]
    return f"{title}\n{tabulate(rows, tablefmt='plain', disable_numparse=True)}"


if __name__ == "__main__":
    main()
