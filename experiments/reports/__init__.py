"""Reports of runs: one HTML file each, and the text that a report shares with the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REPORT_FILE = "report.html"


def describe_rollback(went_back: Mapping[str, Any]) -> str:
    """Return half a sentence on how a training diverged and was rolled back.

    Args:
        went_back: entry of this name in a training's `summary.json`.
    """
    return (
        f"{went_back['reason']}: rolled back to update {went_back['to_update']:,} and resumed with half the learning "
        f"rate, at most {went_back['lr']:g}"
    )
