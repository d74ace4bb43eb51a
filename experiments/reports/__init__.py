"""Reports of runs: one HTML file each, and the text that a report shares with the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

REPORT_FILE = "report.html"


def short_name(dataset: str) -> str:
    """Return the name of a data set for a title: of a path, its last part."""
    return Path(dataset).name or dataset


def describe_task(config: Mapping[str, Any]) -> str:
    """Return what each training of a search is: updates, images and wrong labels.

    Args:
        config: options of the search, in one dictionary.
    """

    def between(name: str, factor: int = 1) -> str:
        low, high = (round(factor * value) for value in config[name])
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    size = config["image_size"]
    pixels = f" of {size} x {size} pixels" if size else ""
    wrong = f" with {between('label_noise', 100)} % wrong labels" if config["label_noise"][1] else ""
    return f"{between('updates')} updates on {between('train_size')} images{pixels}{wrong}"


def describe_selection(candidates: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence on how the learned policy was selected.

    Args:
        candidates: entry of this name in a search's `summary.json`.
    """
    seeds = len(next(iter(candidates.values()))["accuracies"])
    if len(candidates) == 1:
        return f"The learned policy is the agent's most probable one, trained again on {seeds} fresh seeds."
    return (
        f"The learned policy is one of the agent's {len(candidates)} most probable ones: each was trained again on "
        f"{seeds} fresh seeds, and the one with the best mean validation accuracy is kept."
    )


def describe_kept(budget: Mapping[str, Any]) -> str:
    """Return sentences on the candidate of a budget that is kept, and on what was spent.

    Args:
        budget: entry of this name in a training's `summary.json`.
    """
    steps = budget["steps"]
    step, ended = steps[budget["kept"]], [one for one in steps if one["segment"] == len(budget["segments"]) - 1]
    luck = ""
    if sum(not one["diverged"] for one in ended) > 1:  # of one alone, nothing tells luck from merit
        expected = f"{100 * budget['expected_validation_accuracy']:.2f}"
        luck = f", expected {expected} % with luck and its forecast weighed in"
    return (
        f"Candidate {step['candidate']} is kept: validation {100 * step['kept_accuracy']:.2f} %{luck}. "
        f"{budget['spent']:g} trainings' worth of updates were spent of the {budget['trainings']:g} allowed."
    )


def describe_rollback(went_back: Mapping[str, Any]) -> str:
    """Return half a sentence on how a training diverged and was rolled back.

    Args:
        went_back: entry of this name in a training's `summary.json`.
    """
    return (
        f"{went_back['reason']}: rolled back to update {went_back['to_update']:,} and resumed with half the learning "
        f"rate, at most {went_back['lr']:g}"
    )
