"""Measure how well the signs of wrong labels tell the share of wrong labels, on data sets that no estimate has seen.

    python experiments/studies/broad/wrong_labels.py --log runs/broad/learn.jsonl

Each sign of observation v2 that is a share is compared with the truth as it is. Beside them stands an estimate fitted
to all signs (random forest), for each data set on the tasks of the other data sets. Error and rank correlation are
given per data set after the first, the second and the last segment. No estimate sees a clean label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from tabulate import tabulate

from rlmix.classifier.files import LineLog
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible

SIGNS = ("contradicted", "hump_share", "neighbours_differ")  # shares of images, estimates as they are
FITTED = "fitted"
LOOKS = {"first": 1, "second": 2, "last": -1}  # rows of a training
SEEN = (  # by the fitted estimate: the signs, and what is needed to read them; nothing of the validation images
    *SIGNS,
    "hump_gap",
    "train_way",
    *(f"train_loss_{decile}" for decile in range(10, 100, 10)),
    "clean_seen",
    "clean_excess_loss",
    "clean_way",
    "mixed_seen",
    "mixed_excess_loss",
    "mixed_way",
    "relative_lr",
    "log_passes",
    "log_classes",
    "log_images_per_class",
    "log_parameters",
    "normalised",
    "log_imbalance",
)


@dataclass(frozen=True)
class WrongLabelsConfig:
    """Measure estimates of the share of wrong labels."""

    log: str
    """Log that broad/record.py has written, with its .json beside it, which says what the numbers mean."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/wrong_labels", arguments) as call:
        config = call.parse(WrongLabelsConfig, __doc__)
        path = Path(config.log)
        if not path.is_file() or not path.with_suffix(".json").is_file():
            raise RunError(f"--log: there is no {path} with a {path.with_suffix('.json').name} beside it")
        with reject_incompatible(path):
            meaning = json.loads(path.with_suffix(".json").read_bytes())
            lines = LineLog(path).read()
            for look, row in LOOKS.items():
                print(f"\n{look} segment\n{table(measured(lines, meaning, row))}")


def measured(lines: Sequence[Mapping[str, Any]], meaning: Mapping[str, Any], row: int) -> list[dict[str, Any]]:
    """Return error and rank correlation of each estimate on each data set, and on all of them.

    Args:
        lines: trainings of a log; those that diverged are left out.
        meaning: what their numbers mean.
        row: place of the observation in a training.
    """
    places = {line["task"]: line["task_drawn"]["dataset"] for line in lines if "task_drawn" in line}
    whole = [line for line in lines if not line["diverged"] and line["task"] in places]
    names = [*meaning["known"], *meaning["rows"]]
    features = np.array([[*line["known"], *line["rows"][row]] for line in whole])
    truth = np.array([line["wrong"] for line in whole])
    dataset = np.array([places[line["task"]] for line in whole])
    estimates = {sign: features[:, names.index(sign)] for sign in SIGNS}
    estimates[FITTED] = left_out(features[:, [names.index(name) for name in SEEN]], truth, dataset)
    results = []
    for name in (*sorted(set(dataset)), "all"):
        inside = (dataset == name) | (name == "all")
        for estimate, values in estimates.items():
            results.append({"dataset": name, "trainings": int(inside.sum()), "estimate": estimate}
                           | scores(values[inside], truth[inside]))  # fmt: skip
    return results


def left_out(
    features: NDArray[np.float64], truth: NDArray[np.float64], dataset: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Return an estimate of each training's share of wrong labels, from the trainings of other data sets.

    Args:
        features: `[N, F]`.
        truth: `[N]`.
        dataset: `[N]`; each data set's estimates are those of a forest that has not seen it. The mean of the others
            where there is only one.
    """
    estimates = np.full(len(truth), truth.mean())
    for name in set(dataset):
        inside = dataset == name
        if not inside.all():
            forest = RandomForestRegressor(200, min_samples_leaf=3, max_features=0.5, random_state=0)
            estimates[inside] = forest.fit(features[~inside], truth[~inside]).predict(features[inside])
    return estimates


def scores(estimate: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    """Return mean absolute error, Spearman's rank correlation (0 where all are equal) and the share within 0.08."""
    error = np.abs(estimate - truth)
    constant = np.ptp(estimate) == 0 or np.ptp(truth) == 0
    correlation = 0.0 if constant else float(spearmanr(estimate, truth).statistic)
    return {"error": float(error.mean()), "correlation": correlation, "within": float((error <= 0.08).mean())}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as a table: a row for each data set, error and rank correlation for each estimate."""
    rows: dict[str, list[str]] = {}
    for result in results:
        row = rows.setdefault(result["dataset"], [result["dataset"], str(result["trainings"])])
        row.append(f"{result['error']:.3f} / {result['correlation']:.2f} / {100 * result['within']:.0f} %")
    return tabulate(
        list(rows.values()),
        headers=["data set", "trainings", *(f"{name}: error / rank / within 0.08" for name in (*SIGNS, FITTED))],
        tablefmt="github",
    )


if __name__ == "__main__":
    main()
