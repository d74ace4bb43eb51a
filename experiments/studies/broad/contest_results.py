"""Results of the third contest: paired differences by data set and group, as JSON, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from rlmix.agent.plots import interval_plot, interval_rows
from rlmix.experiments.comparison.intervals import format_interval
from rlmix.experiments.comparison.runner import Line
from rlmix.experiments.studies.broad.rehearse import difference

UNSEEN = ("caltech101", "eurosat", "omniglot", "neu_defects")  # looked at for the first time
VIT, NOISE = "small ViT", "65 to 80 % wrong labels"
ALL, NEW = "all data sets", "data sets never looked at"  # the latter are some of the former
PLAIN, BEST_FIXED = "plain", "best fixed policy of the recorded tasks"
HARDEST = "CutMix half"  # of the fixed policies, with the rehearsal's results in view
MENU_16, ORACLE, ORACLE_AGAIN = "all fixed policies", "oracle", "oracle's policy, trained again"

Key = tuple[str, int, str]  # group, number of the task, contestant


def key_of(line: Line) -> Key:
    """Return the key of a line of the log."""
    return line["group"], line["task"], line["contestant"]


def summarise(protocol: Mapping[str, Any], lines: Sequence[Line]) -> dict[str, Any]:
    """Return the first agent's differences to all others in points, and what they say of the aims.

    Returns:
        `tables`: one of the contestants that train once, one of all, each on the tasks that all of these have finished,
        at least two of a group. In each, by contestant, the differences over all groups of one data set and of each
        other group.
    """
    entries = protocol["contestants"]
    agent = next(iter(entries))
    singles = [name for name, entry in entries.items() if entry["kind"] != "search"]
    finished = {key_of(line): line for line in lines}
    tables = []
    for names in (singles, list(entries)):
        tasks = [
            (group, number)
            for group in protocol["groups"]
            for number in range(protocol["tasks"])
            if all((group, number, name) in finished for name in names)
        ]
        several = [one for one in tasks if sum(other[0] == one[0] for other in tasks) > 1]
        if several:
            tables.append(_table(agent, names, several, finished))
    return {"split": protocol["split"], "agent": agent, "statistics": protocol["statistics"], "tables": tables,
            "aims": aims(tables)}  # fmt: skip


def _table(
    agent: str, names: Sequence[str], tasks: Sequence[tuple[str, int]], finished: Mapping[Key, Line]
) -> dict[str, Any]:
    points = {name: np.array([100 * finished[*task, name]["accuracy"] for task in tasks]) for name in names}
    if MENU_16 in points:
        points[ORACLE] = points.pop(MENU_16)
        points[ORACLE_AGAIN] = np.array([100 * finished[*task, MENU_16]["again"] for task in tasks])
    of_set = [finished[*task, names[0]]["dataset"] for task in tasks]
    groups = list(dict.fromkeys(group for group, _ in tasks))
    together = [place for place, (group, _) in enumerate(tasks) if group not in (VIT, NOISE)]
    others = {one: [place for place, (group, _) in enumerate(tasks) if group == one] for one in groups}
    new = [place for place in together if tasks[place][0] in UNSEEN]
    parts = {
        **({ALL: together} if together else {}),
        **({NEW: new} if new else {}),
        **{one: places for one, places in others.items() if one in (VIT, NOISE)},
    }

    def less(name: str, other: str) -> dict[str, Any]:
        return {
            part: difference((points[name] - points[other])[places], [of_set[place] for place in places])
            for part, places in parts.items()
        }

    return {
        "tasks": {name: len(places) for name, places in parts.items()},
        "accuracy": {
            name: {part: float(values[places].mean()) for part, places in parts.items()}
            for name, values in points.items()
        },
        "agent_minus": {name: less(agent, name) for name in points if name != agent},
        "less_plain": {name: less(name, PLAIN) for name in points if name != PLAIN},
    }


def aims(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what was aimed at, what came and whether it was reached, data sets as units."""
    found: dict[str, Any] = {}
    for table in tables[:1]:
        for part in (ALL, NEW):
            for rival, points in ((BEST_FIXED, 1.0), (HARDEST, 1.0), (PLAIN, 2.0)):
                over = table["agent_minus"][rival].get(part)
                if over is not None:
                    mean, width = over["data_sets"]
                    found[f"{part}: ahead of {rival} by {points:g}, interval over data sets without zero"] = {
                        "came": [mean, width], "reached": bool(mean >= points and mean > width)
                    }  # fmt: skip
        for rival, points in ((PLAIN, 0.3), (BEST_FIXED, 0.5), (HARDEST, 0.5)):
            worst = min(
                mean
                for part, over in table["agent_minus"][rival].items()
                for mean, _ in (over["by_data_set"].values() if part in (ALL, NEW) else [over["tasks"]])
            )
            found[f"in no group more than {points:g} behind {rival}"] = {"came": worst, "reached": worst >= -points}
    for table in tables:
        if ORACLE_AGAIN in table["agent_minus"] and ALL in table["tasks"]:
            ahead = table["agent_minus"][BEST_FIXED][ALL]["tasks"][0]
            behind = table["agent_minus"][ORACLE_AGAIN][ALL]["tasks"][0]
            way = ahead - behind
            found["half of the way from the best fixed policy to the oracle's policy, trained again"] = {
                "came": ahead / way if way > 0 else 1.0, "reached": bool(ahead >= 0.5 * max(way, 0.0))
            }  # fmt: skip
    return found


