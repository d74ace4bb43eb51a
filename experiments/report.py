"""Write the report of a run again: one HTML file, which needs no network.

python experiments/report.py --run runs/classifier-20260101-120000
python experiments/report.py --run runs/agent-20260101-120000
python experiments/report.py --run experiments/results/methods

Trainings, searches and comparisons write it themselves when they end. Written again after `evaluate.py`, the report of
a training shows what that has measured.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlmix.classifier.errors import InputError
from rlmix.experiments.reports import REPORT_FILE
from rlmix.experiments.reports.comparison_page import write_comparison_report
from rlmix.experiments.reports.search_page import write_search_report
from rlmix.experiments.reports.training_page import write_training_report
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import code_of, read_config, require_no_code
from rlmix.experiments.search.config import AGENT
from rlmix.experiments.training.trained_run import TRAININGS, TrainedRun


@dataclass(frozen=True)
class ReportConfig:
    """Write the report of a run again."""

    run: str
    """Folder of a training, a search or a comparison."""
    data_root: str | None = None
    """Folder where the data set of a training or comparison lies; none looks where that did."""
    trust: bool = False
    """The folder is your own: code that it names (package.module:function) may run."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("report", arguments) as call:
        config = call.parse(ReportConfig, __doc__)
        path = Path(config.run)
        try:
            write(config, path)
        except InputError:
            raise
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ArithmeticError,
            RuntimeError,
            MemoryError,
        ) as error:
            raise RunError(
                f"{path}: expected the files of a finished run, got {type(error).__name__}: {error}; let it end first "
                "(--resume), or restore what is missing"
            ) from error
    print(f"written: {path / REPORT_FILE}")


def write(config: ReportConfig, path: Path) -> None:
    """Write the report of the kind of run that a folder holds.

    Raises:
        RunError: there is no run that has finished.
        Exception: of nearly any kind, where a file of the run is missing or damaged.
    """
    if os.path.exists(path / "results.json") and not os.path.exists(path / "config.json"):
        report = json.loads((path / "results.json").read_bytes())
        if report.get("kind") != "comparison":
            raise RunError(f"{path}/results.json: expected results of compare.py, got {report.get('kind')!r:.80}")
        if not config.trust:
            require_no_code(config.run, code_of("comparison", report["setting"]))
        write_comparison_report(path, report, config.data_root)
        return
    kind, _ = read_config(config.run, (*TRAININGS, AGENT), trust=config.trust)
    if kind == AGENT:
        write_search_report(path)
    else:
        run = TrainedRun.open(config.run, device=torch.device("cpu"), data_root=config.data_root, trust=True)
        write_training_report(path, run.data, run.network.model, run.device)


if __name__ == "__main__":
    main()
