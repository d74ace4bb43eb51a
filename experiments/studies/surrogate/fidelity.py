"""Fidelity of a surrogate: its returns beside recorded ones, on tasks that it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import spearmanr
from tabulate import tabulate

from rlmix.envs.surrogate import SurrogateVectorEnv
from rlmix.envs.surrogate_model import SurrogateModel
from rlmix.envs.surrogate_tasks import Recording, split_of
from rlmix.experiments.search.task_family import SEGMENTS
from rlmix.experiments.studies.surrogate.recordings import GROUPS, group_of, recordings

EPISODES = 50  # of the surrogate for each recorded training
MIN_POLICIES = 5  # trainings of a task under different policies, for a rank correlation among them
INTERVALS = (0.5, 0.8, 0.95)
DRAWS = 200  # of noise, for the ceiling
OVER_TASKS, WITHIN_TASK = 0.85, 0.6  # rank correlations aimed at


def measure_fidelity(model: SurrogateModel, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fidelity report of a model.

    Args:
        model: the surrogate.
        lines: recorded trainings of its tasks; each policy of a task counts once, from its first seed.
    """
    seed_std = repeated_seeds(lines)["std"]
    splits, groups, kinds = {}, {}, {}
    for split in ("test", "validation", "train"):
        chosen = distinct([line for line in lines if split_of(line["task"]) == split])
        told = surrogate_accuracies(model, recordings(chosen))
        splits[split] = _compare(chosen, told, seed_std)
        if split == "test":
            for name in GROUPS:
                rows = [place for place, line in enumerate(chosen) if _group(line) == name]
                if rows:
                    groups[name] = _compare([chosen[row] for row in rows], told[rows], seed_std)
            for name in dict.fromkeys(line["kind"] for line in chosen):
                rows = [place for place, line in enumerate(chosen) if line["kind"] == name]
                kinds[name] = _compare([chosen[row] for row in rows], told[rows], seed_std)
    return {"splits": splits, "groups": groups, "kinds": kinds, "repeated_seeds": repeated_seeds(lines, model)}


