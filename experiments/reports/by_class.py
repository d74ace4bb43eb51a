"""Results by class on the page of a final training."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlmix.experiments.reports.html_report import Part, ShareTable, Table, percent

CONFUSION_FILE = "confusion.csv"  # of the test images
MAX_NAMED = 25  # classes that a matrix has room for
MOST = 15  # rows of a table of the classes that are worst, or most often taken for each other


def class_results(path: Path, results: Mapping[str, Any]) -> list[Part]:
    """Return tables of a training's results by class, and the confusion matrix of the test images.

    Args:
        path: run folder.
        results: `by_class` of its `summary.json`.

    Raises:
        ValueError: the confusion matrix is not a table of whole numbers.
    """
    rows = [
        (split, percent(entry["balanced_accuracy"]), percent(entry["macro_f1"])) for split, entry in results.items()
    ]
    classes = sorted(
        (entry for entry in results["test"]["classes"] if entry["accuracy"] is not None),
        key=lambda entry: float(entry["accuracy"]),
    )
    worst = [(entry["name"], percent(entry["accuracy"]), entry["images"]) for entry in classes[:MOST]]
    which = "All classes" if len(classes) <= MOST else f"The {MOST} classes"
    caption = f"{which} by accuracy on test images, the lowest first"
    parts: list[Part] = [
        Table(["split", "balanced accuracy, %", "macro F1, %"], rows, "Means over the classes"),
        Table(["class", "accuracy, %", "images"], worst, caption),
    ]
    return [*parts, *_confusion(path)]


def _confusion(path: Path) -> list[Part]:
    if not (path / CONFUSION_FILE).exists():
        return []
    with (path / CONFUSION_FILE).open(encoding="utf-8", newline="") as file:
        (_, *names), *rows = csv.reader(file)
    counts = np.array([row[1:] for row in rows], dtype=np.int64)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f"a confusion matrix of {counts.shape} for {len(names)} classes")
    if len(names) <= MAX_NAMED:
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        caption = "Confusion matrix of the test images: for each true class (row), the answers in %"
        return [ShareTable(names, names, shares.tolist(), caption)]
    np.fill_diagonal(counts, 0)
    most = [divmod(int(cell), len(names)) for cell in np.argsort(-counts, axis=None, kind="stable")[:MOST]]
    pairs = [(names[true], names[answer], counts[true, answer]) for true, answer in most if counts[true, answer]]
    caption = f"The most frequent wrong answers on test images; all are in {CONFUSION_FILE}"
    return [Table(["true class", "answer", "images"], pairs, caption, text_columns=2)]
