"""Charts for reports: Matplotlib's SVG in the colours of the page, light or dark.

Colours are names of the page's style sheet (`--c1` to `--c8`, after Okabe and Ito, readable by the colour-blind). Lines
differ in their dashes as well, and every chart has a description for readers who do not see it.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from rlmix.agent.plots import heat_map, interval_plot
from rlmix.classifier.mixing import METHODS, PolicySchedule

WIDTH, HEIGHT = 420, 250  # in px of the drawing, which the page scales
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 10, 40
NAMES = 150  # px, width of the rows' names
NAME_LENGTH = 22  # characters for which they have room
FONT_SIZE = 12
MAX_POINTS = 200  # of a line; longer ones are averaged

# Charts are drawn in the page's light colours, which are then replaced by their names.
INK, GRID, PAPER = "#1b1f24", "#d0d7de", "#ffffff"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0548c", "#b57a00", "#3a9bd9", "#6e7781", "#5b2a86")
PAGE_COLOURS = {
    INK: "currentColor",
    GRID: "var(--line)",
    PAPER: "var(--paper)",
    **{colour: f"var(--c{number})" for number, colour in enumerate(COLOURS, start=1)},
}
DASHES: tuple[tuple[float, ...], ...] = ((), (7, 3), (2, 2), (9, 3, 2, 3))
CELLS = ListedColormap([(*to_rgb(COLOURS[0]), 0.55 * level / 255) for level in range(256)])
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": FONT_SIZE,
    "axes.labelsize": FONT_SIZE,
    "lines.scale_dashes": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor"), INK),
}
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Key:
    """Entry of a chart's legend."""

    name: str
    colour: str
    dashes: str
    filled: bool


@dataclass(frozen=True)
class Chart:
    """Drawing with its title and legend."""

    macro: ClassVar = "chart"
    svg: Markup
    title: str
    keys: Sequence[Key] = ()


def line_chart(lines: Mapping[str, Line], *, title: str, x_label: str, y_label: str, dots: Sequence[str] = ()) -> Chart:
    """Draw lines over a common axis.

    Args:
        lines: points (x, y) of each line, by its name; at least one point in all. A y of NaN is a gap in the line.
        title: caption of the chart.
        x_label: label of the horizontal axis.
        y_label: label of the vertical axis.
        dots: names of lines that are drawn as dots, one for each point.
    """
    parts = {name: _parts(line) for name, line in lines.items() if line}
    drawn = {name: _thinned(line) for name, line in parts.items()}
    points = np.array([point for line in drawn.values() for part in line for point in part])
    with matplotlib.rc_context(STYLE):
        figure, panel = _panel(x_label, y_label)
        _axis(panel, "x", points[:, 0])
        _axis(panel, "y", points[:, 1])
        for number, (name, line) in enumerate(drawn.items()):
            colour = _colour(number)
            if name in dots:
                together = [point for part in line for point in part]
                panel.plot(*zip(*together, strict=True), "o", color=colour, alpha=0.55, ms=3.6, mew=0, gid="dots")
                continue
            style = (0, _dashes(number)) if _dashes(number) else "-"
            joined = [point for part in line for point in (*part, (part[-1][0], np.nan))]
            panel.plot(*zip(*joined, strict=True), linestyle=style, color=colour, lw=2, clip_on=False, gid="line")
            if alone := [part[0] for part in line if len(part) == 1]:  # a line of one point is not seen
                panel.plot(*zip(*alone, strict=True), "o", color=colour, ms=4, mew=0, clip_on=False, gid="alone")
        values = "; ".join(
            f"{name}: from {line[0][0][1]:.4g} to {line[-1][-1][1]:.4g}, "
            f"highest {max(y for part in line for _, y in part):.4g}"
            f"{f', with gaps, in {len(line)} parts' if len(line) > 1 else ''}"
            for name, line in parts.items()
        )
        keys = [_key(name, number, filled=name in dots) for number, name in enumerate(drawn)]
        svg = _svg(figure, f"{title}. {y_label} over {x_label}. {values}.")
    return Chart(svg, title, keys if len(keys) > 1 else ())


def policy_timeline(schedule: PolicySchedule, *, title: str) -> Chart:
    """Draw each method's share of the updates over a training, stacked.

    Args:
        schedule: the policies, by progress.
        title: caption of the chart.
    """
    used = {method for _, policy in schedule.segments for method in policy.shares}
    numbers = {method: number for number, method in enumerate(METHODS) if method in used}  # one colour in all reports
    blocks = []
    with matplotlib.rc_context(STYLE):
        figure, panel = _panel("progress of the training, %", "share of the updates, %")
        _axis(panel, "x", [0, 100])
        _axis(panel, "y", [0, 100])
        starts = [0.0, *(until for until, _ in schedule.segments)]
        for (until, policy), start in zip(schedule.segments, starts, strict=False):
            height, width = 0.0, 100 * (until - start)
            for method in numbers:
                share = 100 * policy.shares.get(method, 0.0)
                if not share:
                    continue
                colour = _colour(numbers[method])
                place = (100 * start, height)
                panel.add_patch(Rectangle(place, width, share, fc=colour, ec=PAPER, lw=1, clip_on=False, gid="block"))
                blocks.append(f"{method} {share:.3g} %, from {100 * start:.3g} to {100 * until:.3g} % of the training")
                room = width * (WIDTH - LEFT - RIGHT) / 100, share * (HEIGHT - TOP - BOTTOM) / 100
                if room[0] > 9 * len(method) and room[1] > 14:
                    centre = (place[0] + width / 2, height + share / 2)
                    style: dict[str, Any] = {
                        "ha": "center",
                        "va": "center",
                        "color": PAPER,
                        "weight": "bold",
                        "gid": "on",
                    }
                    panel.text(*centre, method, **style)
                height += share
        segments = "; ".join(f"until {100 * until:.3g} %: {policy}" for until, policy in schedule.segments)
        svg = _svg(figure, f"{title}. {segments}.", titles={"block": blocks})
    return Chart(svg, title, [_key(method, number, filled=True) for method, number in numbers.items()])


