"""Part of a report: the candidates of a budget, what became of each, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rlmix.agent.budget import FIRST
from rlmix.experiments.reports import describe_kept
from rlmix.experiments.reports.html_report import Paragraph, Part, Table, percent


def tried(budget: Mapping[str, Any]) -> list[Part]:
    """Return the candidates, one row a segment; what continues a step stands below it.

    Args:
        budget: entry of this name in a training's `summary.json`.
    """
    steps, kept = budget["steps"], _path(budget["steps"], budget["kept"])
    leader = budget.get("leader", "agent")  # older summaries do not have it
    branched = any(
        step["continues"] is not None and steps[step["continues"]]["candidate"] != step["candidate"] for step in steps
    )
    branches = (
        "After each segment but the last, those that were last in validation gave way to branches of the first: a "
        f"branch goes on from the network of its candidate under another policy, the {leader}'s choice if that is "
        "another one. "
    )
    text = Paragraph(
        f"{sum(step['continues'] is None for step in steps)} candidates began, {len(steps)} segments were trained. "
        f"{describe_kept(budget)} The first candidate is led by the {leader}, each other one holds a policy. Where "
        f"fewer were to go on than had begun, those with the highest forecasts did, and the {leader}'s among several. "
        f"{branches if branched else ''}"
        "The forecast, made before the segment, is of accuracy at the end if the policy is held: points above the mean "
        "of its segment, ± one standard deviation. The validation accuracy is that at the end of the segment, of the "
        "state that goes on. Of each candidate that reaches the end, the best network of its regular evaluations "
        "would be kept: the last column, by which ended candidates are compared."
    )
    last = len(budget["segments"]) - 1
    means = {
        segment: np.mean([step["forecast"] for step in steps if step["segment"] == segment])
        for segment in {step["segment"] for step in steps}
    }
    rows = [
        (
            f"{100 * budget['segments'][step['segment']]:.0f}\u00a0%",
            _candidate(step, steps),
            _policy(step, leader),
            _became(step, steps, kept),
            # No negative zero.
            f"{round(step['forecast'] - means[step['segment']], 1) + 0:+.1f} ± {step['uncertainty']:.1f}",
            "-" if step["diverged"] else percent(step["accuracy"]),
            percent(step["kept_accuracy"]) if step["segment"] == last and not step["diverged"] else "",
        )
        for step in _in_depth(steps, None)
    ]
    header = ["until", "candidate", "policy", "then", "forecast", "validation, %", "best, %"]
    parts: list[Part] = [text, Table(header, rows, "Candidates, segment by segment", text_columns=4)]
    return [*parts, *(_worth(budget["outlooks"], budget["worth"]) if budget["outlooks"] else [])]


def _worth(looks: list[dict[str, Any]], worth: float | None) -> list[Part]:
    """Return what trainings were expected to gain, each time that some had ended."""
    rows = [
        (
            str(look["ended"]),
            *("-" if look[name] is None else f"{look[name]:.2f}" for name in ("spread", "chance", "gain", "further")),
        )
        for look in looks
    ]
    rule = (
        "The whole budget was to be spent."
        if worth is None
        else f"After {FIRST}, another was to begin only where it was expected to add at least {worth:g} points."
    )
    text = Paragraph(
        "Was it worth it? Each time that trainings had ended: their spread, which is the standard deviation of their "
        "validation accuracies in points; how much of it chance alone would give with so many validation images; by "
        "how much the best of them was expected to beat a single training; and what one more training was expected to "
        f"add. {rule}"
    )
    return [
        text,
        Table(["ended", "spread", "by chance", "expected gain", "of one more"], rows, "Gain to expect from more"),
    ]


def _candidate(step: Mapping[str, Any], steps: list[dict[str, Any]]) -> str:
    """Return a step's candidate, and where it branches the one whose network it goes on with."""
    of = step["candidate"] if step["continues"] is None else steps[step["continues"]]["candidate"]
    return f"{step['candidate']}" if of == step["candidate"] else f"{step['candidate']}, a branch of {of}"


def _policy(step: Mapping[str, Any], leader: str) -> str:
    """Return a step's policy, and who chose it and why, if not the portfolio."""
    if not step["own"]:
        return str(step["policy"])
    why = f": {step['reason']}" if step.get("reason") else ""  # older summaries do not have it
    return f"{step['policy']} (the {leader}'s choice{why})"


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
    if all(other["continues"] != step["step"] for other in steps):
        last = step["segment"] == max(other["segment"] for other in steps)
        return ("kept" if step["step"] in kept else "not kept") if last else "gave way"
    return "went on (kept)" if step["step"] in kept else "went on"
