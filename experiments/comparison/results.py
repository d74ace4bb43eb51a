"""What a comparison says: means with intervals and paired differences, as a table, as CSV and as a picture."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rlmix.classifier.evaluation.measures import FIGURES
from rlmix.experiments.comparison.contestants import Contestant
from rlmix.experiments.comparison.intervals import (
    crossed_interval,
    holm,
    mean_interval,
    paired_difference,
    paired_p_value,
)

RATIOS = ("within / between",)  # of the figures; all others are shares
LOWER_IS_BETTER = ("calibration error", "within / between")
UNKNOWN = "a processor that was not recorded"  # in the oldest logs
ACROSS = 4  # panels of the picture beside each other
PANEL = (2.2, 0.26)  # width of a panel and height of a row, in inches


def pack_hits(hits: NDArray[np.bool_]) -> str:
    """Which images are right, `[N]`, as text that JSON can hold."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def unpack_hits(text: str, images: int) -> NDArray[np.float64]:
    """What `pack_hits` packed, `[images]`: 1 where the image is right, else 0."""
    bits = np.unpackbits(np.frombuffer(base64.b64decode(text), dtype=np.uint8), count=images)
    return bits.astype(np.float64)


def compare(
    contestants: Mapping[str, Contestant], runs: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str, images: int
) -> dict[str, Any]:
    """Means with 95 % intervals, and paired differences to a baseline with Holm-corrected p-values.

    Args:
        contestants: by name.
        runs: lines of the log by contestant, in the same order of seeds.
        baseline: one of the contestants.
        images: that every accuracy is measured on.

    Returns:
        For `results.json`. An interval holds `mean`, `half_width` (Student's t over seeds) and `per_seed`; that of
        an accuracy or a difference also `half_width_with_images` (over seeds and images), where every training's log
        says which images were right.
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
                "schedule": contestants[name].schedule.to_json(),
                "saliency": contestants[name].saliency,
                "accuracy": {**interval(accuracies[name]), **_with_images(hits[name])},
                "measures": _measures(lines),
                "seconds": interval([run["seconds"] for run in lines]),
                "diverged": sum(run["diverged"] for run in lines),
                **_per_batch(contestants[name], lines),
            }
            for name, lines in runs.items()
        },
        "images": images,
        "processors": Counter(run.get("processor", UNKNOWN) for lines in runs.values() for run in lines),
        "less_baseline": gaps,
    }


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean, half-width of the 95 % interval over seeds, and the values, two at least."""
    mean, half_width = mean_interval(values)
    assert math.isfinite(half_width), "an interval takes two values"
    return {"mean": mean, "half_width": half_width, "per_seed": list(values)}