def probability_timeline(
    ends: Sequence[float],
    probabilities: Sequence[Mapping[str, Mapping[str, float]]],
    *,
    kept: Sequence[Mapping[str, str]] = (),
    title: str,
) -> Chart:
    """Draw the probability of each choice over a training, as a heat map; the most probable choices are framed.

    Args:
        ends: progress in (0, 1] at which each segment ends.
        probabilities: probabilities in [0, 1] of each segment, by dimension and choice, which are the same in all.
        kept: of each segment, choices by dimension that get a dot; optional.
        title: caption of the chart.
    """
    row, head = 18, 18
    dimensions = probabilities[0]
    height = sum(head + row * len(names) for names in dimensions.values()) + BOTTOM
    edges = [0.0, *(100 * end for end in ends)]
    cells = []
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        top = 0
        for dimension, names in dimensions.items():
            figure.text(0, 1 - (top + head - 5) / height, dimension, weight="bold")
            top += head + row * len(names)
            panel = _axes(figure, NAMES, BOTTOM + height - BOTTOM - top, row * len(names))
            shares = np.array([[given[dimension][name] for given in probabilities] for name in names])
            narrow = 100 * 24 / (WIDTH - NAMES - RIGHT)
            mesh = heat_map(
                panel,
                shares,
                names=list(names),
                edges=edges,
                numbers=True,
                number_colour=INK,
                min_width=narrow,
                cmap=CELLS,
                fontsize=FONT_SIZE,
            )
            mesh.set(edgecolor=GRID, linewidth=0.5, gid="cells", clip_on=False)
            for place, shown in enumerate(shares.T):
                for most in np.flatnonzero(shown == shown.max()):
                    corner, width = (edges[place], most - 0.5), edges[place + 1] - edges[place]
                    panel.add_patch(Rectangle(corner, width, 1, fill=False, ec=INK, lw=1.5, clip_on=False, gid="most"))
            for start, end, choices in zip(edges, edges[1:], kept, strict=False):
                if dimension in choices:
                    at = start + min(0.06 * (end - start), 3), list(names).index(choices[dimension])
                    panel.plot(*at, "o", color=INK, ms=5, clip_on=False, gid="kept")
            _bare(panel)
            panel.set_xlim(0, 100)
            panel.set_xticks([])
            cells += [
                f"{dimension} {name} {100 * given[dimension][name]:.3g} %, from {start:.3g} to {end:.3g} %"
                for name in names
                for start, end, given in zip(edges, edges[1:], probabilities, strict=False)
            ]
        _axis(panel, "x", [0, 100], grid=False)
        panel.set_xlabel("progress of the training, %")
        segments = []
        for end, given in zip(ends, probabilities, strict=True):
            best = {dimension: max(shares, key=lambda name: shares[name]) for dimension, shares in given.items()}
            most_probable = ", ".join(f"{key} {name} {100 * given[key][name]:.3g} %" for key, name in best.items())
            segments.append(f"until {100 * end:.3g} %: {most_probable}")
        svg = _svg(figure, f"{title}. {'; '.join(segments)}.", titles={"cells": cells})
    return Chart(svg, title)


def interval_chart(rows: Sequence[tuple[str, float, float | None]], *, title: str, x_label: str) -> Chart:
    """Draw mean accuracies with intervals, a row each; what of an interval is no accuracy is cut off.

    Args:
        rows: name, mean in %, and half-width of the interval or None.
        title: caption of the chart.
        x_label: label of the axis.
    """
    names = [textwrap.wrap(name, NAME_LENGTH) for name, _, _ in rows]
    height = (9 + 15 * max(map(len, names))) * len(rows) + BOTTOM
    means = np.array([mean for _, mean, _ in rows])
    reach = np.array([half_width or 0.0 for _, _, half_width in rows])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, height / 72))
        panel = _axes(figure, NAMES, BOTTOM, height - BOTTOM)
        _bare(panel)
        panel.set_ylim(len(rows) - 0.5, -0.5)
        panel.set_yticks(range(len(rows)), ["\n".join(name) for name in names], linespacing=1.0)
        panel.set_xlabel(x_label)
        _axis(panel, "x", np.clip([*(means - reach), *(means + reach)], 0, 100))
        interval_plot(panel, np.arange(len(rows)), means, reach, color=COLOURS[0], markersize=8, linewidth=2)
        values = "; ".join(
            f"{name}: {mean:.2f}" + ("" if half_width is None else f" ± {half_width:.2f}")
            for name, mean, half_width in rows
        )
        svg = _svg(figure, f"{title}. {x_label}. {values}.")
    return Chart(svg, title)


