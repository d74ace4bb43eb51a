"""Sum up searches of the main job that differ in their seed: does the agent learn, and whom does it beat?

python experiments/train_agent.py --seed 0 --out runs/main-0
python experiments/train_agent.py --seed 1 --out runs/main-1
python experiments/studies/main_job.py --runs runs/main-0 runs/main-1 --out runs/main_job
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.classifier.mixing import PolicySchedule
from rlmix.experiments.comparison.intervals import (
    MIN_RISE,
    format_interval,
    mean_interval,
    paired_difference,
    rise,
    verdict,
)
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.options import flatten

LEARNED = "learned"
STANDARD_ERRORS = 2.0  # by which the last quarter's return must be above the first's for an agent that has learned
OWN = ("seed", "out", "workers", "resume", "trust", "minutes", "episodes", "data_root")  # the searches may differ in


@dataclass(frozen=True)
class MainJobConfig:
    """Sum up searches."""

    runs: tuple[str, ...] = ()
    """Run folders of train_agent.py, alike but for --seed; none takes the log that --out has already."""
    out: str = "runs/main_job"
    """Folder of searches.jsonl (a line for each search), results.json and results.md."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/main_job", arguments) as call:
        config = call.parse(MainJobConfig, __doc__)
        out = Path(config.out)
        log = LineLog(out / "searches.jsonl")
        searches = [read_search(Path(run)) for run in config.runs] or log.read()
        searches.sort(key=lambda search: int(search["seed"]))
        settings, seeds = [search["setting"] for search in searches], {search["seed"] for search in searches}
        if not searches or len(seeds) < len(searches) or any(setting != settings[0] for setting in settings):
            raise RunError("--runs must name finished searches that are alike but for --seed, and of different seeds")
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        log.keep(0)
        for search in searches:
            log.append(search)
        result = {"command": call.line, **summarise(searches)}
        write_atomic(out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
        write_atomic(out / "results.md", markdown(result).encode())
        print(f"{markdown(result)}\nwritten: {out}/searches.jsonl, results.json, results.md")


def read_search(run: Path) -> dict[str, Any]:
    """Return what is kept of a search.

    Args:
        run: its run folder.

    Raises:
        RunError: it is no finished search.
    """
    if not (run / "summary.json").is_file():
        raise RunError(f"--runs: {run} is no run folder of a finished train_agent.py")
    with reject_incompatible(run):
        options = flatten(json.loads((run / "config.json").read_bytes())["config"])
        summary = json.loads((run / "summary.json").read_bytes())
        returns = [round(sum(episode["rewards"]), 4) for episode in LineLog(run / "episodes.jsonl").read()]
        accuracies = {name: entry["accuracies"] for name, entry in summary["contest"].items()}
        policy = PolicySchedule.from_json(summary["policy"])
    if len(returns) < MIN_RISE:
        raise RunError(f"--runs: {run} has {len(returns)} episodes, fewer than {MIN_RISE}")
    return {
        "seed": options["seed"],
        "setting": {name: value for name, value in options.items() if name not in OWN},
        "policy": "; ".join(f"until {100 * until:g} %: {one}" for until, one in policy.segments),
        "returns": returns,
        "accuracies": accuracies,
    }


def summarise(searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each search's rise and its lead over every contestant, and in how many searches they are beyond noise.

    Args:
        searches: lines of the log.
    """
    rows = []
    for search in searches:
        found, ours = rise(search["returns"]), search["accuracies"][LEARNED]
        leads = {
            name: paired_difference(ours, theirs) for name, theirs in search["accuracies"].items() if name != LEARNED
        }
        rows.append(
            {
                "seed": search["seed"],
                "episodes": len(search["returns"]),
                "policy": search["policy"],
                "first_quarter": found.first,
                "last_quarter": found.last,
                "standard_error": found.standard_error,
                "learned": found.last - found.first >= STANDARD_ERRORS * found.standard_error,
                "accuracy": mean_interval(ours),
                "leads": leads,
            }
        )
    return {
        "searches": rows,
        "learned": sum(row["learned"] for row in rows),
        "ahead": {name: sum(verdict(*row["leads"][name]) == "better" for row in rows) for name in rows[0]["leads"]},
        "mean_leads": {name: mean_interval([row["leads"][name][0] for row in rows]) for name in rows[0]["leads"]},
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return a summary as Markdown."""
    rows, count = result["searches"], len(result["searches"])
    names = list(result["ahead"])
    body = [
        [
            row["seed"],
            row["episodes"],
            f"{row['first_quarter']:.2f}",
            f"{row['last_quarter']:.2f}",
            f"{(row['last_quarter'] - row['first_quarter']) / row['standard_error']:.1f}",
            row["policy"],
            _points(row["accuracy"]),
            *(_points(row["leads"][name], signed=True) for name in names),
        ]
        for row in rows
    ]
    body.append(
        ["all", "", "", "", f"{result['learned']} of {count}", "", ""]
        + [f"{_points(result['mean_leads'][name], signed=True)}; {result['ahead'][name]} of {count}" for name in names]
    )
    header = [
        "seed",
        "trainings",
        "first quarter",
        "last quarter",
        "rise, standard errors",
        "learned policy",
        "learned",
    ]
    table = tabulate(body, [*header, *names], tablefmt="github", disable_numparse=True)
    return (
        "Mean return of the first and the last quarter of each search's trainings, and its rise in standard errors (at "
        f"least {STANDARD_ERRORS:g} count as learned). Then development accuracy in % of the learned policy, and by "
        "how many points it is ahead of the others, on fresh images and seeds, with 95 % intervals over seeds within a "
        "search. Last row: mean lead with its interval over searches, and number of searches beyond noise.\n\n"
        f"{table}\n"
    )


def _points(interval: Sequence[float], *, signed: bool = False) -> str:
    return format_interval(100 * interval[0], 100 * interval[1], signed=signed)


if __name__ == "__main__":
    main()
