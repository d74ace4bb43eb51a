"""Summary of the log of `collect.py`: contributions of policy, task and chance to a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from tabulate import tabulate

from rlmix.classifier.training.config import TrainConfig
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.search.task_family import MENU, PLAIN, REFERENCE, SEGMENTS, part_of

Line = Mapping[str, Any]
MIN_TASKS = 3  # tasks that a mean is taken over
KINDS = ("clean labels", "wrong labels", "slow", "bare")  # of tasks


def summarise_family(lines: Sequence[Line]) -> dict[str, Any]:
    """Summarise the log, in points of development accuracy against the reference on the same task from the same seed.

    Args:
        lines: lines of the log.

    Returns:
        tasks, slow, bare, twice, trainings: numbers of tasks whose reference and plain trainings have finished, of
            those among them that learn slowly, of those with the network without normalisation, of those trained from
            two seeds, and of all their trainings. All entries below but `sources` leave out slow and bare tasks.
        plain: plain training's differences: mean and interval over tasks (each the mean of its seeds), their
            standard deviation over tasks, and the noise: that of one seed's difference around its task's.
        policies: variance between fixed policies of one task without noise, and the noise variance of one training.
        choosing: gain of choosing between plain training and the reference for each task by its first seed, measured
            on the second seed, against always taking the one or the other: mean and interval.
        sources: each source's fixed policies on tasks with clean and with wrong labels, and on slow and bare ones:
            mean, interval, tasks.
    """
    accuracy = {(line["task"], line["training"], _key(line)): 100 * line["development"] for line in lines}
    plain: dict[int, list[float]] = {}
    reference_actions = _constant(REFERENCE)
    plain_actions = _constant(PLAIN)
    for task in sorted({line["task"] for line in lines}):
        both = [
            (accuracy.get((task, seed, plain_actions)), accuracy.get((task, seed, reference_actions)))
            for seed in (0, 1)
        ]
        if None not in both[0]:
            plain[task] = [ours - theirs for ours, theirs in both if ours is not None and theirs is not None]
    fast = {task: gaps for task, gaps in plain.items() if part_of(task) == "family"}
    pairs = np.array([gaps for gaps in fast.values() if len(gaps) > 1])
    if len(pairs) < MIN_TASKS:
        return {"tasks": len(pairs), "trainings": 0}
    counted = [line for line in lines if line["task"] in plain]
    noise = float(np.mean((pairs[:, 0] - pairs[:, 1]) ** 2) / 2)
    means = [float(np.mean(gaps)) for gaps in fast.values()]
    mean, width = mean_interval(means)
    differences = [
        (line, 100 * line["development"] - accuracy[line["task"], 0, reference_actions])
        for line in counted
        if line["kind"] in ("fixed", "plain") and line["training"] == 0
    ]
    by_task: dict[int, list[float]] = {}
    for line, value in differences:
        if line["task"] in fast:
            by_task.setdefault(line["task"], []).append(value)
    within = [float(np.var(values, ddof=1)) for values in by_task.values() if len(values) > 1] or [0.0]
    chosen = np.where(pairs[:, 0] > 0, pairs[:, 1], 0.0)  # against the reference, on the second seed
    # A difference has the noise of two trainings; the policies of one task share that of the reference.
    return {
        "tasks": len(plain),
        **{part: sum(part_of(task) == part for task in plain) for part in ("slow", "bare")},
        "twice": len(pairs),
        "trainings": len(counted),
        "plain": {
            "mean": mean,
            "interval": width,
            "over_tasks": float(np.std(means, ddof=1)),
            "noise": math.sqrt(noise),
        },
        "policies": {"variance": max(float(np.mean(within)) - noise / 2, 0.0), "noise_variance": noise / 2},
        "choosing": {
            "against_reference": mean_interval(chosen.tolist()),
            "against_plain": mean_interval((chosen - pairs[:, 1]).tolist()),
        },
        "sources": {name: _by_kind(differences, source) for source, name in enumerate(MENU.names("source"))},
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Format the summary as Markdown."""
    if "plain" not in result:
        return f"{result['tasks']} tasks have finished from two seeds; at least {MIN_TASKS} are needed.\n"
    plain, policies, choosing = result["plain"], result["policies"], result["choosing"]
    reference = MENU.policy(REFERENCE)
    rows = [(name, *(_cell(row[kind]) for kind in KINDS)) for name, row in result["sources"].items()]
    headers = ("source, with or without label smoothing", *KINDS)
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    mean = format_interval(plain["mean"], plain["interval"], signed=True)
    gains = {rival: format_interval(*gain, signed=True) for rival, gain in choosing.items()}
    share = policies["variance"] / (policies["variance"] + policies["noise_variance"])
    return (
        f"{result['tasks']} tasks ({result['slow']} slow ones, {result['bare']} of a network without normalisation, "
        f"{result['twice']} from two seeds), "
        f"{result['trainings']:,} trainings; points of development accuracy less the "
        f"reference's ({reference}) on the same task from the same seed, 95 % intervals over tasks.\n\n"
        f"- Plain training: {mean}. Over tasks it varies with a standard "
        f"deviation of {plain['over_tasks']:.2f}; chance alone gives one training's difference {plain['noise']:.2f}.\n"
        f"- Of the variance between fixed policies on one task {100 * share:.0f} % is the policy, the rest chance.\n"
        f"- Choosing between the two for each task by one training of each gains "
        f"{gains['against_reference']} on always the reference and {gains['against_plain']} "
        "on always plain training, measured on other trainings than it is chosen by.\n\n"
        f"{table}\n"
    )


