"""Results of a training by class: for `summary.json`, as a table for spreadsheets, and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from rlmix.agent.plots import heat_map
from rlmix.classifier.evaluation.classes import ClassStats
from rlmix.classifier.files import write_atomic
from rlmix.experiments.reports.by_class import CONFUSION_FILE, MAX_NAMED


def by_class(confusions: Mapping[str, Tensor], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the results by class of each split, as `summary.json` has them.

    Args:
        confusions: confusion matrix `[K, K]` of each split.
        class_names: K names.
    """
    results = {}
    for split, confusion in confusions.items():
        stats = ClassStats.from_confusion(confusion)
        rows = zip(class_names, stats.images, stats.accuracy, strict=True)
        results[split] = {
            "balanced_accuracy": stats.balanced_accuracy,
            "macro_f1": stats.macro_f1,
            "classes": [{"name": name, "images": images, "accuracy": share} for name, images, share in rows],
        }
    return results


def write_confusion(folder: Path, confusion: Tensor, class_names: Sequence[str]) -> None:
    """Write a confusion matrix as a table: a row for each true class, a column for each answer."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["true class", *class_names])
    writer.writerows([name, *row] for name, row in zip(class_names, confusion.tolist(), strict=True))
    write_atomic(folder / CONFUSION_FILE, text.getvalue().encode())


def confusion_figure(confusion: Tensor, class_names: Sequence[str]) -> Figure:
    """Draw a confusion matrix: in each row, the answers to the images of a class as shares of them."""
    counts = confusion.double().cpu().numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    named = len(class_names) <= MAX_NAMED
    side = min(2 + 0.45 * len(class_names), 10)
    figure = Figure(figsize=(side, side), layout="constrained")
    panel = figure.add_subplot()
    names = list(class_names) if named else [""] * len(class_names)
    heat_map(panel, shares, names=names, columns=names, numbers=named)
    panel.tick_params(axis="x", rotation=90)
    panel.set_xlabel("answer")
    panel.set_ylabel("true class")
    return figure
