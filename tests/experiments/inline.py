"""What saves time where it is not the point: starting processes, and drawing."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from rlmix.agent import plots
from rlmix.experiments.comparison import runner
from rlmix.experiments.reports import comparison_page, html_report, search_page, training_page
from rlmix.experiments.reports.charts import Chart


def run_inline(patch: pytest.MonkeyPatch) -> list[Any]:
    """Let `TrainingLog` run trainings one after another in this process; returns the keys of those that it runs."""
    keys: list[Any] = []

    def run_all(jobs: Mapping[Hashable, Callable[[], Any]], processes: int) -> Iterator[tuple[Hashable, Any]]:
        for key, job in jobs.items():
            keys.append(key)
            yield key, job()

    patch.setattr(runner, "run_all", run_all)
    return keys


def skip_drawing(patch: pytest.MonkeyPatch) -> None:
    """Leave the charts of reports and TensorBoard's figures empty, which take about as long as a tiny search."""

    def empty(*_: object, title: str, **__: object) -> Chart:
        return Chart(Markup("<svg></svg>"), title)

    for page in (comparison_page, html_report, search_page, training_page):
        for name in ("interval_chart", "line_chart", "policy_timeline", "probability_timeline"):
            if hasattr(page, name):
                patch.setattr(page, name, empty)
    patch.setattr(plots, "choices_figure", lambda *_, **__: Figure(figsize=(0.1, 0.1)))