def best_first(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Contestants with what is known of each, by falling accuracy."""
    return sorted(report["methods"].items(), key=lambda entry: -entry[1]["accuracy"]["mean"])


def markdown(report: Mapping[str, Any]) -> str:
    """The report for a reader: contestants from the best to the worst."""
    setting, host, baseline = report["setting"], report["machine"], report["methods"][report["baseline"]]["title"]
    processors = " and ".join(
        f"{name} ({count} training{'s' if count > 1 else ''})" for name, count in report["processors"].items()
    )
    comparisons = len(report["less_baseline"])
    corrected = f", corrected for {comparisons} comparisons (Holm)" if comparisons > 1 else ""
    rows = []
    for name, row in best_first(report):
        gap = report["less_baseline"].get(name)
        ahead = "" if gap is None else shown(gap, sign="+")
        p_value = "" if gap is None else f"{gap['p_value']:.3f}" if gap["p_value"] >= 0.001 else "< 0.001"
        rows.append(
            f"| {row['title']} | {shown(row['accuracy'])} | {ahead} | {p_value} | "
            f"{images_per_second(setting, row):,.0f} | {row['seconds']['mean']:.0f} | {row['diverged']} |"
        )
    lines = [
        f"# {setting['dataset']}: {setting['train_size']:,} training images, {setting['updates']:,} updates",
        "",
        f"Network {setting['model']}, batches of {setting['batch_size']}, {setting['precision']} on "
        f"{setting['device']}, {len(report['seeds'])} seeds (0 to {report['seeds'][-1]}); a seed draws training "
        "images, weights, order and mixing for every row. Accuracy on "
        f"{report['images']:,} {setting['split']} images in %; means with 95 % Student t intervals over seeds"
        f"{'; in brackets over seeds and images' if any_with_images(report) else ''}. "
        f"Differences to *{baseline}* are paired by seed, p-values are those of paired t tests{corrected}. Methods mix "
        "half of the updates unless it says otherwise.",
        "",
        f"| | Accuracy | Less {baseline} | p | Images/s | Seconds | Diverged |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
        *_measures_table(report),
        f"Made by `{report['command']}` on {processors}, {host['cores']} cores"
        f"{', ' + host['gpu'] if host['gpu'] else ''}, torch {host['torch']}. Trainings shared the machine "
        f"({report['config']['processes']} at a time, one thread each) with other work: seconds are for orientation, "
        "`benchmark_speed.py` measures speed.",
        "",
    ]
    return "\n".join(lines)


def images_per_second(setting: Mapping[str, Any], row: Mapping[str, Any]) -> float:
    """Training images a second, mean over seeds of one contestant."""
    images = setting["updates"] * setting["batch_size"]
    return float(np.mean([images / seconds for seconds in row["seconds"]["per_seed"]]))


def any_with_images(report: Mapping[str, Any]) -> bool:
    """Whether the interval of any accuracy takes images for a sample too."""
    return any("half_width_with_images" in row["accuracy"] for row in report["methods"].values())


def shown(value: Mapping[str, Any], *, sign: str = "-", scale: float = 100, digits: int = 2) -> str:
    """A mean with its intervals: over seeds, and in brackets over seeds and images.

    Args:
        value: as `compare` makes it.
        sign: `+` shows that of a positive number.
        scale: 100 shows shares in %.
        digits: after the point.
    """
    text = f"{scale * value['mean']:{sign}.{digits}f} ± {scale * value['half_width']:.{digits}f}"
    with_images = value.get("half_width_with_images")
    return text if with_images is None else f"{text} ({scale * with_images:.{digits}f})"


def shown_figure(figure: str, value: Mapping[str, Any] | None) -> str:
    """A figure of `FIGURES` with its interval; a dash where a training gave none."""
    if value is None:
        return "–"
    return shown(value, scale=1, digits=3) if figure in RATIOS else shown(value)


def figures(report: Mapping[str, Any]) -> list[str]:
    """The figures beyond accuracy that contestants have, in the order of `FIGURES`."""
    there = {figure for row in report["methods"].values() for figure in row["measures"]}
    return [figure for named in FIGURES.values() for figure in named if figure in there]


def as_csv(report: Mapping[str, Any]) -> str:
    """The report as CSV: a line for each contestant, shares in [0, 1]."""
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
    for figure in figures(report):
        column = figure.replace(" / ", "_").replace(" ", "_")
        header += [column, f"{column}_half_width"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header)
    for name, row in best_first(report):
        gap = report["less_baseline"].get(name, {})
        cells = [name, row["title"], len(report["seeds"]), report["images"]]
        cells += [row["accuracy"].get(key) for key in ("mean", "half_width", "half_width_with_images")]
        cells += [gap.get(key) for key in ("mean", "half_width", "half_width_with_images", "p_value")]
        cells += [row["seconds"]["mean"], images_per_second(report["setting"], row), row["diverged"]]
        for figure in figures(report):
            value = row["measures"].get(figure) or {}
            cells += [value.get("mean"), value.get("half_width")]
        writer.writerow(cells)
    return file.getvalue()


def picture(report: Mapping[str, Any]) -> Figure:
    """Accuracy and every other figure side by side, a row for each contestant, with 95 % intervals over seeds."""
    rows = best_first(report)[::-1]
    panels = ["accuracy", *figures(report)]
    across = min(len(panels), ACROSS)
    down = -(-len(panels) // across)
    width, height = PANEL
    figure = Figure(figsize=(2 + width * across, down * (0.9 + height * len(rows))), layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axis in grid.flat[len(panels) :]:
        axis.set_visible(False)
    for place, (panel, axis) in enumerate(zip(panels, grid.flat, strict=False)):
        scale = 1 if panel in RATIOS else 100
        for number, (name, row) in enumerate(rows):
            value = row["accuracy"] if panel == "accuracy" else row["measures"].get(panel)
            if value is None:
                continue
            colour = "#d55e00" if name == report["baseline"] else "#0072b2"
            axis.errorbar(
                scale * value["mean"], number, xerr=scale * value["half_width"], fmt="o", color=colour, markersize=4
            )
        unit = "" if panel in RATIOS else ", %"
        axis.set_title(f"{panel}{unit}{' (low is good)' if panel in LOWER_IS_BETTER else ''}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right", "left"]].set_visible(False)
        if place % across == 0:
            axis.set_yticks(range(len(rows)), [row["title"] for _, row in rows], fontsize=9)
    return figure


def _hits(lines: Sequence[Mapping[str, Any]], images: int) -> NDArray[np.float64] | None:
    """Which images were right, `[S, N]`; none where a training's log does not say."""
    if any(run.get("hits") is None for run in lines):
        return None
    return np.stack([unpack_hits(run["hits"], images) for run in lines])


def _with_images(values: NDArray[np.float64] | None) -> dict[str, float]:
    return {} if values is None else {"half_width_with_images": crossed_interval(values)[1]}


def _measures(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Intervals of the figures that every training has, by name; none for one that a training could not give."""
    found: dict[str, Any] = {}
    for measure, named in FIGURES.items():
        if not all(measure in run.get("measures", {}) for run in lines):
            continue
        for figure, of in named.items():
            values = [None if run["measures"][measure] is None else of(run["measures"][measure]) for run in lines]
            numbers = [value for value in values if value is not None]
            found[figure] = interval(numbers) if len(numbers) == len(lines) else None
    return found


def _measures_table(report: Mapping[str, Any]) -> Iterator[str]:
    columns = figures(report)
    if not columns:
        return
    yield (
        f"Beyond accuracy, in % (*within / between* is a ratio of distances), on {report['measured_images']:,} "
        f"{report['setting']['split']} images: expected calibration error; accuracy under FGSM and PGD (L∞ 8/255), "
        "and over five corruptions at five strengths; items found on larger canvases by class activation maps; "
        "distance of embeddings within classes over that between them. Means with 95 % intervals over seeds."
    )
    yield ""
    yield "| | " + " | ".join(columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for _, row in best_first(report):
        cells = [shown_figure(figure, row["measures"].get(figure)) for figure in columns]
        yield f"| {row['title']} | " + " | ".join(cells) + " |"
    yield ""


def _per_batch(contestant: Contestant, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is known of a per-batch chooser beyond what is known of all; nothing of others."""
    if contestant.per_batch is None:
        return {}
    rewards = interval([run["last_quarter"]["reward"] for run in lines])
    return {"per_batch": asdict(contestant.per_batch), "reward": rewards}