def markdown(result: Mapping[str, Any]) -> str:
    """Format the results: by how many points the first agent is ahead, over all data sets, by data set and group."""
    parts = [
        "# Contest on data, a network and wrong labels not learned from",
        f"`{result['command']}`",
        f"By how many points of {result['split']} accuracy **{result['agent']}** is ahead of each. "
        f"{result['statistics']}",
    ]
    for table in result["tables"]:
        first = next(iter(table["agent_minus"].values()))
        sets = list(first[ALL]["by_data_set"]) if ALL in first else []
        others = [part for part in table["tasks"] if part not in (ALL, NEW)]
        new = [NEW, "over those"] if NEW in first else []
        head = [
            f"{result['agent']} less",
            *(["tasks", "data sets", "worst tenth"] if sets else []),
            *new,
            *sets,
            *others,
        ]
        rows = []
        for name, by_part in table["agent_minus"].items():
            whole = by_part.get(ALL)
            row = [name]
            if whole is not None:
                row += [format_interval(*whole[unit], signed=True) for unit in ("tasks", "data_sets")]
                row += [f"{whole['worst_tenth']:+.2f}"]
                if new:
                    row += [format_interval(*by_part[NEW][unit], signed=True) for unit in ("tasks", "data_sets")]
                row += [format_interval(*whole["by_data_set"][one], signed=True, digits=1) for one in sets]
            rows.append([*row, *(format_interval(*by_part[part]["tasks"], signed=True, digits=1) for part in others)])
        counts = ", ".join(f"{count} tasks of {part}" for part, count in table["tasks"].items())
        parts += [f"{counts}:", tabulate(rows, head, tablefmt="pipe", disable_numparse=True)]
    parts += [
        "\n".join(
            f"- {aim}: {_came(entry['came'])}, {'reached' if entry['reached'] else '**not reached**'}"
            for aim, entry in result["aims"].items()
        ),
        "",
    ]
    return "\n\n".join(parts)


def plot(result: Mapping[str, Any]) -> Figure:
    """Plot how far each contestant is ahead of plain training: a row of panels per table, a panel per part.

    Thick bars are 95 % intervals over tasks, thin ones over the means of data sets.
    """
    tables = result["tables"]
    heights = [2 + len(table["less_plain"]) for table in tables]
    figure = Figure(figsize=(11, 0.4 + 0.22 * sum(heights)), layout="constrained")
    rows = np.asarray(figure.subfigures(len(tables), 1, height_ratios=heights, squeeze=False))[:, 0]
    for row, table in zip(rows, tables, strict=True):
        ahead, parts = table["less_plain"], table["tasks"]
        first = next(iter(parts))
        order = sorted(ahead, key=lambda name: ahead[name][first]["tasks"][0])
        panels = row.subplots(1, len(parts), sharey=True, squeeze=False)[0]
        for panel, (part, count) in zip(panels, parts.items(), strict=True):
            for place, name in enumerate(order):
                colour = "#d55e00" if name == result["agent"] else "#0072b2"
                mean, over_tasks = ahead[name][part]["tasks"]
                interval_plot(panel, [place], [mean], [over_tasks], color=colour, linewidth=3)
                if part in (ALL, NEW):
                    middle, over_sets = ahead[name][part]["data_sets"]
                    interval_plot(panel, [place], [middle], [over_sets], color=colour, marker="none", linewidth=0.8)
            panel.axvline(0, color="black", linewidth=0.8)
            panel.set_title(f"{part}\n{count} tasks", fontsize=8)
            interval_rows(panel)
        panels[0].set_yticks(range(len(order)), order, fontsize=8)
    rows[-1].supxlabel(f"points of {result['split']} accuracy ahead of plain training", fontsize=9)
    return figure


def _came(came: float | Sequence[float]) -> str:
    return format_interval(*came, signed=True) if isinstance(came, list) else f"{came:+.2f}"
