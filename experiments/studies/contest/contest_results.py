"""Results of a contest: means and paired differences with bootstrap intervals, as JSON, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.plots import interval_plot, interval_rows
from rlmix.envs import Menu
from rlmix.experiments.comparison.intervals import pigeonhole_bootstrap
from rlmix.experiments.comparison.results import unpack_hits

AGENT, BEST, RANDOM = "agent", "best fixed", "random"
PLAIN = "fixed: clean, β 1"
RIVALS = (AGENT, BEST, RANDOM, PLAIN)  # contestants that the aims name; they may train more tasks than the others
ORACLE = "oracle"  # for each task, the menu's fixed policy that is best on validation images
ALL = "all groups"
ONE = "one"  # group that is a contest of its own, with its own aims
AIMS_OF_ONE = ((BEST, 0.3), (RANDOM, 0.5))
AIMS = (  # (rival, points by which the agent should be ahead)
    (BEST, 0.5),
    (RANDOM, 1.0),
)
# Share of the way from the best fixed policy to the oracle; maximum number of points behind plain training.
MIN_WAY, MAX_BEHIND_PLAIN = 0.7, 0.3


def summarise_contest(protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarise the agent's differences to all others in points, by group and over all groups, and evaluate the aims.

    Args:
        protocol: protocol of the contest.
        lines: lines of its log.

    Returns:
        The content of `results.json`. There is a table for each number of tasks per group, largest first. It has all
        contestants with at least as many tasks, and the tasks that all of them have finished, at least two per group.
        Each aim is evaluated on the first table that has its rival.
    """
    counts = sorted({entry["count"] for entry in protocol["contestants"].values()}, reverse=True)
    tables = [table for count in counts if (table := _table(protocol, lines, count)) is not None]
    aims: dict[str, Any] = {}
    for table in reversed(tables):
        aims.update(_aims(table["groups"], table[ALL]["agent_minus"]))
    return {"split": protocol["split"], "statistics": protocol["statistics"], "tables": tables, "aims": aims}


def _table(protocol: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], count: int) -> dict[str, Any] | None:
    """Return the table of contestants with at least `count` tasks; None if no group has two tasks that all finished."""
    names = [name for name, entry in protocol["contestants"].items() if entry["count"] >= count]
    finished = {(line["group"], line["task"], line["contestant"]): line for line in lines}
    groups: dict[str, dict[str, Any]] = {}
    rights: dict[str, dict[str, NDArray[np.float64]]] = {}
    of_menu = [name for name in names if protocol["contestants"][name].get("of_the_menu")]
    complete = len(of_menu) == len(Menu.from_json(protocol["menu"]).actions())
    menu = of_menu if complete else []  # an oracle needs every policy of the menu
    for group, setting in protocol["groups"].items():
        tasks = [task for task in range(count) if all((group, task, name) in finished for name in names)]
        if len(tasks) < 2:
            continue
        images = next(line["images"] for line in lines if line["group"] == group and line["images"])
        entries = {name: [finished[group, task, name] for task in tasks] for name in names}
        if menu:
            best = [max(menu, key=lambda name: finished[group, task, name]["validation"]) for task in tasks]
            entries[ORACLE] = [finished[group, task, name] for task, name in zip(tasks, best, strict=True)]
        rights[group] = {name: np.stack([_right(line, images) for line in logged]) for name, logged in entries.items()}
        groups[group] = {
            "title": setting["title"],
            "tasks": len(tasks),
            "images": images,
            "accuracy": {name: [line["accuracy"] for line in logged] for name, logged in entries.items()},
            "agent_minus": {
                name: _points([rights[group][AGENT] - right], [setting["dataset"]])
                for name, right in rights[group].items()
                if name != AGENT
            },
            "diverged": {name: sum(line["diverged"] for line in logged) for name, logged in entries.items()},
        }
    if not groups:
        return None
    data = [protocol["groups"][group]["dataset"] for group in groups]
    all_names = [*names, *([ORACLE] if menu else [])]
    overall = {
        name: _points([rights[group][AGENT] - rights[group][name] for group in groups], data)
        for name in all_names
        if name != AGENT
    }
    accuracies = {name: [value for group in groups.values() for value in group["accuracy"][name]] for name in all_names}
    return {
        "count": count,
        "groups": groups,
        ALL: {
            "tasks": sum(group["tasks"] for group in groups.values()),
            "accuracy": {name: float(np.mean(values)) for name, values in accuracies.items()},
            "agent_minus": overall,
            "fixed": _spread([accuracies[name] for name in of_menu]),
            "others_minus": _others_minus(protocol, rights, names, data),
        },
    }


