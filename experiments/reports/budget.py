"""Part of a report: the candidates of a budget, what became of each, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rlmix.experiments.reports import describe_kept, kept_accuracy_of, name_of
from rlmix.experiments.reports.html_report import Paragraph, Part, Table, percent

INDENT = "\u2003"  # a space that HTML keeps


def tried(budget: Mapping[str, Any]) -> list[Part]:
    """Return the candidates as a tree, one row a segment; what continues a step stands below it.

    Args:
        budget: entry of this name in a training's `summary.json`.
    """
    steps, kept = budget["steps"], _path(budget["steps"], budget["kept"])
    text = Paragraph(
        f"{1 + max(step['candidate'] for step in steps)} candidates began, {len(steps)} segments were trained. "
        f"{describe_kept(budget)} After each segment those went on whose best one was expected to be highest: the "
        "forecast is of accuracy at the end if the policy is held, in points above the lowest of its segment, ± what "
        "is not known; the gain is by how much the step raised the best that was expected. The validation accuracy is "
        "that at the end of the segment, of the state that goes on. Of each candidate that reaches the end the best "
        "network of its whole training would be kept: the last column, by which ended candidates are compared."
    )
    last = len(budget["segments"]) - 1
    rows = [
        (
            f"{INDENT * step['segment']}{100 * budget['segments'][step['segment']]:.0f}\u00a0%",
            name_of(step),
            step["policy"],
            _became(step, steps, kept),
            f"{step['forecast']:+.1f} ± {step['uncertainty']:.1f}",
            f"{step['gain']:.2f}",
            "-" if step["diverged"] else percent(step["accuracy"]),
            percent(kept_accuracy_of(step)) if step["segment"] == last and not step["diverged"] else "",
        )
        for step in _in_depth(steps, None)
    ]
    header = ["until", "candidate", "policy", "then", "forecast", "gain", "validation, %", "best, %"]
    parts: list[Part] = [text, Table(header, rows, "Candidates, segment by segment", text_columns=4)]
    return [*parts, *_worth(budget)] if "outlooks" in budget else parts  # older runs have none


def _worth(budget: Mapping[str, Any]) -> list[Part]:
    """Return what more candidates were expected to gain, segment by segment."""
    rows = [
        (
            f"{100 * (1 - outlook['left']):.0f}\u00a0%",
            str(outlook["candidates"]),
            "-" if outlook["spread"] is None else f"{outlook['spread']:.2f}",
            "-" if outlook["chance"] is None else f"{outlook['chance']:.2f}",
            f"{outlook['gain']:.2f}",
            f"{outlook['further']:.2f}",
        )
        for outlook in budget["outlooks"]
    ]
    rule = (
        "The whole budget was to be spent."
        if budget["worth"] is None
        else f"None was to begin or go on that adds less than {budget['worth']:g} points for each whole training."
    )
    text = Paragraph(
        "Was it worth it? At each point of the training: how far the candidates were apart in validation, as a "
        "standard deviation in points, how much of that is chance for so many validation images, and what the best of "
        f"those that went on was expected to gain over one alone, and one more over them. {rule}"
    )
    header = ["at", "candidates", "spread", "by chance", "expected gain", "of one more"]
    return [text, Table(header, rows, "Gain to expect from more", text_columns=1)]


def _in_depth(steps: list[dict[str, Any]], parent: int | None) -> Iterator[dict[str, Any]]:
    for step in steps:
        if step["continues"] == parent:
            yield step
            yield from _in_depth(steps, step["step"])


def _path(steps: list[dict[str, Any]], number: int | None) -> set[int]:
    path = set()
    while number is not None:
        path.add(number)
        number = steps[number]["continues"]
    return path


def _became(step: Mapping[str, Any], steps: list[dict[str, Any]], kept: set[int]) -> str:
    if step["diverged"]:
        return "diverged"
    continued = sum(other["continues"] == step["step"] for other in steps)
    if not continued:
        last = step["segment"] == max(other["segment"] for other in steps)
        return ("kept" if step["step"] in kept else "not kept") if last else "dropped"
    what = "went on" if continued == 1 else f"went on in {continued} ways"
    return f"{what} (kept)" if step["step"] in kept else what
