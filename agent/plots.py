"""Plots that searches, trainings, reports and studies share; import this only where something is drawn."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from rlmix.envs import DIMENSIONS, Menu

MIN_SHOWN_SHARE = 0.005  # smaller ones would read "0"


def heat_map(
    panel: Axes,
    shares: NDArray[np.float64],
    *,
    names: Sequence[str],
    edges: Sequence[float] | None = None,
    columns: Sequence[str] | None = None,
    numbers: bool = False,
    number_colour: str | None = None,
    min_width: float = 0.0,
    vmax: float | None = 1.0,
    cmap: str | Colormap = "viridis",
    fontsize: float = 9,
) -> QuadMesh:
    """Draw shares as coloured cells: a row for each name, the first one on top.

    Args:
        panel: axes to draw into.
        shares: `[rows, columns]`, in [0, 1].
        names: names of the rows.
        edges: `columns + 1` places on the horizontal axis, optional, defaults to -0.5, 0.5, 1.5, ...
        columns: names of the columns; optional, defaults to the numbers of the axis.
        numbers: whether each cell shows its share in %.
        number_colour: colour of these numbers; optional, defaults to black or white by the cell's share.
        min_width: width from which a cell has room for its number, on the horizontal axis.
        vmax: share of the brightest colour; None: the largest one.
        cmap: Matplotlib colour map.
        fontsize: font size of the rows' names, in points.
    """
    rows, places = shares.shape
    bounds = np.arange(places + 1) - 0.5 if edges is None else np.asarray(edges, dtype=float)
    mesh = panel.pcolormesh(bounds, np.arange(rows + 1) - 0.5, shares, vmin=0, vmax=vmax, cmap=cmap)
    panel.set_ylim(rows - 0.5, -0.5)
    panel.set_yticks(range(rows), names, fontsize=fontsize)
    middles = (bounds[:-1] + bounds[1:]) / 2
    if columns is not None:
        panel.set_xticks(middles, columns, fontsize=fontsize - 1)
    if numbers:
        for (row, place), share in np.ndenumerate(shares):
            if share >= MIN_SHOWN_SHARE and bounds[place + 1] - bounds[place] > min_width:
                ink = number_colour or ("black" if share > 0.6 else "white")
                style: dict[str, Any] = {
                    "ha": "center",
                    "va": "center",
                    "color": ink,
                    "fontsize": fontsize - 1,
                    "gid": "number",
                }
                panel.text(float(middles[place]), row, f"{100 * share:.0f}", **style)
    return mesh


def interval_plot(
    panel: Axes,
    places: ArrayLike,
    means: ArrayLike,
    reach: ArrayLike,
    *,
    vertical: bool = False,
    color: str = "#0072b2",
    line: str = "none",
    marker: str = "o",
    markersize: float = 4,
    capsize: float = 0,
    linewidth: float = 1.5,
    label: str | None = None,
) -> None:
    """Draw means as dots with their intervals as bars.

    Args:
        panel: axes to draw into.
        places: `[N]`, rows of the dots, or their columns where bars are vertical.
        means: `[N]`.
        reach: `[N]` half-widths, or `[2, N]` distances to the lower and the upper end.
        vertical: whether bars are vertical.
        color: Matplotlib colour.
        line: line style that connects the dots; `none` draws no line.
        marker: Matplotlib marker of the dots.
        markersize: size of the dots, in points.
        capsize: length of the bars' caps, in points.
        linewidth: width of the bars, in points.
        label: name in the legend.
    """
    style: dict[str, Any] = {
        "color": color,
        "linestyle": line,
        "marker": marker,
        "markersize": markersize,
        "capsize": capsize,
        "linewidth": linewidth,
        "label": label,
    }
    if vertical:
        panel.errorbar(places, means, yerr=reach, **style)
    else:
        panel.errorbar(means, places, xerr=reach, **style)


def interval_rows(panel: Axes, *, fontsize: float = 8) -> None:
    """Dress axes for `interval_plot` with horizontal bars: a grid to read values by, and no frame around it."""
    panel.tick_params(labelsize=fontsize)
    panel.tick_params(axis="y", length=0)
    panel.grid(axis="x", color="#dddddd", linewidth=0.6)
    panel.spines[["top", "right", "left"]].set_visible(False)


def choices_figure(menu: Menu, shares: list[NDArray[np.float64]], *, ticks: list[str] | None, xlabel: str) -> Figure:
    """Return how often each choice is made along an axis, a panel for each dimension of the menu.

    Args:
        menu: the menu of the choices.
        shares: for each dimension `[choices, places along the axis]`, each column summing to 1.
        ticks: name of each place; optional, defaults to numbers.
        xlabel: label of the axis.
    """
    figure = Figure(figsize=(7, 8))
    figure.subplots_adjust(left=0.28, right=0.87, top=0.96, bottom=0.07, hspace=0.55)  # a solver would take longer
    panels = figure.subplots(len(DIMENSIONS), 1, gridspec_kw={"height_ratios": [size + 1 for size in menu.sizes]})
    for panel, dimension, share in zip(panels, DIMENSIONS, shares, strict=True):
        names = menu.names(dimension)
        mesh = heat_map(panel, share, names=names, columns=ticks, numbers=ticks is not None, fontsize=12)
        panel.set_title(dimension, loc="left", fontsize=13, fontweight="bold")
    panels[-1].set_xlabel(xlabel, fontsize=12)
    figure.colorbar(mesh, cax=figure.add_axes((0.89, 0.25, 0.025, 0.5)), label="share of choices")
    return figure


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