def _panel(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    panel = _axes(figure, LEFT, BOTTOM, HEIGHT - TOP - BOTTOM)
    _bare(panel)
    panel.set_xlabel(x_label)
    figure.text(11 / WIDTH, (BOTTOM + HEIGHT - TOP) / 2 / HEIGHT, y_label, rotation=90, ha="center", va="center")
    return figure, panel


def _axes(figure: Figure, left: float, bottom: float, height: float) -> Axes:
    """Return axes that reach from `left` to the right margin; all in px."""
    full = 72 * figure.get_figheight()
    return figure.add_axes((left / WIDTH, bottom / full, (WIDTH - left - RIGHT) / WIDTH, height / full))


def _bare(panel: Axes) -> None:
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0, pad=5)
    panel.tick_params(axis="x", pad=8)  # clear of the lowest number of the other axis
    panel.set_axisbelow(True)


def _axis(panel: Axes, which: str, values: Sequence[float] | np.ndarray, *, grid: bool = True) -> None:
    """Set an axis's limits to hold all values, with ticks at round numbers."""
    low, high = float(min(values)), float(max(values))
    if low == high:
        low, high = low - 0.5, high + 0.5
    whole = all(float(value).is_integer() for value in values)
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high)
    panel.set(
        **{
            f"{which}ticks": ticks,
            f"{which}ticklabels": [f"{tick:g}" for tick in ticks],
            f"{which}lim": (min(low, ticks[0]), max(high, ticks[-1])),
        }
    )
    if grid:
        panel.grid(axis="x" if which == "x" else "y", color=GRID, linewidth=1)


def _svg(figure: Figure, description: str, titles: Mapping[str, Sequence[str]] | None = None) -> Markup:
    """Return a figure as an element of an HTML page, the same bytes each time.

    Args:
        figure: drawn in the colours of `PAGE_COLOURS`.
        description: text for readers who do not see it.
        titles: tooltips of shapes, by `gid` and in the order of drawing.
    """
    file = io.StringIO()
    # Names of clip paths and markers are hashes, and must differ between the charts of a page.
    with matplotlib.rc_context({"svg.hashsalt": description}):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(file.getvalue())
    remaining = {name: iter(texts) for name, texts in (titles or {}).items()}
    for parent in list(root.iter()):
        for child in list(parent):
            # Matplotlib's style sheet would apply to the whole page, and its background is not needed.
            if child.tag == f"{SVG}style" or (parent.get("id") in ("figure_1",) and child.get("id") == "patch_1"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(SVG)
        if (target := element.attrib.pop(f"{XLINK}href", None)) is not None:
            element.set("href", target)
        if "style" in element.attrib:
            element.set("style", _page_style(element.attrib["style"]))
        if element.get("transform", "").startswith("rotate(-0 "):
            del element.attrib["transform"]
        if "d" in element.attrib:
            path = re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", element.attrib["d"])
            element.set("d", " ".join(path.split()))
        if element.tag == "g":
            name = re.sub(r"_\d+$", "", element.attrib.pop("id", ""))
            element.attrib.update({"class": name} if name else {})
            for shape, text in zip(element.findall(f"{SVG}path"), remaining.get(name, ()), strict=False):
                _add_title(shape, text)
        element.text, element.tail = (element.text or "").strip() or None, None
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _add_title(shape: ElementTree.Element, text: str) -> None:
    ElementTree.SubElement(shape, "title").text = text


def _page_style(style: str) -> str:
    style = re.sub(r"font-family: [^;]*;? ?", "", style)
    return re.sub("#[0-9a-f]{6}", lambda colour: PAGE_COLOURS.get(colour[0], colour[0]), style)


def _key(name: str, number: int, *, filled: bool) -> Key:
    return Key(name, PAGE_COLOURS[_colour(number)], " ".join(f"{part:g}" for part in _dashes(number)) or "none", filled)


def _dashes(number: int) -> tuple[float, ...]:
    # Shifted by one each time the colours repeat; otherwise a ninth line would look like the first.
    return DASHES[(number + number // len(COLOURS)) % len(DASHES)]


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _parts(line: Line) -> list[Line]:
    """Return a line's parts between its gaps."""
    return [list(part) for gap, part in groupby(line, key=lambda point: math.isnan(point[1])) if not gap]


def _thinned(parts: Sequence[Line]) -> list[Line]:
    """Return a line's parts with at most `MAX_POINTS` points in all and one more for each part, means of neighbours."""
    size = -(-sum(map(len, parts)) // MAX_POINTS)
    return [
        [
            (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
            for group in (part[start : start + size] for start in range(0, len(part), size))
        ]
        for part in parts
    ]
