"""Report of a comparison: every contestant's accuracy and measures, its policy, and images as it mixes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from rlmix.classifier.data import DataError
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import METHODS, MixPolicy, PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.comparison.results import (
    any_with_images,
    best_first,
    columns_of,
    format_column,
    format_share,
    format_speed,
    schedules_of,
)
from rlmix.experiments.reports import REPORT_FILE, short_name
from rlmix.experiments.reports.charts import interval_chart, line_chart
from rlmix.experiments.reports.examples import loss_gradient, mixed_examples
from rlmix.experiments.reports.html_report import (
    Paragraph,
    Part,
    Reading,
    Section,
    Table,
    how_to_read,
    render_html,
)
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.options import DataConfig

SALIENCY_UPDATES = 100  # updates of the network whose saliency the examples are mixed by

Report = Mapping[str, Any]


def write_comparison_report(
    path: Path, report: Report, data_root: str | None = None, *, reading: Reading = nullcontext
) -> None:
    """Write the report of a comparison into its folder.

    Args:
        path: the folder.
        report: content of its `results.json`.
        data_root: folder of the data set; optional, defaults to the comparison's.
        reading: context in which the files of the run are read, to convert errors of damaged ones; optional.
    """
    with reading():
        lead, sections = _content(report)
        examples = ExampleOptions.from_report(report, data_root)
    sections.append(("Mixed images", _mixed_images(examples)))
    with reading():
        setting = report["setting"]
        run = {"command": report["command"], "machine": report["machine"], "config": {**report["config"], **setting}}
        dataset = short_name(setting["dataset"])
        title = f"{len(report['methods'])} ways to train the network {setting['model']!r} on {dataset}"
        html = render_html(title, lead, sections, run)
    write_atomic(path / REPORT_FILE, html.encode())


def _content(report: Report) -> tuple[str, list[Section]]:
    """Return the first paragraph and the sections that need the report alone."""
    setting, methods = report["setting"], report["methods"]
    seeds, titles = report["seeds"], _titles(report)
    lead = (
        f"{setting['train_size']:,} training images, {setting['updates']:,} updates of {setting['batch_size']}, "
        f"{len(seeds)} seeds. A seed determines images, weights, order and mixing for every contestant. Accuracy on "
        f"{report['images']:,} {setting['split']} images."
    )
    per_seed = {
        titles[name]: [(seed, 100 * value) for seed, value in zip(seeds, row["accuracy"]["per_seed"], strict=True)]
        for name, row in methods.items()
    }
    rows, shown = [], []
    for name, row in methods.items():
        schedules = schedules_of(row)
        policies = [policy for schedule in schedules for _, policy in schedule.segments]
        saliency = any(METHODS[method].needs_gradient for policy in policies for method in policy.shares)
        described = " or ".join(dict.fromkeys(map(_describe, schedules)))
        rows.append((titles[name], described, row["saliency"] if saliency else "none"))
        shown += policies
    sections: list[Section] = [
        ("Result", _result(report, titles)),
        ("Seed by seed", [line_chart(per_seed, title="Accuracy by seed", x_label="seed", y_label="accuracy, %")]),
        (
            "The policies",
            [
                Table(["contestant", "policy", "saliency"], rows, "Policy of each contestant", text_columns=3),
                how_to_read(shown),
            ],
        ),
    ]
    return lead, sections


def _titles(report: Report) -> dict[str, str]:
    """Return each contestant's title, with its name where another has the same title."""
    titles = {name: row["title"] for name, row in report["methods"].items()}
    count = Counter(titles.values())
    return {name: f"{title} ({name})" if count[title] > 1 else title for name, title in titles.items()}


