"""Plots of the figures of LaMix's paper, from their results.json and runs.jsonl.

Colours are distinct for the colour-blind; dashes, hatching or marks differ as well.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlmix.agent.plots import interval_plot

# Okabe and Ito's colours, with olive for yellow, which is hard to see on white; wine and grey for two more classes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8C8C00", "#882255", "#999999")
DASHES = ("-", "--", ":", "-.")
MARKS = "os^DvPX*"
TITLE_COLUMNS = 13  # characters of a title for each inch of width

Report = Mapping[str, Any]
Runs = Mapping[str, Sequence[Mapping[str, Any]]]


def draw_targets(report: Report, runs: Runs) -> Figure:
    """Plot a row for each pair: first image, mixed image, second image, and the soft target's largest entries."""
    run = runs["lamix"][0]
    pairs = run["points"][-1]["pairs"]
    figure = Figure(figsize=(8.5, 1.75 * len(pairs) + 0.5), layout="constrained")
    rows = figure.subplots(len(pairs), 4, width_ratios=(1, 1, 1, 2.6), squeeze=False)
    for panels, pair in zip(rows, pairs, strict=True):
        first, second = pair["classes"]
        titles = (first, f"half and half, λ = {pair['lam']:.2f}", second)
        for panel, pixels, title in zip(panels, pair["pixels"], titles, strict=False):
            image = np.asarray(pixels, dtype=np.uint8).transpose(1, 2, 0)  # [H, W, C]
            panel.imshow(image.squeeze(2) if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255)
            panel.set_title(title, fontsize=9)
            panel.axis("off")
        names, weights = zip(*pair["top"], strict=True)
        bars = panels[3].barh(names, weights, color=[COLOURS[0 if name in (first, second) else 5] for name in names])
        for bar, name in zip(bars, names, strict=True):
            bar.set_hatch("" if name in (first, second) else "///")
        panels[3].bar_label(bars, fmt="%.3f", fontsize=8, padding=2)
        panels[3].invert_yaxis()
        panels[3].set_xlim(0, 1)
        _plain(panels[3])
    rows[0][3].set_title("five largest entries of the soft target", fontsize=9)
    rows[-1][3].set_xlabel("weight (plain: a true class; hatched: another)", fontsize=9)
    _title(figure, report, f"after {run['points'][-1]['epoch']} epochs, seed {run['seed']}")
    return figure


def draw_labels(report: Report, runs: Runs) -> Figure:
    """Plot histograms of soft and global labels, a column for each epoch, means over seeds."""
    lines = runs["lamix"]
    epochs = report["setting"]["epochs"]
    classes = len(lines[0]["class_names"])
    highest = np.e / (np.e + classes - 1)  # of a class in the global label (eq. 9)
    figure = Figure(figsize=(2.5 * len(epochs) + 1, 5.2), layout="constrained")
    rows = figure.subplots(2, len(epochs), sharex="row", sharey="row", squeeze=False)
    for kind, panels, end in (("soft", rows[0], 1.0), ("global", rows[1], highest)):
        for place, (panel, epoch) in enumerate(zip(panels, epochs, strict=True)):
            for number, (group, name) in enumerate((("true", "the two true classes"), ("other", "all other classes"))):
                counts = np.array([run["points"][place]["histograms"][f"{kind}_{group}"] for run in lines], dtype=float)
                shares = 100 * (counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)
                panel.stairs(
                    shares,
                    np.linspace(0, end, len(shares) + 1),
                    color=COLOURS[number],
                    linestyle=DASHES[number],
                    linewidth=1.6,
                    fill=False,
                    label=name,
                )
            panel.axvline(1 / classes, color="0.6", linewidth=0.8)
            panel.set_title(f"epoch {epoch}", fontsize=10)
            panel.set_xlabel(f"{kind} label's weight", fontsize=9)
            _plain(panel)
        panels[0].set_ylabel("share of the entries, %", fontsize=9)
    rows[0][-1].legend(fontsize=8, frameon=False)
    beta = report["arms"]["lamix"]["policy"]["label_beta"]
    _title(
        figure,
        report,
        f"soft labels (eq. 10, β = {beta:g}) above, global labels (eq. 9, at most {highest:.3f}) below\n"
        f"grey: 1/K; mean of {len(lines)} seeds",
    )
    return figure


def draw_beta(report: Report, runs: Runs) -> Figure:
    """Plot accuracy against β."""
    arms = report["arms"].values()
    figure, panel = _accuracy_panel()
    _intervals(panel, [arm["policy"]["label_beta"] for arm in arms], [_end(arm) for arm in arms], 0, "LaMix")
    panel.set_xlabel("β, weight of the local label (1: no global label)")
    _title(figure, report, _seeds(report))
    return figure


