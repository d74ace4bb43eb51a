"""Charts for reports, as inline SVG and HTML: light or dark as the reader's screen, told apart without colour too.

Colours are names of the page's style sheet (`--c1` to `--c8`, after Okabe and Ito, whom the colour-blind can tell
apart); lines differ in their dashes as well, and every chart carries a description for those who do not see it.
Pictures beside tables are Matplotlib's, and become files here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlmix.classifier.mixing import PolicySchedule

WIDTH, HEIGHT = 420, 250  # drawn; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 10, 40
COLOURS = 8
DASHES = ("none", "7 3", "2 2", "9 3 2 3")
MOST_POINTS = 200  # of a line; more are averaged

Line = Sequence[tuple[float, float]]


def line_chart(
    lines: Mapping[str, Line], *, title: str, x_label: str, y_label: str, dots: Sequence[str] = ()
) -> Markup:
    """Lines over a common axis.

    Args:
        lines: points (x, y) of each line, by its name; at least one point in all.
        title: what is shown.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        dots: names of lines that are drawn as dots, one for each point.
    """
    shown = {name: _thinned(line) for name, line in lines.items() if line}
    points = [point for line in shown.values() for point in line]
    across, down = (_Axis([point[axis] for point in points]) for axis in (0, 1))
    parts = [_frame(across, down, x_label, y_label)]
    for number, (name, line) in enumerate(shown.items()):
        places = [(_x(across.share(x)), _y(down.share(y))) for x, y in line]
        if name in dots:
            circles = Markup("").join(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="1.8"/>').format(*at) for at in places)
            parts.append(Markup('<g fill="{}" fill-opacity=".55">{}</g>').format(_colour(number), circles))
        else:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(
                Markup('<polyline points="{}" fill="none" stroke="{}" stroke-width="2" stroke-dasharray="{}"/>').format(
                    path, _colour(number), _dashes(number)
                )
            )
    told = "; ".join(
        f"{name}: from {line[0][1]:.4g} to {line[-1][1]:.4g}, highest {max(y for _, y in line):.4g}"
        for name, line in lines.items()
        if line
    )
    keys = [_key(name, number, dotted=name in dots) for number, name in enumerate(shown)]
    return _figure(parts, f"{title}. {y_label} over {x_label}. {told}.", title, keys if len(keys) > 1 else [])


def timeline(schedule: PolicySchedule, *, title: str) -> Markup:
    """Which share of the updates each method has at which progress of a training."""
    methods = list(dict.fromkeys(method for _, policy in schedule.segments for method in policy.shares))
    across, down = _Axis((0, 100)), _Axis((0, 100))
    parts = []
    starts = [0.0, *(until for until, _ in schedule.segments)]
    for (until, policy), start in zip(schedule.segments, starts, strict=False):
        height = 0.0
        for method in methods:
            share = policy.shares.get(method, 0.0)
            if not share:
                continue
            left, right = _x(start), _x(until)
            top, bottom = _y(height + share), _y(height)
            height += share
            parts.append(
                Markup(
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}" class="block">'
                    "<title>{}</title></rect>"
                ).format(
                    left,
                    top,
                    right - left,
                    bottom - top,
                    _colour(methods.index(method)),
                    f"{method} {100 * share:.3g} %, from {100 * start:.3g} to {100 * until:.3g} % of the training",
                )
            )
            if right - left > 9 * len(method) and bottom - top > 14:
                parts.append(
                    Markup('<text x="{:.1f}" y="{:.1f}" class="on" text-anchor="middle">{}</text>').format(
                        (left + right) / 2, (top + bottom) / 2 + 4, method
                    )
                )
    parts.append(_frame(across, down, "progress of the training, %", "share of the updates, %"))
    told = "; ".join(f"until {100 * until:.3g} %: {policy}" for until, policy in schedule.segments)
    keys = [_key(method, number, dotted=True) for number, method in enumerate(methods)]
    return _figure(parts, f"{title}. {told}.", title, keys)


def probability_timeline(
    ends: Sequence[float], probabilities: Sequence[Mapping[str, Mapping[str, float]]], *, title: str
) -> Markup:
    """Which probability each choice was given at which progress of a training; the most probable ones are framed.

    Args:
        ends: progress in (0, 1] at which each segment ends.
        probabilities: of each segment, by dimension and choice, the same ones in all; each in [0, 1].
        title: what is shown.
    """
    label, row = 150, 18
    scale = WIDTH - label - RIGHT
    parts, told, y = [], [], 0.0
    for dimension, names in probabilities[0].items():
        parts.append(Markup('<text x="0" y="{:.1f}" class="head">{}</text>').format(y + row - 5, dimension))
        y += row
        for name in names:
            parts.append(Markup('<text x="8" y="{:.1f}">{}</text>').format(y + row - 5, name))
            for start, end, given in zip([0.0, *ends], ends, probabilities, strict=False):
                share, largest = given[dimension][name], max(given[dimension].values())
                left, width = label + scale * start, scale * (end - start)
                parts.append(
                    Markup(
                        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{}" fill="var(--c1)" fill-opacity="{:.2f}" '
                        'class="{}"><title>{}</title></rect>'
                    ).format(
                        left + 1,
                        y + 1,
                        max(width - 2, 1),
                        row - 2,
                        0.55 * share,
                        "cell most" if share == largest else "cell",
                        f"{dimension} {name} {100 * share:.3g} %, from {100 * start:.3g} to {100 * end:.3g} %",
                    )
                )
                if width > 24 and share >= 0.005:
                    parts.append(
                        Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{:.0f}</text>').format(
                            left + width / 2, y + row - 5, 100 * share
                        )
                    )
            y += row
    across = _Axis((0, 100))
    for tick in across.ticks:
        x = label + scale * across.share(tick)
        parts.append(Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{:g}</text>').format(x, y + 14, tick))
    parts.append(
        Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">progress of the training, %</text>').format(
            label + scale / 2, y + 30
        )
    )
    for end, given in zip(ends, probabilities, strict=True):
        best = {dimension: max(shares, key=lambda name: shares[name]) for dimension, shares in given.items()}
        most = ", ".join(f"{dimension} {name} {100 * given[dimension][name]:.3g} %" for dimension, name in best.items())
        told.append(f"until {100 * end:.3g} %: {most}")
    return _figure(parts, f"{title}. {'; '.join(told)}.", title, [], height=round(y) + 36)


def interval_chart(rows: Sequence[tuple[str, float, float | None]], *, title: str, x_label: str) -> Markup:
    """Means with intervals, a line each.

    Args:
        rows: name, mean, and half-width of the interval or none.
        title: what is shown.
        x_label: name of the axis.
    """
    ends = [mean + sign * (half or 0) for _, mean, half in rows for sign in (-1, 1)]
    across = _Axis(ends)
    step, label = 24, 150
    height = step * len(rows) + BOTTOM
    scale = WIDTH - label - RIGHT
    parts = []
    for tick in across.ticks:
        x = label + scale * across.share(tick)
        parts.append(
            Markup(
                '<line x1="{0:.1f}" x2="{0:.1f}" y1="0" y2="{1}" class="grid"/>'
                '<text x="{0:.1f}" y="{2}" text-anchor="middle">{3:g}</text>'
            ).format(x, height - BOTTOM, height - BOTTOM + 15, tick)
        )
    for number, (name, mean, half) in enumerate(rows):
        y = step * number + step / 2
        low, high = (label + scale * across.share(mean + sign * (half or 0)) for sign in (-1, 1))
        parts.append(
            Markup(
                '<text x="0" y="{:.1f}">{}</text>'
                '<line x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}" class="whisker"/>'
                '<circle cx="{:.1f}" cy="{y:.1f}" r="4" fill="var(--c1)"/>'
            ).format(y + 4, name, low, high, label + scale * across.share(mean), y=y)
        )
    parts.append(
        Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(label + scale / 2, height - 6, x_label)
    )
    told = "; ".join(f"{name}: {mean:.2f}" + ("" if half is None else f" ± {half:.2f}") for name, mean, half in rows)
    return _figure(parts, f"{title}. {x_label}. {told}.", title, [], height=height)


def share_table(
    names: Sequence[str], columns: Sequence[str], shares: Sequence[Sequence[float]], *, title: str
) -> Markup:
    """Shares in [0, 1] as a table whose cells are the darker the larger they are, the number in each.

    Args:
        names: of the rows.
        columns: names of the columns.
        shares: by row and column.
        title: what is shown.
    """
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(column) for column in columns)
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            name,
            Markup("").join(
                Markup('<td style="background:color-mix(in srgb,var(--c1) {:.0f}%,transparent)">{}</td>').format(
                    55 * share, f"{100 * share:.0f}" if share >= 0.005 else ""
                )
                for share in row
            ),
        )
        for name, row in zip(names, shares, strict=True)
    )
    return Markup(
        '<div class="wide"><table class="shares"><caption>{}</caption><thead><tr><td></td>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>"
    ).format(title, head, rows)


class _Axis:
    """An axis that holds all values, and its ticks at round numbers."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        if low == high:
            low, high = low - 0.5, high + 0.5
        whole = all(float(value).is_integer() for value in values)
        self.ticks: list[float] = list(MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole).tick_values(low, high))
        self._low, self._high = min(low, self.ticks[0]), max(high, self.ticks[-1])

    def share(self, value: float) -> float:
        """Where a value lies between the ends, in [0, 1]."""
        return (value - self._low) / (self._high - self._low)


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float) -> float:
    return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _frame(across: _Axis, down: _Axis, x_label: str, y_label: str) -> Markup:
    parts = [
        Markup(
            '<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}" class="grid"/>'
            '<text x="{0:.1f}" y="{3}" text-anchor="middle">{4:g}</text>'
        ).format(_x(across.share(tick)), TOP, HEIGHT - BOTTOM, HEIGHT - BOTTOM + 15, tick)
        for tick in across.ticks
    ]
    parts += [
        Markup(
            '<line x1="{1}" x2="{2}" y1="{0:.1f}" y2="{0:.1f}" class="grid"/>'
            '<text x="{3}" y="{4:.1f}" text-anchor="end">{5:g}</text>'
        ).format(_y(down.share(tick)), LEFT, WIDTH - RIGHT, LEFT - 5, _y(down.share(tick)) + 4, tick)
        for tick in down.ticks
    ]
    parts.append(
        Markup(
            '<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>'
            '<text transform="translate(11 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
        ).format(_x(0.5), HEIGHT - 6, x_label, _y(0.5), y_label)
    )
    return Markup("").join(parts)


