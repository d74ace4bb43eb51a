"""Sum up searches of the main job that differ in their seed: does the agent learn, and whom does it beat?

python experiments/train_agent.py --seed 0 --out runs/main-0
python experiments/train_agent.py --seed 1 --out runs/main-1
python experiments/studies/main_job.py --runs runs/main-0 runs/main-1 --out runs/main_job
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from rlmix.experiments.comparison.intervals import mean_interval, paired_difference, rise, verdict
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.studies.searches import points, sum_up

LEARNED = "learned"
STANDARD_ERRORS = 2.0  # by which the last quarter's return must be above the first's for an agent that has learned


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    sum_up("main_job", arguments, __doc__, summarise, markdown)


def summarise(searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return each search's rise and its lead over every contestant, and in how many searches they are beyond noise.

    Args:
        searches: lines of the log.

    Raises:
        RunError: they differ in more than their seed and number of trainings, or two have one seed.
    """
    settings = [{**search["setting"], "episodes": None} for search in searches]
    if len({search["seed"] for search in searches}) < len(searches) or settings.count(settings[0]) < len(searches):
        raise RunError("--runs must name searches that are alike but for --seed, and of different seeds")
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
            points(row["accuracy"]),
            *(points(row["leads"][name], signed=True) for name in names),
        ]
        for row in rows
    ]
    body.append(
        ["all", "", "", "", f"{result['learned']} of {count}", "", ""]
        + [f"{points(result['mean_leads'][name], signed=True)}; {result['ahead'][name]} of {count}" for name in names]
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


if __name__ == "__main__":
    main()