def _others_minus(
    protocol: Mapping[str, Any],
    rights: Mapping[str, Mapping[str, NDArray[np.float64]]],
    names: Sequence[str],
    data: Sequence[str],
) -> dict[str, dict[str, dict[str, float]]]:
    """Return by how many points each other agent is ahead of the agent's rivals, over all groups."""
    others = [name for name in names if protocol["contestants"][name]["kind"] == "agent" and name != AGENT]
    return {
        other: {
            rival: _points([group[other] - group[rival] for group in rights.values()], data)
            for rival in RIVALS
            if rival in names and rival != AGENT
        }
        for other in others
    }


def _spread(accuracies: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Split the spread of fixed policies: between policies, and of single trainings around their policy and task.

    Args:
        accuracies: accuracy of each policy on each task, in [0, 1].

    Returns:
        Standard deviations in points from a two-way analysis of variance: of the policies' means, corrected for single
        trainings, and of single trainings; None for fewer than two policies.
    """
    values = 100 * np.array(accuracies)
    if len(values) < 2:
        return None
    policies, tasks = values.shape
    means = values.mean(axis=1)
    left = values - means[:, None] - values.mean(axis=0) + values.mean()
    single = (left**2).sum() / ((policies - 1) * (tasks - 1))
    return {
        "policies": float(np.sqrt(max(means.var(ddof=1) - single / tasks, 0.0))),
        "single_training": float(np.sqrt(single)),
    }


def _right(line: Mapping[str, Any], images: int) -> NDArray[np.float64]:
    """Return which images are right, `[N]`; chance for each if the training diverged."""
    return np.full(images, line["accuracy"]) if line["hits"] is None else unpack_hits(line["hits"], images)


def _points(differences: Sequence[NDArray[np.float64]], data: Sequence[str]) -> dict[str, float]:
    mean, low, high = pigeonhole_bootstrap(differences, data)
    return {"mean": 100 * mean, "low": 100 * low, "high": 100 * high}


def _aims(groups: Mapping[str, Any], overall: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Return the aims whose rivals took part, with each one's result and whether it was reached."""
    aims: dict[str, Any] = {}
    only_one = list(groups) == [ONE]
    for rival, points in AIMS_OF_ONE if only_one else AIMS:
        if rival in overall:
            gap = overall[rival]
            reached = gap["mean"] >= points and gap["low"] > 0
            aims[f"ahead of {rival} by {points:g} points, interval without zero"] = {"came": gap, "reached": reached}
    if only_one:
        return aims
    if BEST in overall and ORACLE in overall:
        way = overall[BEST]["mean"] - overall[ORACLE]["mean"]  # from the best fixed policy to the oracle
        share = overall[BEST]["mean"] / way if way > 0 else None
        aims[f"{100 * MIN_WAY:g} % of the way from the best fixed policy to the oracle"] = {
            "came": {"share": share, "oracle_minus_best_fixed": way},
            "reached": overall[BEST]["mean"] >= max(MIN_WAY * way, 0.0),
        }
    if PLAIN in overall:
        worst = {name: group["agent_minus"][PLAIN]["mean"] for name, group in groups.items()}
        aims[f"in no group more than {MAX_BEHIND_PLAIN:g} points behind plain training"] = {
            "came": worst,
            "reached": min(worst.values()) >= -MAX_BEHIND_PLAIN,
        }
    return aims


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results as Markdown: the agent's lead over every contestant, in every group and overall."""
    aims = [
        f"- {aim}: {'reached' if entry['reached'] else '**not reached**'} ({_format_result(entry['came'])})"
        for aim, entry in result["aims"].items()
    ]
    return "\n".join(
        [
            f"By how many points of {result['split']} accuracy the agent is ahead, with 95 % intervals; tasks in "
            f"brackets. {result['statistics']}",
            "",
            *(line for table in result["tables"] for line in _rows(table)),
            *aims,
            "",
        ]
    )


def _columns(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the columns of a table: all groups as one, then each group; for a single group, that group alone."""
    groups = list(table["groups"].values())
    return groups if len(groups) == 1 else [table[ALL], *groups]


def _rows(table: Mapping[str, Any]) -> list[str]:
    columns, overall = _columns(table), table[ALL]
    order = sorted(overall["agent_minus"], key=lambda name: overall["agent_minus"][name]["mean"])
    heads = [f"{column.get('title', 'all')} ({column['tasks']})" for column in columns]
    rows = []
    for name in order:
        first, *others = [_format_points(column["agent_minus"][name]) for column in columns]
        rows.append([name, f"**{first}**", *others])
    accuracy = [float(np.mean(column["accuracy"][AGENT])) for column in columns]
    rows.append(["*accuracy of the agent, %*", *(f"*{100 * value:.2f}*" for value in accuracy)])
    spread = overall["fixed"]
    return [
        f"{table['count']} tasks of each group, as far as they are finished:",
        "",
        tabulate(rows, ("the agent, asked live, less", *heads), tablefmt="github", disable_numparse=True),
        "",
        *_format_others(overall["others_minus"]),
        *([_format_spread(spread), ""] if spread else []),
    ]


def _format_others(others: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    rows = [[name, *(_format_points(points) for points in rivals.values())] for name, rivals in others.items()]
    if not rows:
        return []
    heads = next(iter(others.values()))
    return [tabulate(rows, ("all groups, less", *heads), tablefmt="github", disable_numparse=True), ""]


def _format_spread(spread: Mapping[str, float]) -> str:
    return (
        f"Means of the menu's fixed policies differ with a standard deviation of {spread['policies']:.2f} points; a "
        f"single training is {spread['single_training']:.2f} points from what its policy and its task say of it."
    )


def plot_contest(result: Mapping[str, Any]) -> Figure:
    """Plot each contestant's distance to the agent: a row of panels per table, a panel per group and one for all."""
    tables = result["tables"]
    heights = [3 + len(table[ALL]["accuracy"]) for table in tables]
    widest = max(len(_columns(table)) for table in tables)
    figure = Figure(figsize=(2.6 + 2.1 * widest, 0.4 + 0.24 * sum(heights)), layout="constrained")
    parts = np.asarray(figure.subfigures(len(tables), 1, height_ratios=heights, squeeze=False))[:, 0]
    for part, table in zip(parts, tables, strict=True):
        panels, accuracy = _columns(table), table[ALL]["accuracy"]
        order = sorted(accuracy, key=lambda name: accuracy[name])
        axes = part.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, panel in zip(axes, panels, strict=True):
            for row, contestant in enumerate(order):
                if contestant == AGENT:
                    axis.plot(0, row, "o", color="#d55e00", markersize=5)
                    continue
                gap = panel["agent_minus"][contestant]
                reach = [[gap["high"] - gap["mean"]], [gap["mean"] - gap["low"]]]
                interval_plot(axis, [row], [-gap["mean"]], reach)
            axis.axvline(0, color="#d55e00", linewidth=0.8)
            axis.set_title(f"{panel.get('title', 'all groups')}\n{panel['tasks']} tasks", fontsize=8)
            interval_rows(axis)
        axes[0].set_yticks(range(len(order)), order, fontsize=8)
    parts[-1].supxlabel(f"points of {result['split']} accuracy against the agent, 95 % intervals", fontsize=9)
    return figure


def _format_points(points: Mapping[str, float]) -> str:
    return f"{points['mean']:+.2f} ({points['low']:+.2f} to {points['high']:+.2f})"


def _format_result(result: Mapping[str, Any]) -> str:
    """Format the result of an aim: an interval, a share of the way to the oracle, or points by group."""
    if "low" in result:
        return _format_points(result)
    if "share" in result:
        share = "no way to go" if result["share"] is None else f"{100 * result['share']:.0f} %"
        return f"{share}; the oracle is {result['oracle_minus_best_fixed']:+.2f} ahead of the best fixed policy"
    return ", ".join(f"{name} {value:+.2f}" for name, value in result.items())