def _figure(parts: Sequence[Markup], told: str, title: str, keys: Sequence[Markup], height: int = HEIGHT) -> Markup:
    return Markup(
        '<figure><svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg><figcaption>{}{}</figcaption></figure>'
    ).format(WIDTH, height, told, Markup("").join(parts), title, Markup("").join(keys))


def _key(name: str, number: int, *, dotted: bool) -> Markup:
    mark = (
        Markup('<rect width="12" height="10" y="1" x="6" fill="{}"/>').format(_colour(number))
        if dotted
        else Markup('<line x1="0" x2="24" y1="6" y2="6" stroke="{}" stroke-width="2.5" stroke-dasharray="{}"/>').format(
            _colour(number), _dashes(number)
        )
    )
    return Markup('<span class="key"><svg viewBox="0 0 24 12" aria-hidden="true">{}</svg>{}</span>').format(mark, name)


def _dashes(number: int) -> str:
    # One further on each time the colours come round, or a ninth line would look like the first.
    return DASHES[(number + number // COLOURS) % len(DASHES)]


def _colour(number: int) -> str:
    return f"var(--c{number % COLOURS + 1})"


def _thinned(line: Line) -> Line:
    """A line of at most `MOST_POINTS` points, each the mean of as many that follow each other."""
    size = -(-len(line) // MOST_POINTS)
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group))
        for group in (line[start : start + size] for start in range(0, len(line), size))
    ]


def png(figure: Figure) -> bytes:
    """A Matplotlib figure as a file's content."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()
