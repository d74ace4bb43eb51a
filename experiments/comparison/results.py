"""Results of a comparison: means with intervals and paired differences, as a table, as CSV and as a plot."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.any_agent import AnyAgent
from rlmix.classifier.evaluation.measure import Column
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.mixing import PolicySchedule
from rlmix.experiments.comparison.config import NAMED
from rlmix.experiments.comparison.contestants import Contestant
from rlmix.experiments.comparison.intervals import (
    crossed_interval,
    format_interval,
    format_shares,
    holm,
    mean_interval,
    paired_difference,
    paired_p_value,
)
from rlmix.experiments.reports import short_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNKNOWN = "a processor that was not recorded"  # in the oldest logs
ACCURACY = Column(lambda run: run["accuracy"])
ACROSS = 4  # panels in a row of the picture
PANEL = (2.2, 0.26)  # width of a panel and height of a row, in inches


def pack_hits(hits: NDArray[np.bool_]) -> str:
    """Encode which images are right, `[N]`, as text that JSON can hold."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def unpack_hits(text: str, images: int) -> NDArray[np.float64]:
    """Decode the text of `pack_hits`, `[images]`: 1 where the image is right, else 0."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=images)
    return bits.astype(np.float64)


def summarise_comparison(
    contestants: Mapping[str, Contestant], runs: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str, images: int
) -> dict[str, Any]:
    """Return means with 95 % intervals, and paired differences to a baseline with Holm-corrected p-values.

    Args:
        contestants: contestants by name.
        runs: lines of the log by contestant, in the same order of seeds.
        baseline: name of the contestant that the others are compared with.
        images: number of images of every accuracy.

    Returns:
        The content of `results.json`. An interval holds `mean`, `half_width` (Student's t over seeds) and `per_seed`;
        the interval of an accuracy or a difference also holds `half_width_with_images` (over seeds and images) if the
        log says for every training which images were right.
    """
    accuracies = {name: [run["accuracy"] for run in lines] for name, lines in runs.items()}
    hits = {name: _hits(lines, images) for name, lines in runs.items()}
    others = [name for name in runs if name != baseline]
    p_values = holm([paired_p_value(accuracies[name], accuracies[baseline]) for name in others])
    against = hits[baseline]
    gaps = {}
    for name, p_value in zip(others, p_values, strict=True):
        mean, half_width = paired_difference(accuracies[name], accuracies[baseline])
        own = hits[name]
        difference = None if own is None or against is None else own - against
        gaps[name] = {"mean": mean, "half_width": half_width, **_with_images(difference), "p_value": p_value}
    return {
        "baseline": baseline,
        "methods": {
            name: {
                "title": contestants[name].title,
                **_policies(contestants[name], lines),
                "saliency": contestants[name].saliency,
                "accuracy": {**interval(accuracies[name]), **_with_images(hits[name])},
                "measures": _measures(lines),
                "seconds": interval([run["seconds"] for run in lines]),
                "ended": [not run["diverged"] for run in lines],
                "diverged": sum(run["diverged"] for run in lines),
                **_threshold_results(contestants[name], lines),
            }
            for name, lines in runs.items()
        },
        "images": images,
        "processors": Counter(run.get("processor", UNKNOWN) for lines in runs.values() for run in lines),
        "less_baseline": gaps,
    }


def _policies(contestant: Contestant, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schedule of a contestant; of an agent the checksum, and the schedules that it chose, by seed."""
    policy = contestant.policy
    if isinstance(policy, AnyAgent):
        return {"agent_sha256": policy.checksum, "chosen": [line["chosen"] for line in lines]}
    return {"schedule": policy.to_json()}


def schedules_of(row: Mapping[str, Any]) -> list[PolicySchedule]:
    """Return the schedules that a contestant's trainings had: the one of all, or those that an agent chose, by seed."""
    return [PolicySchedule.from_json(schedule) for schedule in row.get("chosen", [row.get("schedule")])]


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Return the mean of at least two values, the half-width of its 95 % interval, and the values."""
    mean, half_width = mean_interval(values)
    assert math.isfinite(half_width), "an interval takes two values"
    return {"mean": mean, "half_width": half_width, "per_seed": list(values)}


def best_first(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return contestants and their results, the highest mean accuracy first."""
    return sorted(report["methods"].items(), key=lambda entry: -entry[1]["accuracy"]["mean"])


def markdown(report: Mapping[str, Any]) -> str:
    """Format the report as Markdown, the best contestant first."""
    setting, host, baseline = report["setting"], report["machine"], report["methods"][report["baseline"]]["title"]
    processors = " and ".join(
        f"{name} ({count} training{'s' if count > 1 else ''})" for name, count in report["processors"].items()
    )
    comparisons = len(report["less_baseline"])
    corrected = f", corrected for {comparisons} comparisons (Holm)" if comparisons > 1 else ""
    rows = []
    for name, row in best_first(report):
        gap = report["less_baseline"].get(name)
        ahead = "" if gap is None else format_share(gap, signed=True)
        p_value = "" if gap is None else f"{gap['p_value']:.3f}" if gap["p_value"] >= 0.001 else "< 0.001"
        speed, seconds = format_speed(setting, row), f"{row['seconds']['mean']:.0f}"
        rows.append((row["title"], format_share(row["accuracy"]), ahead, p_value, speed, seconds, row["diverged"]))
    headers = ("", "Accuracy", f"Less {baseline}", "p", "Images/s", "Seconds", "Diverged")
    lines = [
        f"# {short_name(setting['dataset'])}: {setting['train_size']:,} training images, "
        f"{setting['updates']:,} updates",
        "",
        f"Network {setting['model']!r}, batches of {setting['batch_size']}, {setting['precision']} on "
        f"{setting['device']}{_others(setting)}, {len(report['seeds'])} seeds (0 to {report['seeds'][-1]}); a seed "
        "draws training images, weights, order and mixing for every row. Accuracy on "
        f"{report['images']:,} {setting['split']} images in %; means with 95 % Student t intervals over seeds"
        f"{'; in brackets over seeds and images' if any_with_images(report) else ''}. "
        f"Differences to *{baseline}* are paired by seed, p-values are those of paired t tests{corrected}. Methods mix "
        "half of the updates unless it says otherwise.",
        "",
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        "",
        *_measures_table(report),
        f"Made by `{report['command']}` on {processors}, {host['cores']} cores"
        f"{', ' + host['gpu'] if host['gpu'] else ''}, torch {host['torch']}. Trainings shared the machine "
        f"({report['config']['processes']} at a time, one thread each) with other work: seconds are for orientation, "
        "`benchmarks/training_speed.py` measures speed.",
        "",
    ]
    return "\n".join(lines)


def _others(setting: Mapping[str, Any]) -> str:
    """Return the options of a setting that not every setting names, for the report's first lines."""
    return "".join(
        f", {name} {value}"
        for name, value in setting.items()
        if name not in (*NAMED, "torch", "split") and value is not None
    )


def images_per_second(setting: Mapping[str, Any], row: Mapping[str, Any]) -> float | None:
    """Return one contestant's training images per second, mean over the trainings that reached their end, or None.

    Reports of earlier versions do not say which those are: theirs is the mean over all.
    """
    images, seconds = setting["updates"] * setting["batch_size"], row["seconds"]["per_seed"]
    ended = row.get("ended", [True] * len(seconds))
    speeds = [images / needed for needed, whole in zip(seconds, ended, strict=True) if whole]
    return float(np.mean(speeds)) if speeds else None


def format_speed(setting: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """Format one contestant's training images per second; empty where no training reached its end."""
    speed = images_per_second(setting, row)
    return "" if speed is None else f"{speed:,.0f}"


def any_with_images(report: Mapping[str, Any]) -> bool:
    """Return whether any accuracy has an interval over seeds and images."""
    return any("half_width_with_images" in row["accuracy"] for row in report["methods"].values())


def format_share(value: Mapping[str, Any], *, signed: bool = False) -> str:
    """Format a mean share in % with its intervals: over seeds, and in brackets over seeds and images.

    Args:
        value: interval as in `summarise_comparison`.
        signed: show the sign of a positive mean too.
    """
    text = format_shares(value["mean"], value["half_width"], signed=signed)
    with_images = value.get("half_width_with_images")
    return text if with_images is None else f"{text} ({100 * with_images:.2f})"


def format_column(column: Column, value: Mapping[str, Any] | None) -> str:
    """Format a column's mean with its interval; a dash where a training has no number."""
    if value is None:
        return "–"
    return format_share(value) if column.percent else format_interval(value["mean"], value["half_width"], digits=3)


def columns_of(report: Mapping[str, Any]) -> dict[str, Column]:
    """Return the columns beyond accuracy that the contestants have, by heading, in the order of `MEASURES`."""
    measured = {heading for row in report["methods"].values() for heading in row["measures"]}
    return {
        heading: column
        for measure in MEASURES.values()
        for heading, column in measure.columns.items()
        if heading in measured
    }


def as_csv(report: Mapping[str, Any]) -> str:
    """Format the report as CSV: a line for each contestant, shares in [0, 1]."""
    header = [
        "method",
        "title",
        "seeds",
        "images",
        "accuracy",
        "accuracy_half_width",
        "accuracy_half_width_with_images",
    ]
    header += ["less_baseline", "less_baseline_half_width", "less_baseline_half_width_with_images", "p_value"]
    header += ["seconds", "images_per_second", "diverged"]
    columns = columns_of(report)
    for heading in columns:
        name = heading.replace(" / ", "_").replace(" ", "_")
        header += [name, f"{name}_half_width"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for name, row in best_first(report):
        gap = report["less_baseline"].get(name, {})
        cells = [name, row["title"], len(report["seeds"]), report["images"]]
        cells += [row["accuracy"].get(key) for key in ("mean", "half_width", "half_width_with_images")]
        cells += [gap.get(key) for key in ("mean", "half_width", "half_width_with_images", "p_value")]
        cells += [row["seconds"]["mean"], images_per_second(report["setting"], row), row["diverged"]]
        for heading in columns:
            value = row["measures"].get(heading) or {}
            cells += [value.get("mean"), value.get("half_width")]
        writer.writerow(cells)
    return file.getvalue()


def plot_comparison(report: Mapping[str, Any]) -> Figure:
    """Plot accuracy and every other column side by side, a row for each contestant, 95 % intervals over seeds."""
    from matplotlib.figure import Figure  # slow to import, and needed here alone

    from rlmix.agent.plots import interval_plot, interval_rows

    rows = best_first(report)[::-1]
    panels = {"accuracy": ACCURACY, **columns_of(report)}
    across = min(len(panels), ACROSS)
    down = -(-len(panels) // across)
    width, height = PANEL
    figure = Figure(figsize=(2 + width * across, down * (0.9 + height * len(rows))), layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axis in grid.flat[len(panels) :]:
        axis.set_visible(False)
    for place, ((panel, column), axis) in enumerate(zip(panels.items(), grid.flat, strict=False)):
        scale = 100 if column.percent else 1
        for number, (name, row) in enumerate(rows):
            value = row["accuracy"] if panel == "accuracy" else row["measures"].get(panel)
            if value is None:
                continue
            colour = "#d55e00" if name == report["baseline"] else "#0072b2"
            interval_plot(axis, [number], [scale * value["mean"]], [scale * value["half_width"]], color=colour)
        unit = ", %" if column.percent else ""
        axis.set_title(f"{panel}{unit}{' (low is good)' if column.lower_is_better else ''}", fontsize=9)
        interval_rows(axis)
        if place % across == 0:
            axis.set_yticks(range(len(rows)), [row["title"] for _, row in rows], fontsize=9)
    return figure


def _hits(lines: Sequence[Mapping[str, Any]], images: int) -> NDArray[np.float64] | None:
    """Return which images were right, `[S, N]`; None where the log of a training does not say."""
    if any(run.get("hits") is None for run in lines):
        return None
    return np.stack([unpack_hits(run["hits"], images) for run in lines])


def _with_images(values: NDArray[np.float64] | None) -> dict[str, float]:
    return {} if values is None else {"half_width_with_images": crossed_interval(values)[1]}


def _measures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return intervals of the columns of all measures that every training has; None where a training has no number."""
    intervals: dict[str, Any] = {}
    for name, measure in MEASURES.items():
        if not all(name in run.get("measures", {}) for run in lines):
            continue
        results = [run["measures"][name] for run in lines]
        for heading, column in measure.columns.items():
            values = [None if result is None else column.value(result) for result in results]
            numbers = [value for value in values if value is not None]
            intervals[heading] = interval(numbers) if len(numbers) == len(lines) else None
    return intervals


def _measures_table(report: Mapping[str, Any]) -> list[str]:
    columns = columns_of(report)
    if not columns:
        return []
    measured = [measure for measure in MEASURES.values() if measure.columns.keys() & columns.keys()]
    ratios = [heading for heading, column in columns.items() if not column.percent]
    rows = [
        (row["title"], *(format_column(column, row["measures"].get(heading)) for heading, column in columns.items()))
        for _, row in best_first(report)
    ]
    return [
        f"Beyond accuracy, in %{''.join(f' (*{heading}* is a plain number)' for heading in ratios)}, on "
        f"{report['measured_images']:,} {report['setting']['split']} images: "
        f"{'; '.join(measure.summary for measure in measured)}. Means with 95 % intervals over seeds.",
        "",
        tabulate(rows, ("", *columns), tablefmt="github", disable_numparse=True),
        "",
    ]


def _threshold_results(contestant: Contestant, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the further results of a contestant whose thresholds are chosen for every batch; nothing for others."""
    if contestant.thresholds is None:
        return {}
    rewards = interval([run["last_quarter"]["reward"] for run in lines])
    return {"per_batch": asdict(contestant.thresholds), "reward": rewards}