def plot_family(lines: Sequence[Line]) -> Figure:
    """Plot each training under a fixed policy over its task's share of wrong labels, a panel for each source."""
    accuracy = {(line["task"], _key(line)): 100 * line["development"] for line in lines if line["training"] == 0}
    names = MENU.names("source")
    colours = ScalarMappable(LogNorm(3, 1000), "viridis")
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    panels = figure.subplots(2, math.ceil(len(names) / 2), sharex=True, sharey=True)
    for source, (name, panel) in enumerate(zip(names, panels.flat, strict=False)):
        points = [
            (100 * line["task_drawn"]["label_noise"], 100 * line["development"] - theirs, _passes(line["task_drawn"]))
            for line in lines
            if line["training"] == 0 and len({*map(tuple, line["actions"])}) == 1 and line["actions"][0][0] == source
            if (theirs := accuracy.get((line["task"], _constant(REFERENCE)))) is not None
        ]
        panel.axhline(0, color="grey", linewidth=0.8)
        panel.set_title(name, loc="left")
        if points:
            x, y, passes = zip(*points, strict=True)
            panel.scatter(x, y, c=passes, norm=colours.norm, cmap=colours.cmap, s=14)
    figure.supxlabel("wrong labels, %")
    figure.supylabel("development accuracy less the reference's, points")
    ticks = [3, 10, 30, 100, 300, 1000]
    figure.colorbar(colours, ax=panels, label="passes over the images", ticks=ticks, format="%g")
    return figure


def _by_kind(differences: Sequence[tuple[Line, float]], source: int) -> dict[str, dict[str, Any]]:
    cells = {}
    for name in KINDS:
        by_task: dict[int, list[float]] = {}
        for line, value in differences:
            if line["actions"][0][0] == source and _kind(line) == name:
                by_task.setdefault(line["task"], []).append(value)
        means = [float(np.mean(values)) for values in by_task.values()]
        mean, width = mean_interval(means) if len(means) >= MIN_TASKS else (None, None)
        cells[name] = {"mean": mean, "interval": width, "tasks": len(means)}
    return cells


def _kind(line: Line) -> str:
    if (part := part_of(line["task"])) != "family":
        return part
    return "wrong labels" if line["task_drawn"]["label_noise"] > 0 else "clean labels"


def _passes(task: Mapping[str, Any]) -> float:
    return float(task["updates"] * TrainConfig().batch_size / task["train_size"])


def _key(line: Line) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(action) for action in line["actions"])


def _constant(action: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    return (tuple(action),) * len(SEGMENTS)


def _cell(cell: Mapping[str, Any]) -> str:
    if cell["mean"] is None:
        return f"({cell['tasks']} tasks)"
    return f"{format_interval(cell['mean'], cell['interval'], signed=True)} ({cell['tasks']})"
