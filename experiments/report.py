"""Write the report of a run again: one HTML file, which needs no network.

    python experiments/report.py --run runs/classifier-20260101-120000
    python experiments/report.py --run runs/agent-20260101-120000
    python experiments/report.py --run experiments/results/methods

Trainings, searches and comparisons write it themselves when they end. Written again after `evaluate.py`, the report of
a training shows what that has measured.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlmix.experiments.reports import REPORT_FILE
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_unfinished

if TYPE_CHECKING:
    from rlmix.experiments.reports.html_report import Reading


@dataclass(frozen=True)
class ReportConfig:
    """Write the report of a run again."""

    run: str
    """Folder of a training, a search or a comparison."""
    data_root: str | None = None
    """Folder of the data set of a training or comparison; optional, defaults to the run's own."""
    trust: bool = False
    """The folder is your own: code that it names (package.module:function) may run."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("report", arguments) as call:
        config = call.parse(ReportConfig, __doc__)
        path = Path(config.run)
        reading = functools.partial(reject_unfinished, path)
        if (path / "results.json").exists() and not (path / "config.json").exists():
            write_comparison(config, path, reading)
        else:
            write_run(config, path, reading)
    print(f"written: {path / REPORT_FILE}")


def write_comparison(config: ReportConfig, path: Path, reading: Reading) -> None:
    """Write the report of a comparison.

    Raises:
        RunError: the results cannot be used, or name code and are not trusted.
    """
    import json

    from rlmix.experiments.reports.comparison_page import write_comparison_report
    from rlmix.experiments.runs.folder import code_of, require_no_code

    with reading():
        report = json.loads((path / "results.json").read_bytes())
        if report.get("kind") != "comparison":
            raise RunError(f"{path}/results.json: expected results of compare.py, got {report.get('kind')!r:.80}")
        code = code_of("comparison", report["setting"])
    if not config.trust:
        require_no_code(config.run, code)
    write_comparison_report(path, report, config.data_root, reading=reading)


def write_run(config: ReportConfig, path: Path, reading: Reading) -> None:
    """Write the report of a search or of a training.

    Raises:
        RunError: there is no run that has finished.
        DamagedFileError: the weights cannot be read.
        DataError: the images are not available.
    """
    import torch

    from rlmix.experiments.reports.search_page import write_search_report
    from rlmix.experiments.reports.training_page import write_training_report
    from rlmix.experiments.runs.folder import read_config
    from rlmix.experiments.search.config import AGENT
    from rlmix.experiments.training.trained_run import TRAININGS, TrainedRun

    kind, _ = read_config(config.run, (*TRAININGS, AGENT), trust=config.trust)
    if kind == AGENT:
        write_search_report(path, reading=reading)
    else:
        run = TrainedRun.open(config.run, device=torch.device("cpu"), data_root=config.data_root, trust=True)
        write_training_report(path, run.data, run.network.model, run.device, reading=reading)


if __name__ == "__main__":
    main()