def distinct(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the trainings from each task's first seed, one for each sequence of actions."""
    first: dict[Any, Mapping[str, Any]] = {}
    for line in lines:
        if line["training"] == 0:
            first.setdefault((line["task"], str(line["actions"])), line)
    return list(first.values())


def surrogate_accuracies(model: SurrogateModel, chosen: Sequence[Recording], *, seed: int = 0) -> NDArray[np.float64]:
    """Return the surrogate's validation accuracy after each segment of recorded trainings, `[N, EPISODES, S]`."""
    count = len(chosen) * EPISODES
    vector = SurrogateVectorEnv(count, model=model, reward="final", autoreset_mode=AutoresetMode.DISABLED)
    vector.reset(seed=seed, options={"task": np.repeat([recording.task for recording in chosen], EPISODES)})
    actions = np.array([recording.actions for recording in chosen]).repeat(EPISODES, axis=0)
    after = [vector.step(actions[:, segment])[4]["validation_accuracy"] for segment in range(len(model.segments))]
    return np.stack(after, axis=1).reshape(len(chosen), EPISODES, len(model.segments))


def repeated_seeds(lines: Sequence[Mapping[str, Any]], model: SurrogateModel | None = None) -> dict[str, Any]:
    """Return how well a second real training tells of a first one of the same task and policy, and the surrogate.

    Args:
        lines: recorded trainings; those that have a second seed count.
        model: the surrogate; optional, its figures are then left out.
    """
    pairs: dict[Any, dict[int, Mapping[str, Any]]] = {}
    for line in lines:
        pairs.setdefault((line["task"], str(line["actions"])), {}).setdefault(line["training"], line)
    twice = [pair for pair in pairs.values() if {0, 1} <= set(pair)]
    first, second = (np.array([pair[seed]["validation"][-1] for pair in twice]) for seed in (0, 1))
    told = {"the second seed": second}
    if model is not None:
        told["the surrogate"] = surrogate_accuracies(model, recordings([pair[0] for pair in twice]))[:, :, -1].mean(
            axis=1
        )
    tasks = np.array([pair[0]["task"] for pair in twice])
    facts: dict[str, Any] = {
        "pairs": len(twice),
        "tasks": len(set(tasks.tolist())),
        "std": float(np.sqrt(np.mean((first - second) ** 2) / 2)),
    }
    for name, values in told.items():
        same = [
            np.sign(first[a] - first[b]) == np.sign(values[a] - values[b])
            for a in range(len(twice))
            for b in range(a)
            if tasks[a] == tasks[b]
        ]
        facts[name] = {"over_tasks": _rank(first, values), "same_order": float(np.mean(same)), "orders": len(same)}
    return facts


def _group(line: Mapping[str, Any]) -> str:
    return group_of({"number": line["task"], **line["task_drawn"]})


def _rank(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    return float(spearmanr(ours, theirs).statistic)


def _compare(lines: Sequence[Mapping[str, Any]], told: NDArray[np.float64], seed_std: float) -> dict[str, Any]:
    """Return the figures of some trainings.

    Args:
        lines: the N recorded trainings.
        told: what the surrogate says of them, `[N, episodes, S]`.
        seed_std: standard deviation of a real final accuracy between seeds.
    """
    real = np.array([line["validation"] for line in lines])
    mean = told.mean(axis=1)
    tasks = np.array([line["task"] for line in lines])
    within, ceiling = [], []
    random = np.random.default_rng(0)
    left = [real[:, -1].copy(), mean[:, -1].copy()]
    for task in np.unique(tasks):
        rows = np.flatnonzero(tasks == task)
        ours, theirs = real[rows, -1], mean[rows, -1]
        for values in left:
            values[rows] -= values[rows].mean()
        if len(rows) >= MIN_POLICIES:
            within.append(_rank(ours, theirs))
            # What a surrogate without error would reach: ranks of noisy outcomes against those of their means.
            share = max(0.0, 1 - seed_std**2 / max(float(ours.var(ddof=1)), 1e-12))
            means = (ours - ours.mean()) * share**0.5
            noise = random.normal(0, seed_std, (DRAWS, len(rows)))
            ceiling.append(float(np.nanmean([_rank(means + draw, means) for draw in noise])) if share > 0 else 0.0)
    inside = {
        f"{100 * interval:g} %": [
            float(
                np.mean(
                    (real[:, segment] >= np.quantile(told[:, :, segment], 0.5 - interval / 2, axis=1))
                    & (real[:, segment] <= np.quantile(told[:, :, segment], 0.5 + interval / 2, axis=1))
                )
            )
            for segment in range(real.shape[1])
        ]
        for interval in INTERVALS
    }
    return {
        "trainings": len(lines),
        "tasks": len(np.unique(tasks)),
        "policies": len({str(line["actions"]) for line in lines}),
        "over_tasks": _rank(real[:, -1], mean[:, -1]),
        "within_task": float(np.mean(within)) if within else None,
        "within_task_tasks": len(within),
        "within_task_ceiling": float(np.mean(ceiling)) if ceiling else None,
        "error": float(np.sqrt(np.mean((real[:, -1] - mean[:, -1]) ** 2))),
        "error_within_task": float(np.sqrt(np.mean((left[0] - left[1]) ** 2))),
        "std_within_task": float(left[0].std()),
        "bias": float(np.mean(mean[:, -1] - real[:, -1])),
        "inside": inside,
    }


def markdown(result: Mapping[str, Any]) -> str:
    """Return the report as a page."""
    splits, seeds = result["splits"], result["repeated_seeds"]
    test = splits["test"]

    def rows(parts: Mapping[str, Mapping[str, Any]]) -> str:
        head = [
            *("", "trainings", "tasks", "policies", "over tasks", "within a task", "its ceiling"),
            *("error", "error within a task", "spread within a task", "surrogate less real"),
        ]
        lines = [
            [
                *(name, part["trainings"], part["tasks"], part["policies"], f"{part['over_tasks']:.3f}"),
                *("" if part[key] is None else f"{part[key]:.3f}" for key in ("within_task", "within_task_ceiling")),
                *(f"{100 * part[key]:.2f}" for key in ("error", "error_within_task", "std_within_task")),
                f"{100 * part['bias']:+.2f}",
            ]
            for name, part in parts.items()
        ]
        return tabulate(lines, head, tablefmt="pipe", disable_numparse=True)

    inside = [[name, *(f"{100 * share:.0f} %" for share in shares)] for name, shares in test["inside"].items()]
    ends = [f"after {100 * end:g} %" for end in SEGMENTS]
    floor, told = seeds["the second seed"], seeds.get("the surrogate", {})
    aims = [
        f"- over tasks at least {OVER_TASKS}: {_reached(test['over_tasks'], OVER_TASKS)}",
        f"- within a task at least {WITHIN_TASK}: {_reached(test['within_task'], WITHIN_TASK)}",
    ]
    return "\n".join(
        [
            f"# Fidelity of the surrogate on {test['tasks']} tasks that it has not seen",
            "",
            f"Final validation accuracy of {test['trainings']} recorded trainings of {test['policies']} policies, "
            f"against the mean of {EPISODES} episodes of the surrogate each, from the task alone. Rank correlations "
            "are Spearman's: over all trainings of all tasks, and the mean of those within each task. Errors are root "
            "mean squares, in points of accuracy. The ceiling is what a surrogate without error would reach within a "
            f"task, simulated with the standard deviation between seeds ({100 * seeds['std']:.2f} points). Made by "
            f"`{result['command']}`.",
            "",
            *aims,
            "",
            "## By split",
            "",
            rows(splits),
            "",
            "## Where it is wrong: groups of test tasks",
            "",
            rows(result["groups"]),
            "",
            "## By kind of training, test tasks",
            "",
            rows(result["kinds"]),
            "",
            "## Calibration on test tasks: share of real accuracies inside the surrogate's intervals",
            "",
            tabulate(inside, ["interval", *ends], tablefmt="pipe", disable_numparse=True),
            "",
            "## Beside a second real training",
            "",
            f"{seeds['pairs']} trainings of {seeds['tasks']} tasks (the reference policy and plain training) were "
            "recorded from two seeds. How well the first one's final accuracy is told:",
            "",
            tabulate(
                [
                    [name, f"{part['over_tasks']:.3f}", f"{100 * part['same_order']:.0f} % of {part['orders']}"]
                    for name, part in (("by the second seed", floor), ("by the surrogate", told))
                    if part
                ],
                ["", "over tasks", "same order of the two policies"],
                tablefmt="pipe",
                disable_numparse=True,
            ),
            "",
            "Some of these tasks are of split train. For other policies the logs hold one seed only, so that a floor "
            "within a task over many policies is simulated above, not recorded.",
            "",
        ]
    )


def _reached(value: float, aim: float) -> str:
    return f"{'reached' if value >= aim else '**not reached**'} ({value:.3f})"


def plot_fidelity(model: SurrogateModel, lines: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot surrogate against recorded accuracy of test tasks: over tasks, within a task, and the calibration."""
    chosen = distinct([line for line in lines if split_of(line["task"]) == "test"])
    told = surrogate_accuracies(model, recordings(chosen))
    real, mean = np.array([line["validation"][-1] for line in chosen]), told[:, :, -1].mean(axis=1)
    tasks, names = np.array([line["task"] for line in chosen]), [_group(line) for line in chosen]
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    less = [values - np.array([values[tasks == task].mean() for task in tasks]) for values in (real, mean)]
    for panel, (x, y), title in (
        (panels[0], (real, mean), "final accuracy, all tasks"),
        (panels[1], tuple(less), "less the mean of its task"),
    ):
        for group in GROUPS:
            rows = [place for place, name in enumerate(names) if name == group]
            panel.scatter(100 * x[rows], 100 * y[rows], s=8, alpha=0.6, label=group)
        ends = [100 * min(x.min(), y.min()), 100 * max(x.max(), y.max())]
        panel.plot(ends, ends, color="grey", linewidth=0.8)
        panel.set(xlabel="recorded, %", ylabel="surrogate, mean of its episodes, %", title=title)
    panels[0].legend(fontsize=8)
    levels = np.linspace(0.05, 0.95, 19)
    for segment in range(len(SEGMENTS)):
        recorded = np.array([line["validation"][segment] for line in chosen])
        below = [
            np.mean(
                (recorded >= np.quantile(told[:, :, segment], 0.5 - level / 2, axis=1))
                & (recorded <= np.quantile(told[:, :, segment], 0.5 + level / 2, axis=1))
            )
            for level in levels
        ]
        panels[2].plot(100 * levels, 100 * np.array(below), label=f"after {100 * SEGMENTS[segment]:g} %")
    panels[2].plot([0, 100], [0, 100], color="grey", linewidth=0.8)
    panels[2].set(xlabel="interval of the surrogate, %", ylabel="recorded inside, %", title="calibration")
    panels[2].legend(fontsize=8)
    return figure
