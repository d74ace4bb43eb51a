"""Sum up searches that start at an agent or from nothing: does going on with PPO on one's own task pay?

python experiments/train_agent.py --dataset flowers5.zip --start surrogate --episodes 96 --out runs/flowers-surrogate-96
python experiments/train_agent.py --dataset flowers5.zip --menu family --episodes 96 --out runs/flowers-nothing-96
python experiments/studies/going_on.py --runs runs/flowers-surrogate-96 runs/flowers-nothing-96 --out runs/going_on

Searches of one task have the same data, network, trainings and seed, and so the same images and seeds in their
comparison; they differ in where they start and in their number of trainings.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from rlmix.experiments.comparison.intervals import mean_interval, paired_difference
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search.selection import LIVE, SHIPPED_AGENT, START_AGENT
from rlmix.experiments.studies.searches import points, sum_up

LEARNED, NOTHING = "learned", "nothing"
# Options in which searches of one task may differ, besides where they start and their number of trainings.
AGENT_OPTIONS = ("preset", "menu", "segments", "ppo", "reward", "reference_seeds", "also")
# What a learned policy is compared with.
BESIDE = ("plain", "CutMix half", "random", SHIPPED_AGENT, LIVE, START_AGENT, NOTHING)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    sum_up("going_on", arguments, __doc__, summarise, markdown)


def summarise(searches: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return by how much each search's policy is ahead of the others on its task, and the means over tasks.

    Args:
        searches: lines of the log.

    Raises:
        RunError: two searches of one task start alike and have the same number of trainings.
    """
    tasks: dict[str, dict[tuple[str, int], Mapping[str, Any]]] = {}
    for search in searches:
        arms = tasks.setdefault(_task(search), {})
        if (arm := _arm(search)) in arms:
            raise RunError(f"--runs must name one search of each kind and task, got two of {arm[0]} with {arm[1]}")
        arms[arm] = search
    rows = []
    for number, arms in enumerate(tasks.values()):
        for (start, episodes), search in sorted(arms.items()):
            setting, ours = search["setting"], search["accuracies"][LEARNED]
            others = {name: search["accuracies"][name] for name in BESIDE if name in search["accuracies"]}
            if start != NOTHING and (NOTHING, episodes) in arms:
                others[NOTHING] = arms[NOTHING, episodes]["accuracies"][LEARNED]
            rows.append(
                {
                    "task": number,
                    "dataset": setting["dataset"],
                    "train_size": setting["train_size"],
                    "label_noise": setting["label_noise"],
                    "seed": search["seed"],
                    "start": start,
                    "episodes": episodes,
                    "policy": search["policy"],
                    "accuracy": mean_interval(ours),
                    "leads": {name: paired_difference(ours, theirs) for name, theirs in others.items()},
                }
            )
    means = {}
    for start, episodes in sorted({(row["start"], row["episodes"]) for row in rows}):
        alike = [row for row in rows if (row["start"], row["episodes"]) == (start, episodes)]
        means[f"{start}, {episodes}"] = {
            name: mean_interval([row["leads"][name][0] for row in alike])
            for name in BESIDE
            if all(name in row["leads"] for row in alike)
        }
    return {"tasks": len(tasks), "searches": rows, "means": means}


def _task(search: Mapping[str, Any]) -> str:
    setting = {k: v for k, v in search["setting"].items() if k not in (*AGENT_OPTIONS, "start", "episodes")}
    return json.dumps([search["seed"], setting], sort_keys=True)


def _arm(search: Mapping[str, Any]) -> tuple[str, int]:
    return search["setting"]["start"] or NOTHING, len(search["returns"])


def markdown(result: Mapping[str, Any]) -> str:
    """Return a summary as Markdown."""

    def cells(leads: Mapping[str, Sequence[float]]) -> list[str]:
        return [points(leads[name], signed=True) if name in leads else "" for name in BESIDE]

    titles = [f"less {name}" for name in BESIDE]
    body = [
        [
            row["dataset"],
            row["train_size"][0],
            f"{100 * row['label_noise'][0]:g} %",
            row["start"],
            row["episodes"],
            points(row["accuracy"]),
            *cells(row["leads"]),
            row["policy"],
        ]
        for row in result["searches"]
    ]
    header = ["data set", "images", "wrong labels", "start", "trainings", "learned", *titles, "learned policy"]
    means = [[name, *cells(leads)] for name, leads in result["means"].items()]
    each = tabulate(body, header, tablefmt="github", disable_numparse=True)
    over = tabulate(means, ["start, trainings", *titles], tablefmt="github", disable_numparse=True)
    return (
        f"# Going on with PPO on one's own task: {result['tasks']} tasks\n\n"
        "Points of development accuracy by which the learned policy is ahead of others on fresh images and seeds: of "
        f"the agent that the search started from (not going on: {START_AGENT}, or {SHIPPED_AGENT}), of what a search "
        f"from nothing with as many trainings learned ({NOTHING}). 95 % intervals over tasks.\n\n"
        f"{over}\n\n## Each search\n\nIntervals over seeds.\n\n{each}\n"
    )


if __name__ == "__main__":
    main()
