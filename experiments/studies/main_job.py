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

from rlmix.classifier.files import write_atomic
from rlmix.experiments.comparison.intervals import format_interval, mean_interval, paired_difference, rise, verdict
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.studies.searches import read_searches, write_searches

LEARNED = "learned"
STANDARD_ERRORS = 2.0  # by which the last quarter's return must be above the first's for an agent that has learned


@dataclass(frozen=True)
class MainJobConfig:
    """Sum up searches."""

    runs: tuple[str, ...] = ()
    """Run folders of train_agent.py, that differ only in --seed; optional, defaults to the log that --out has."""
    out: str = "runs/main_job"
    """Folder of searches.jsonl (a line for each search), results.json and results.md."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/main_job", arguments) as call:
        config = call.parse(MainJobConfig, __doc__)
        out = Path(config.out)
        searches = read_searches(out, config.runs)
        settings = [{**search["setting"], "episodes": None} for search in searches]
        if len({search["seed"] for search in searches}) < len(searches) or settings.count(settings[0]) < len(searches):
            raise RunError("--runs must be searches that differ in --seed, and in nothing else")
        write_searches(out, searches)
        result = {"command": call.line, **summarise(searches)}
        write_atomic(out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
        write_atomic(out / "results.md", markdown(result).encode())
        print(f"{markdown(result)}\nwritten: {out}/searches.jsonl, results.json, results.md")


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
