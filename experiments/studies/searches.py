"""Finished searches, read from their run folders: what the studies that sum up many of them share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.classifier.mixing import PolicySchedule
from rlmix.experiments.comparison.intervals import MIN_RISE, format_shares
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.options import flatten

LOG = "searches.jsonl"
MACHINE = ("out", "workers", "resume", "trust", "minutes", "data_root")  # options that do not change its result


@dataclass(frozen=True)
class SearchesConfig:
    """Sum up searches."""

    runs: tuple[str, ...] = ()
    """Run folders of train_agent.py; none takes the log that --out has already."""
    out: str = ""
    """Folder of searches.jsonl (a line for each search), results.json and results.md."""


def sum_up(
    study: str,
    arguments: Sequence[str] | None,
    description: str | None,
    summarise: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    markdown: Callable[[Mapping[str, Any]], str],
) -> None:
    """Run the command of a study that sums up searches.

    Args:
        study: name of the study, and of its folder under runs/.
        arguments: options of the command line; None for those of this process.
        description: the command's help.
        summarise: function from lines of the log to the result; raises a RunError where they do not fit each other.
        markdown: function from the result to its page.
    """
    with command(f"studies/{study}", arguments) as call:
        config = call.parse(SearchesConfig, description, default=SearchesConfig(out=f"runs/{study}"))
        out = Path(config.out)
        searches = read_searches(out, config.runs)
        result = {"command": call.line, **summarise(searches)}
        write_searches(out, searches)
        write_atomic(out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
        write_atomic(out / "results.md", markdown(result).encode())
        print(f"{markdown(result)}\nwritten: {out}/{LOG}, results.json, results.md")


def points(interval: Sequence[float], *, signed: bool = False) -> str:
    """Format a mean accuracy, or a difference of two, and its half-width in points: `12.34 ± 0.56`."""
    return format_shares(interval[0], interval[1], signed=signed)


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
