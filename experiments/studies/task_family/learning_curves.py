"""Plot learning curves of searches that differ in their seed: return against episodes, with a band over the seeds.

PPO from the earlier agent, three searches of 320 trainings: the second half's return does not differ from the first's
(-0.05 ± 0.18 standard errors over 117 tasks; results/learning, about 20 minutes each on 2 cores).

    python experiments/studies/task_family/learning_curves.py --runs runs/agent-0 runs/agent-1 --out runs/curves
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from rlmix.agent.plots import png
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import LineLog, with_filename, write_atomic
from rlmix.experiments.comparison.intervals import format_interval, mean_interval
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.options import flatten

MIN_SEARCHES = 2  # searches, for a band
OWN = ("seed", "out", "workers", "resume")  # options in which the searches may differ


@dataclass(frozen=True)
class CurvesConfig:
    """Plot learning curves of searches."""

    runs: tuple[str, ...] = ()
    """Run folders of train_agent.py that differ only in --seed; optional, defaults to the logs that --out has."""
    episodes_per_update: int = 16
    """Number of episodes between two points of a curve."""
    out: str = "runs/learning"
    """Folder of seed-N.jsonl (each search's log), results.json and results.png."""

    def __post_init__(self) -> None:
        require_at_least(self, episodes_per_update=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/task_family/learning_curves", arguments) as call:
        config = call.parse(CurvesConfig, __doc__)
        out = Path(config.out)
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        seeds, settings = [], []
        for run in config.runs:
            log, setting = Path(run) / "episodes.jsonl", Path(run) / "config.json"
            if not (log.is_file() and setting.is_file()):
                raise RunError(f"--runs must be run folders of train_agent.py with episodes, got {run}")
            with reject_incompatible(setting):
                options = flatten(json.loads(setting.read_bytes())["config"])
                seeds.append(int(options["seed"]))
            settings.append({name: value for name, value in options.items() if name not in OWN})
        if len(set(seeds)) < len(seeds) or any(setting != settings[0] for setting in settings):
            raise RunError("--runs must differ in --seed, and in no other option that changes results")
        for old in out.glob("seed-*.jsonl") if config.runs else ():
            old.unlink()
        for run, seed in zip(config.runs, seeds, strict=True):
            shutil.copyfile(Path(run) / "episodes.jsonl", out / f"seed-{seed}.jsonl")
        logs = sorted(out.glob("seed-*.jsonl"))
        if len(logs) < MIN_SEARCHES:
            raise RunError(f"{out} has the logs of {len(logs)} searches; a band takes at least {MIN_SEARCHES}")
        searches = {}
        for log in logs:
            with reject_incompatible(log):
                searches[log.stem] = returns(LineLog(log).read())
        result = {"command": call.line, **curves(searches, config.episodes_per_update)}
        write_atomic(out / "results.json", (json.dumps(result, indent=2) + "\n").encode())
        write_atomic(out / "results.png", png(plot_curves(result)))
        for name, half in (("first", result["first_half"]), ("second", result["second_half"])):
            mean = format_interval(*half, signed=True)
            print(f"mean return, {name} half of the episodes: {mean} over {len(searches)} seeds")
        gain, by_task = result["second_less_first"], result["second_less_first_by_task"]
        print(f"second less first, over searches: {format_interval(*gain, signed=True)}")
        if by_task is not None:
            tasks = result["tasks_of_both_halves"]
            print(f"second less first, over {tasks} tasks played in both: {format_interval(*by_task, signed=True)}")
        print(f"written: {out}/results.json, results.png")


def returns(episodes: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """Return task and return of each episode of a search's log, in order."""
    return [(json.dumps(episode["task"]), float(sum(episode["rewards"]))) for episode in episodes]


def curves(searches: Mapping[str, Sequence[tuple[str, float]]], episodes_per_point: int) -> dict[str, Any]:
    """Return the curves of all searches, as long as the shortest one, and means over them.

    Args:
        searches: task and return of every search's episodes, in order.
        episodes_per_point: number of episodes per point of a curve; those left over are not counted.

    Returns:
        Results for `results.json`: episodes at each point, every search's mean returns, their mean with the half-width
        of its 95 % Student interval over searches, and means of the first and second half of the episodes. The halves'
        difference is also given over the tasks that were played in both, if there are at least two: this does not
        depend on which tasks a half has drawn.

    Raises:
        RunError: there are fewer than two points.
    """
    points = min(len(episodes) // episodes_per_point for episodes in searches.values())
    if points < 2:
        raise RunError(f"every search needs at least two updates of {episodes_per_point} episodes")
    counted = {name: episodes[: points * episodes_per_point] for name, episodes in searches.items()}
    table = np.array([[gained for _, gained in episodes] for episodes in counted.values()])
    table = table.reshape(len(counted), points, episodes_per_point).mean(axis=2)
    points_with_bands = [mean_interval(column) for column in table.T.tolist()]
    half = points // 2
    first, second = table[:, :half].mean(axis=1), table[:, -half:].mean(axis=1)
    by_task = []
    for episodes in counted.values():
        before, after = (
            _by_task(episodes[: half * episodes_per_point]),
            _by_task(episodes[-half * episodes_per_point :]),
        )
        by_task += [after[task] - before[task] for task in before if task in after]
    return {
        "episodes": [episodes_per_point * (point + 1) for point in range(points)],
        "searches": dict(zip(counted, table.tolist(), strict=True)),
        "mean": [mean for mean, _ in points_with_bands],
        "half_width": [width for _, width in points_with_bands],
        "first_half": mean_interval(first.tolist()),
        "second_half": mean_interval(second.tolist()),
        "second_less_first": mean_interval((second - first).tolist()),
        "second_less_first_by_task": mean_interval(by_task) if len(by_task) > 1 else None,
        "tasks_of_both_halves": len(by_task),
    }


def _by_task(episodes: Sequence[tuple[str, float]]) -> dict[str, float]:
    played: dict[str, list[float]] = {}
    for task, gained in episodes:
        played.setdefault(task, []).append(gained)
    return {task: float(np.mean(values)) for task, values in played.items()}


def plot_curves(result: dict[str, Any]) -> Figure:
    """Plot return against episodes: each search, and their mean with its band."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    episodes, mean, width = (np.array(result[name]) for name in ("episodes", "mean", "half_width"))
    for name, values in result["searches"].items():
        axis.plot(episodes, values, linewidth=0.8, alpha=0.6, label=name.replace("-", " "))
    axis.fill_between(episodes, mean - width, mean + width, color="#0072b2", alpha=0.15, linewidth=0)
    axis.plot(episodes, mean, color="#0072b2", linewidth=2, label="mean, 95 % band")
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set_xlabel("episodes (classifier trainings) of each search")
    axis.set_ylabel("return of a training")
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


if __name__ == "__main__":
    main()
