"""Reference scores of the surrogate: agents and fixed policies on the tasks of a split, all by the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.envs.surrogate import SurrogateVectorEnv
from rlmix.envs.surrogate_model import SurrogateModel
from rlmix.experiments.comparison.intervals import format_shares, mean_interval
from rlmix.experiments.studies.surrogate.recordings import GROUPS, group_of

EPISODES = 40  # of each task
CHOOSING, JUDGING = 1, 2  # seeds of the episodes that fixed policies are chosen by, and that everybody is judged by
Choose = Callable[[NDArray[np.float32]], NDArray[np.int64]]  # from observations `[N, O]` to actions `[N, D]`


@dataclass(frozen=True)
class Played:
    """Means over the episodes of each task of a split.

    Attributes:
        accuracy: final accuracy of each task, in [0, 1], `[T]`.
        score: final score against the reference, `[T]`.
    """

    accuracy: NDArray[np.float64]
    score: NDArray[np.float64]


def play(model: SurrogateModel, split: str, choose: Choose, *, seed: int = JUDGING) -> Played:
    """Play every task of a split in the surrogate.

    Args:
        model: the surrogate.
        split: tasks to play.
        choose: gives the actions.
        seed: seed of the first episode.
    """
    tasks = model.tasks.numbers[model.tasks.rows(split)].numpy()
    vector = SurrogateVectorEnv(
        len(tasks) * EPISODES, model=model, split=split, reward="standing", autoreset_mode=AutoresetMode.DISABLED
    )
    # Episodes of all tasks are told apart by seeds far from those of learning.
    observations, _ = vector.reset(seed=seed * 100_000_000, options={"task": np.repeat(tasks, EPISODES)})
    over = False
    while not over:
        observations, rewards, terminated, _, info = vector.step(choose(observations))
        over = bool(terminated.all())
    return Played(
        info["validation_accuracy"].reshape(len(tasks), EPISODES).mean(axis=1),
        rewards.reshape(len(tasks), EPISODES).mean(axis=1),
    )


def always(action: Sequence[int]) -> Choose:
    """Return a choice of the same action everywhere."""
    return lambda observations: np.tile(np.array(action, dtype=np.int64), (len(observations), 1))


def at_random(model: SurrogateModel, seed: int = 0) -> Choose:
    """Return a choice of actions drawn uniformly from the menu's distinct policies."""
    random, actions = np.random.default_rng(seed), np.array(model.menu.actions())
    return lambda observations: actions[random.integers(len(actions), size=len(observations))]


def groups_of(model: SurrogateModel, split: str) -> NDArray[np.str_]:
    """Return the group of each task of a split, `[T]`."""
    return np.array([group_of(model.described[row]) for row in model.tasks.rows(split).tolist()])


def references(model: SurrogateModel, split: str) -> dict[str, Played]:
    """Return the scores of those who do not learn, on a split.

    Best fixed policies, of all tasks and of each group, are chosen on split train; the oracle's, of each task, on other
    episodes of the same task.
    """
    actions = model.menu.actions()
    train = np.stack([play(model, "train", always(action), seed=CHOOSING).score for action in actions])
    chosen = np.stack([play(model, split, always(action), seed=CHOOSING).score for action in actions])
    judged = [play(model, split, always(action)) for action in actions]
    accuracy, score = (np.stack([getattr(one, name) for one in judged]) for name in ("accuracy", "score"))
    own, groups = groups_of(model, "train"), groups_of(model, split)
    everywhere = np.full(len(groups), train.mean(axis=1).argmax())
    by_group = {name: train[:, own == name].mean(axis=1).argmax() for name in GROUPS if (own == name).any()}
    picks = {
        "best fixed": everywhere,
        "best fixed of each group": np.array([by_group.get(name, everywhere[0]) for name in groups]),
        "oracle: best fixed of each task": chosen.argmax(axis=0),
    }
    column = np.arange(len(groups))
    scores = {"random": play(model, split, at_random(model))}
    return scores | {name: Played(accuracy[pick, column], score[pick, column]) for name, pick in picks.items()}


def mean_of(played: Sequence[Played]) -> Played:
    """Return the mean over agents that differ in their seed."""
    return Played(
        np.mean([one.accuracy for one in played], axis=0),
        np.mean([one.score for one in played], axis=0),
    )


def summarise(
    model: SurrogateModel, split: str, learners: Mapping[str, Sequence[Played]], fixed: Mapping[str, Played]
) -> dict[str, Any]:
    """Return the table of scores of a split.

    Args:
        model: the surrogate.
        split: the split.
        learners: by name, what agents of several seeds played.
        fixed: by name, what `references` played.
    """
    groups = groups_of(model, split)
    base, by_group = fixed["best fixed"], fixed["best fixed of each group"]
    rows = {}
    everyone = {**{name: [played] for name, played in fixed.items()}, **learners}
    for name, seeds in everyone.items():
        played = mean_of(seeds)
        rows[name] = {
            "seeds": len(seeds),
            "accuracy": float(played.accuracy.mean()),
            "score": float(played.score.mean()),
            "scores": [float(one.score.mean()) for one in seeds],
            "over_best_fixed": mean_interval((played.accuracy - base.accuracy).tolist()),
            "over_best_fixed_of_each_group": mean_interval((played.accuracy - by_group.accuracy).tolist()),
            "groups": {
                group: float((played.accuracy - by_group.accuracy)[groups == group].mean())
                for group in GROUPS
                if (groups == group).any()
            },
        }
    return {"split": split, "tasks": len(groups), "rows": rows}


def scores_table(summary: Mapping[str, Any]) -> str:
    """Return the table of `summarise` as Markdown."""
    names = list(next(iter(summary["rows"].values()))["groups"])
    head = ["", "seeds", "accuracy, %", "score", "less best fixed", "less best fixed of each group", *names]
    lines = []
    for name, row in summary["rows"].items():
        spread = f" ({min(row['scores']):+.2f} to {max(row['scores']):+.2f})" if row["seeds"] > 1 else ""
        over = [
            format_shares(row[key][0], row[key][1], signed=True)
            for key in ("over_best_fixed", "over_best_fixed_of_each_group")
        ]
        lines.append(
            [
                *(name, row["seeds"], f"{100 * row['accuracy']:.2f}", f"{row['score']:+.2f}{spread}", *over),
                *(f"{100 * row['groups'][group]:+.2f}" for group in names),
            ]
        )
    return tabulate(lines, head, tablefmt="pipe", disable_numparse=True)