def draw_smoothing(report: Report, runs: Runs) -> Figure:
    """Plot accuracy against label smoothing's factor, with LaMix's accuracy as a line."""
    smoothed = [arm for name, arm in report["arms"].items() if name != "lamix"]
    figure, panel = _accuracy_panel()
    factors = [arm["policy"]["label_smoothing"] for arm in smoothed]
    _intervals(panel, factors, [_end(arm) for arm in smoothed], 0, "label smoothing (0: plain)")
    lamix = _end(report["arms"]["lamix"])
    mean, half_width = 100 * lamix["mean"], 100 * lamix["half_width"]
    panel.axhline(mean, color=COLOURS[1], linestyle=DASHES[1], label="LaMix")
    panel.axhspan(mean - half_width, mean + half_width, color=COLOURS[1], alpha=0.15, linewidth=0)
    panel.set_xlabel("label smoothing's factor")
    panel.legend(fontsize=9, frameon=False)
    _title(figure, report, _seeds(report))
    return figure


def draw_curves(report: Report, runs: Runs) -> Figure:
    """Plot accuracy over the training, an interval around each line."""
    figure, panel = _accuracy_panel()
    for number, arm in enumerate(report["arms"].values()):
        epochs = [point["epoch"] for point in arm["points"]]
        mean = 100 * np.array([point["accuracy"]["mean"] for point in arm["points"]])
        half_width = 100 * np.array([point["accuracy"]["half_width"] for point in arm["points"]])
        style: dict[str, Any] = {"color": COLOURS[number], "linestyle": DASHES[number % len(DASHES)]}
        panel.plot(epochs, mean, marker=MARKS[number], markersize=4, label=arm["title"], **style)
        panel.fill_between(epochs, mean - half_width, mean + half_width, color=COLOURS[number], alpha=0.12)
    # The first point is left out: it is far below, and would compress the others into a strip.
    ends = [100 * point["accuracy"]["mean"] for arm in report["arms"].values() for point in arm["points"][1:]]
    panel.set_ylim(min(ends) - 2, max(ends) + 2)
    panel.set_xlabel("epochs")
    panel.legend(fontsize=9, frameon=False, loc="lower right")
    _title(figure, report, _seeds(report))
    return figure


def draw_embedding(report: Report, runs: Runs) -> Figure:
    """Plot embeddings, a row for each training method, a column for each epoch; each panel has axes of its own."""
    epochs = report["setting"]["epochs"]
    figure = Figure(figsize=(2.5 * len(epochs) + 1.4, 2.4 * len(runs) + 0.6), layout="constrained")
    rows = figure.subplots(len(runs), len(epochs), squeeze=False)
    for (name, lines), panels in zip(runs.items(), rows, strict=True):
        for panel, point, means in zip(panels, lines[0]["points"], report["arms"][name]["points"], strict=True):
            places, labels = np.array(point["embeddings"]), np.array(point["labels"])
            for number, title in enumerate(lines[0]["class_names"]):
                panel.scatter(
                    *places[labels == number].T,
                    s=8,
                    color=COLOURS[number % len(COLOURS)],
                    marker=MARKS[(number + number // len(COLOURS)) % len(MARKS)],
                    linewidth=0,
                    label=title,
                )
            accuracy = 100 * means["accuracy"]["mean"]
            panel.set_title(
                f"{report['arms'][name]['title']}, epoch {point['epoch']}\n"
                f"{accuracy:.1f} %, spread {means['spread']['mean']:.2f}",
                fontsize=9,
            )
            panel.set_xticks([])
            panel.set_yticks([])
    handles, names = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8, frameon=False, markerscale=1.8)
    _title(
        figure,
        report,
        f"seed {lines[0]['seed']}; accuracy and spread (distance within classes over that between their means): "
        f"mean of {len(report['seeds'])} seeds",
    )
    return figure


CHARTS: dict[str, Callable[[Report, Runs], Figure]] = {
    "targets": draw_targets,
    "labels": draw_labels,
    "beta": draw_beta,
    "smoothing": draw_smoothing,
    "curves": draw_curves,
    "embedding": draw_embedding,
}


def _accuracy_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    panel = figure.subplots()
    panel.set_ylabel("accuracy on development images, %")
    panel.grid(axis="y", color="0.9")
    _plain(panel)
    return figure, panel


def _intervals(panel: Axes, x: Sequence[float], accuracies: Sequence[Report], number: int, label: str) -> None:
    means, half_widths = (np.array([100 * entry[name] for entry in accuracies]) for name in ("mean", "half_width"))
    order = np.argsort(x)
    interval_plot(
        panel,
        np.asarray(x)[order],
        means[order],
        half_widths[order],
        vertical=True,
        color=COLOURS[number],
        line=DASHES[number],
        marker=MARKS[number],
        markersize=6,
        capsize=3,
        label=label,
    )


def _end(arm: Report) -> Report:
    return arm["points"][-1]["accuracy"]


def _seeds(report: Report) -> str:
    epochs = report["setting"]["epochs"][-1]
    return f"{epochs} epochs, mean and 95 % interval over {len(report['seeds'])} seeds"


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def _title(figure: Figure, report: Report, subtitle: str) -> None:
    setting = report["setting"]
    title = f"{setting['dataset']}, {setting['train_size']:,} training images, network {setting['model']}\n{subtitle}"
    columns = int(TITLE_COLUMNS * figure.get_figwidth())
    lines = [wrapped for line in title.splitlines() for wrapped in textwrap.wrap(line, columns)]
    figure.suptitle("\n".join(lines), fontsize=9)
