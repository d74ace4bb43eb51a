"""Report of a final training: the result, its curves, the policy, and mixed images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlmix.agent.decisions import NOTHING_MIXED, agent_mixed_nothing
from rlmix.agent.tags import Tag
from rlmix.classifier.data import Splits
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import METHODS, PolicySchedule
from rlmix.experiments.reports import REPORT_FILE, describe_rollback, short_name
from rlmix.experiments.reports.budget import tried
from rlmix.experiments.reports.by_class import class_results
from rlmix.experiments.reports.charts import Chart, Line, line_chart, policy_timeline
from rlmix.experiments.reports.examples import loss_gradient, mixed_examples
from rlmix.experiments.reports.html_report import (
    Paragraph,
    Part,
    Reading,
    Section,
    Table,
    given_probabilities,
    how_to_read,
    percent,
    read_json,
    read_scalars,
    render_html,
    schedule_table,
)
from rlmix.experiments.runs.options import flatten


def write_training_report(
    path: Path, data: Splits, model: nn.Module, device: torch.device, *, reading: Reading = nullcontext
) -> None:
    """Write the report of a finished final training into its run folder.

    Args:
        path: the run folder, with `config.json` and `summary.json`.
        data: images of the training.
        model: the selected network, in evaluation mode; maps `[B, C, H, W]` to at least K logits.
        device: device of the network.
        reading: context in which the files of the run are read, to convert errors of damaged ones; optional.
    """
    with reading():
        run, summary = read_json(path / "config.json"), read_json(path / "summary.json")
        schedule = PolicySchedule.from_json(summary["schedule"])
        network = flatten(run["config"])["model"]
        title = f"Network {network!r} on {short_name(data.name)}, trained with {_short(schedule)}"
        lead, sections = _content(path, run, summary, schedule, len(data.train))
    policies = {method: policy for _, policy in reversed(schedule.segments) for method in policy.shares}
    mixing = [(method, method, policies[method]) for method in METHODS if method in policies]
    examples = list(mixed_examples(mixing, data, loss_gradient(model, data.num_classes), device))
    if examples:
        text = Paragraph(
            "Training images as this schedule mixes them, each with one of another class, at the 0.35 quantile of the "
            "mixing ratio λ, without augmentation. Beside each: the saliency of the "
            "selected network's loss (input gradient; lighter is more sensitive)."
        )
        sections.append(("Mixed images", [text, *examples]))
    with reading():
        html = render_html(title, lead, sections, run)
    write_atomic(path / REPORT_FILE, html.encode())


def _content(
    path: Path, run: Mapping[str, Any], summary: Mapping[str, Any], schedule: PolicySchedule, images: int
) -> tuple[str, list[Section]]:
    """Return the first paragraph and the sections that need the run's files alone."""
    config = flatten(run["config"])
    test = summary["test"]
    led = f", led by {summary['trained_under']}" if config.get("agent") is not None else ""
    if "budget" in summary:
        led += f": the best of several candidates within a budget of {summary['budget']['trainings']:g} trainings"
    lead = (
        f"Trained for {config['updates']:,} updates of {config['batch_size']} on {images:,} images{led}. "
        f"Test accuracy: {100 * test['accuracy']:.2f} % on {test['images']:,} images, read once, at the end. "
        f"Selected network: at {100 * summary['kept']['progress']:.0f} % progress, {summary['kept']['selected_by']}."
    )
    if agent_mixed_nothing(schedule):
        lead += f" {NOTHING_MIXED}."
    if (went_back := summary.get("went_back")) is not None:  # older summaries do not have it
        lead += f" Diverged once; {describe_rollback(went_back)}."
    rows = [
        (split, percent(result["accuracy"]), percent(result["calibration_error"]), f"{result['loss']:.3f}", measured)
        for split in ("validation", "development", "test")
        if (result := summary[split]) is not None and (measured := result["images"]) is not None
    ]
    header = ["split", "accuracy, %", "calibration error, %", "loss", "images"]
    sections: list[Section] = [
        ("Result", [Table(header, rows, "The selected network"), *_evaluation(path)]),
        ("Training curves", _curves(path, [end for end, _ in schedule.ends(config["updates"])])),
        (
            "The policy",
            [
                policy_timeline(schedule, title="Mixing methods over the training"),
                *given_probabilities(schedule),
                schedule_table(schedule),
                how_to_read([policy for _, policy in schedule.segments]),
            ],
        ),
    ]
    if "by_class" in summary:  # older summaries do not have it
        sections.insert(1, ("Classes", class_results(path, summary["by_class"])))
    if "budget" in summary:
        sections.insert(1, ("What was tried", tried(summary["budget"])))
    return lead, sections


def _curves(path: Path, ends: Sequence[int]) -> list[Chart]:
    """Return charts of a training's scalars; `ends` are the updates at which its segments end."""
    scalars = read_scalars(path / "tensorboard")
    curves = []
    if accuracy := [(step, 100 * value) for step, value in scalars.get(Tag.ACCURACY, [])]:
        curves.append(
            line_chart({"validation": accuracy}, title="Validation accuracy", x_label="update", y_label="accuracy, %")
        )
    losses = {
        name: _with_gaps(scalars.get(tag, []), ends)
        for name, tag in (("clean", Tag.CLEAN_LOSS), ("mixed", Tag.MIXED_LOSS))
    }
    if any(losses.values()):
        title = "Training loss against the mixed targets"
        if any(math.isnan(loss) for line in losses.values() for _, loss in line):
            title += "; a gap is a segment without such updates"
        curves.append(line_chart(losses, title=title, x_label="update", y_label="loss, nats"))
    if rates := scalars.get(Tag.LEARNING_RATE):
        curves.append(line_chart({"rate": rates}, title="Learning rate", x_label="update", y_label="learning rate"))
    return curves


def _with_gaps(line: Line, ends: Sequence[int]) -> Line:
    """Return a line with a gap in each segment that has no point of it; empty if it has none at all."""
    gaps = [
        (end, math.nan) for start, end in pairwise([0, *ends]) if line and not any(start < x <= end for x, _ in line)
    ]
    return sorted([*line, *gaps])


def _evaluation(path: Path) -> list[Part]:
    """Return the measures of `evaluate.py` on development images, if there are any."""
    if not (path / "evaluation.json").exists():
        return []
    report = read_json(path / "evaluation.json")
    measured = [(measure, report[name]) for name, measure in MEASURES.items() if name in report]
    rows = [row for measure, result in measured for row in measure.rows(result)]
    charts = [
        line_chart(chart.lines, title=chart.title, x_label=chart.x_label, y_label=chart.y_label)
        for measure, result in measured
        for chart in measure.charts(result)
    ]
    caption = f"Beyond accuracy, on {report['images']:,} {report['split']} images"
    return [Table(["measure", "%"], rows, caption), *charts]


def _short(schedule: PolicySchedule) -> str:
    policies = list(dict.fromkeys(policy for _, policy in schedule.segments))
    return str(policies[0]) if len(policies) == 1 else f"a schedule of {len(policies)} policies"