def _result(report: Report, titles: Mapping[str, str]) -> list[Part]:
    setting, baseline = report["setting"], titles[report["baseline"]]
    rows, means = [], []
    for name, row in best_first(report):
        gap = report["less_baseline"].get(name)
        versus = ("", "")
        if gap is not None:
            p_value = f"{gap['p_value']:.3f}" if gap["p_value"] >= 0.001 else "< 0.001"
            versus = (format_share(gap, signed=True), p_value)
        speed, seconds = format_speed(setting, row), f"{row['seconds']['mean']:.0f}"
        rows.append((titles[name], format_share(row["accuracy"]), *versus, speed, seconds, row["diverged"]))
        means.append((titles[name], 100 * row["accuracy"]["mean"], 100 * row["accuracy"]["half_width"]))
    caption = (
        f"95 % intervals over {len(report['seeds'])} seeds; differences are paired by seed; p-values of paired t "
        "tests, corrected for the number of comparisons (Holm)"
    )
    if any_with_images(report):
        caption += "; in brackets the interval over seeds and images"
    header = ["contestant", "accuracy, %", f"less {baseline}", "p", "images/s", "seconds", "diverged"]
    title = f"{setting['split'].capitalize()} accuracy, 95 % intervals"
    parts: list[Part] = [
        interval_chart(means, title=title, x_label="accuracy, %"),
        Table(header, rows, caption),
        Paragraph(
            "Images/s and seconds are for orientation: trainings shared the machine "
            f"({report['config']['processes']} at a time, one thread each) with other work. "
            "benchmarks/training_speed.py measures speed."
        ),
        *(Paragraph(f"Note: {note}.") for note in report.get("notes", [])),  # older reports do not have it
    ]
    if columns := columns_of(report):
        cells = [
            (titles[name], *(format_column(column, row["measures"].get(key)) for key, column in columns.items()))
            for name, row in best_first(report)
        ]
        caption = f"Beyond accuracy, in %, on {report['measured_images']:,} images, 95 % intervals over seeds"
        parts.append(Table(["contestant", *columns], cells, caption))
    return parts


@dataclass(frozen=True)
class ExampleOptions:
    """Options of the mixed images that a report shows.

    Attributes:
        data: the comparison's images.
        training: setting of the small network whose saliency the images are mixed by.
        rows: method, heading and policy of each row; contestants that mix alike share one.
    """

    data: DataConfig
    training: TrainConfig
    rows: Sequence[tuple[str, str, MixPolicy]]

    @classmethod
    def from_report(cls, report: Report, data_root: str | None) -> ExampleOptions:
        """Return the options for a comparison."""
        titles, mixing = _titles(report), dict[MixPolicy, list[str]]()
        for name, row in report["methods"].items():
            for policy in dict.fromkeys(policy for one in schedules_of(row) for _, policy in one.segments):
                mixing.setdefault(policy, []).append(titles[name])
        rows = [
            (method, "; ".join(alike), policy)
            for policy, alike in mixing.items()
            for method in policy.shares
            if method != "clean" or len(policy.shares) == 1
        ]
        setting, known = report["setting"], {entry.name for entry in fields(DataConfig)}
        data = {name: value for name, value in setting.items() if name in known}
        training = {"updates": SALIENCY_UPDATES, "batch_size": setting["batch_size"]}
        return cls(
            stored_config(DataConfig, {**data, "data_root": data_root or report["config"]["data_root"]}),
            replace(stored_config(TrainConfig, training), device="cpu", precision="fp32"),
            rows,
        )


def _mixed_images(options: ExampleOptions) -> list[Part]:
    """Return the same images as each contestant mixes them."""
    try:
        data = options.data.draw(data_seed=0)
        trainer = Trainer(options.training, data, seed=0)
        trainer.train(MixPolicy({"clean": 1.0}), SALIENCY_UPDATES)
        gradient = loss_gradient(trainer.model.eval(), data.num_classes)
        examples = list(mixed_examples(options.rows, data, gradient, trainer.device, clean=True))
    except (DataError, ImportError) as error:
        return [Paragraph(f"Not available: the data set could not be loaded on this machine ({error}).")]
    text = Paragraph(
        "Training images of the first seed as each contestant mixes them, each with one of another class, at the 0.35 "
        "quantile of the mixing ratio λ, without augmentation. Beside each: the "
        f"saliency of a small network after {SALIENCY_UPDATES} updates of plain training. Methods that mix hidden "
        "states are not shown."
    )
    return [text, *examples]


def _describe(schedule: PolicySchedule) -> str:
    """Return a schedule in words; neighbouring segments of one policy are told as one."""
    stages = [(list(alike)[-1][0], policy) for policy, alike in groupby(schedule.segments, key=lambda one: one[1])]
    if len(stages) == 1:
        return str(stages[0][1])
    return "; ".join(f"until {100 * until:.3g}\u00a0%: {policy}" for until, policy in stages)
