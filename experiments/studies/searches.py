"""Finished searches, read from their run folders for studies that sum up many of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlmix.classifier.files import LineLog, with_filename
from rlmix.classifier.mixing import PolicySchedule
from rlmix.experiments.comparison.intervals import MIN_RISE
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.options import flatten

LOG = "searches.jsonl"
MACHINE = ("out", "workers", "resume", "trust", "minutes", "data_root")  # options that do not change its result


def read_searches(out: Path, runs: Sequence[str]) -> list[dict[str, Any]]:
    """Return finished searches by seed.

    Args:
        out: the study's folder, from whose log they are read where no run is named.
        runs: run folders of train_agent.py.

    Raises:
        RunError: one of them is no finished search, or there is none.
    """
    searches = [read_search(Path(run)) for run in runs] or LineLog(out / LOG).read()
    if not searches:
        raise RunError("--runs must name run folders of finished searches (train_agent.py)")
    return sorted(searches, key=lambda search: int(search["seed"]))


def write_searches(out: Path, searches: Sequence[Mapping[str, Any]]) -> None:
    """Write searches to a study's folder, a line each."""
    with with_filename(out):
        out.mkdir(parents=True, exist_ok=True)
    log = LineLog(out / LOG)
    log.keep(0)
    for search in searches:
        log.append(dict(search))


def read_search(run: Path) -> dict[str, Any]:
    """Return what is kept of a search.

    Args:
        run: its run folder.

    Raises:
        RunError: it is no finished search.
    """
    if not (run / "summary.json").is_file():
        raise RunError(f"--runs must be run folders of finished train_agent.py, got {run}, which has no summary.json")
    with reject_incompatible(run):
        options = flatten(json.loads((run / "config.json").read_bytes())["config"])
        summary = json.loads((run / "summary.json").read_bytes())
        returns = [round(sum(episode["rewards"]), 4) for episode in LineLog(run / "episodes.jsonl").read()]
        accuracies = {name: entry["accuracies"] for name, entry in summary["contest"].items()}
        policy = PolicySchedule.from_json(summary["policy"])
        for name in ("dataset", "start"):  # a path means nothing elsewhere
            options[name] = options[name] and Path(options[name]).name
    if len(returns) < MIN_RISE:
        raise RunError(f"--runs must be searches of at least {MIN_RISE} episodes, got {len(returns)} in {run}")
    return {
        "seed": options["seed"],
        "setting": {name: value for name, value in options.items() if name not in ("seed", *MACHINE)},
        "policy": "; ".join(f"until {100 * until:g} %: {one}" for until, one in policy.segments),
        "returns": returns,
        "accuracies": accuracies,
    }
