"""Find what needs no network in a surrogate: a rule of a few questions, the best schedule, and when to stop mixing.

    python experiments/studies/broad/fit_rule.py --model runs/broad_surrogate --out runs/rule

The rule keeps one policy until its look, asks at most `--depth` questions about what it sees there, and then keeps one
policy until it trains cleanly or to the end. The schedule has the policy of each segment that is best over all tasks,
found by changing one segment at a time. The switch is CutMix on half of the updates, then none: the simplest rival.
All are found on tasks of split train; the rule's number of questions and its first policy are those that are best on
tasks of split validation. Scores on tasks of split test stand beside them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from tabulate import tabulate

from rlmix.agent.replay import to_schedule
from rlmix.agent.rule import Action, Leaf, Node, Rule, Split
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import with_filename, write_atomic
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.envs.surrogate import SurrogateVectorEnv
from rlmix.envs.surrogate_model import SurrogateModel
from rlmix.envs.surrogate_tasks import SPLITS
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.studies.broad.train_surrogate import UNIT

LOOKS = (1, 2)  # segments after which the rule may look
CLEAN, CUTMIX = MixPolicy({"clean": 1.0}), MixPolicy({"clean": 0.5, "cutmix": 0.5})
THRESHOLDS = 31  # quantiles of a feature that are tried
WORTH = 0.02  # points that a question gains at least, on the tasks that it is asked for
CHANGED = 1e-3  # points that a change of the schedule gains at least
SEEDS = {"train": 1, "validation": 2, "test": 3}  # of episodes, so that those of two splits differ

Plan = tuple[int, ...]  # places in the menu's actions, one for each of some segments


@dataclass(frozen=True)
class RuleConfig:
    """Find a rule of a few questions and a fixed schedule in a surrogate."""

    model: str
    """Folder of the surrogate, as studies/broad/train_surrogate.py writes it."""
    depth: int = 3
    """Most questions that are asked of a training."""
    episodes: int = 4
    """Episodes of each task."""
    least: float = 0.05
    """Share of the episodes that a leaf has at least."""
    out: str = "runs/rule"
    """Folder of rule.json, schedule.json, switch.json, fixed.json, results.json and results.md."""

    def __post_init__(self) -> None:
        require_at_least(self, depth=1, episodes=1)
        if not 0 < self.least < 0.5:
            raise RunError(f"--least must be in (0, 0.5), got {self.least}")


class Games:
    """Episodes of every task of a split, the same ones whatever is played.

    Args:
        model: the surrogate.
        split: tasks to play.
        episodes: episodes of each task.
    """

    def __init__(self, model: SurrogateModel, split: str, episodes: int) -> None:
        self.tasks = np.repeat(model.tasks.numbers[model.tasks.rows(split)].numpy(), episodes)
        self.seed = SEEDS[split] * 100_000_000
        self.actions = np.array(model.menu.actions())
        self._env = SurrogateVectorEnv(
            len(self.tasks), model=model, split=split, reward="standing", autoreset_mode=AutoresetMode.DISABLED
        )

    def play(self, plan: Sequence[int | NDArray[np.int64]], look: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
        """Play a plan in every episode.

        Args:
            plan: place in the menu's actions for each segment: one, or one of each of the N episodes.
            look: segment before which to look.

        Returns:
            Points of accuracy above plain training at the end, within 5 either way, `[N]`, and what is seen at the
            look, `[N, F]`.
        """
        observation, _ = self._env.reset(seed=self.seed, options={"task": self.tasks})
        seen, rewards = observation, np.zeros(len(self.tasks))
        for segment, choice in enumerate(plan):
            if segment == look:
                seen = observation
            observation, rewards, *_ = self._env.step(self.actions[np.broadcast_to(choice, len(self.tasks))])
        return 100 * UNIT * rewards, seen


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/broad/fit_rule", arguments) as call:
        config = call.parse(RuleConfig, __doc__)
        torch.set_num_threads(1)
        model, out = SurrogateModel.load(config.model), Path(config.out)
        games = {split: Games(model, split, config.episodes) for split in SPLITS if len(model.tasks.rows(split))}
        if set(games) != set(SPLITS):
            raise RunError(f"--model: expected a surrogate with tasks of all splits, got {', '.join(games)}")
        with with_filename(out):
            out.mkdir(parents=True, exist_ok=True)
        facts = {"command": call.line, "surrogate": model.provenance}
        train, count = games["train"], len(model.segments)
        mix, clean = _place(model, CUTMIX), _place(model, CLEAN)
        fixed, stop = best_fixed(train, count), best_switch(train, mix, clean, count)
        schedule = best_schedule(train, [fixed] * count)
        plans = {
            "plain": [clean] * count,
            "best fixed policy": [fixed] * count,
            "CutMix half, then clean": [mix] * stop + [clean] * (count - stop),
            "schedule": schedule,
        }
        rows = {
            name: {split: float(one.play(plan)[0].mean()) for split, one in games.items()}
            for name, plan in plans.items()
        }
        rule = best_rule(model, games, config, facts)
        rows["rule"] = {split: float(_play_rule(rule, one, model).mean()) for split, one in games.items()}
        actions = model.menu.actions()
        found = {
            "fixed": PolicySchedule.fixed(model.menu.policy(actions[fixed])),
            "switch": PolicySchedule(((model.segments[stop - 1], CUTMIX), (1.0, CLEAN))),
            "schedule": to_schedule([actions[choice] for choice in schedule], model.menu, model.segments),
        }
        for name, one in found.items():
            replace(one, provenance={**facts, "learned_by": "trying all in the surrogate"}).save(out / f"{name}.json")
        rule.save(out)
        result = {"command": call.line, "machine": machine(), "points": rows, "rule": str(rule).splitlines()}
        write_atomic(out / "results.json", (json.dumps(result, indent=1) + "\n").encode())
        write_atomic(out / "results.md", markdown(result).encode())
        print(f"{markdown(result)}\nwritten: {out}/results.md, results.json, rule.json and the schedules")


def best_fixed(games: Games, count: int) -> int:
    """Return the place of the policy that is best over the games if it is kept for all of so many segments."""
    return max(range(len(games.actions)), key=lambda choice: float(games.play([choice] * count)[0].mean()))


def best_switch(games: Games, mix: int, clean: int, count: int) -> int:
    """Return the number of segments, of so many, that are best mixed before all others are not.

    Args:
        games: the games.
        mix: place of the policy that mixes.
        clean: place of the policy that does not.
        count: number of segments.
    """
    stops = range(1, count)
    return max(stops, key=lambda stop: float(games.play([mix] * stop + [clean] * (count - stop))[0].mean()))


def best_schedule(games: Games, start: Sequence[int]) -> list[int]:
    """Return the plan that no change of one segment makes better over the games.

    Args:
        games: the games.
        start: plan to begin with.
    """
    best, value = list(start), float(games.play(start)[0].mean())
    changed = True
    while changed:
        changed = False
        for segment in range(len(best)):
            for choice in range(len(games.actions)):
                plan = [*best[:segment], choice, *best[segment + 1 :]]
                if (other := float(games.play(plan)[0].mean())) > value + CHANGED:
                    best, value, changed = plan, other, True
    return best


def best_rule(model: SurrogateModel, games: dict[str, Games], config: RuleConfig, facts: dict[str, Any]) -> Rule:
    """Return the rule that is best on tasks of split validation, of all first policies, looks and depths."""
    actions, found = model.menu.actions(), []
    for look in LOOKS:
        plans = continuations(model, look)
        rest = [tuple(actions[choice] for choice in plan) for plan in plans]
        for first in range(len(actions)):
            tables = {}
            for split in ("train", "validation"):
                played = [games[split].play([first] * look + list(plan), look) for plan in plans]
                tables[split] = np.stack([points for points, _ in played], axis=1), played[0][1]
            points, seen = tables["train"]
            for depth in range(1, config.depth + 1):
                tree = grow(seen, points, model.view.recorded, rest, depth, round(config.least * len(seen)))
                rule = Rule(model.menu, model.segments, (actions[first],) * look, tree, facts)
                judged, seen_there = tables["validation"]
                chosen = [rest.index(rule.choose(row)) for row in _columns(seen_there, rule, model)]
                found.append((float(judged[np.arange(len(judged)), chosen].mean()), rule))
    return max(found, key=lambda pair: pair[0])[1]


def continuations(model: SurrogateModel, look: int) -> list[Plan]:
    """Return what a rule may do after its look: keep a policy for some segments, then train cleanly."""
    rest, clean = len(model.segments) - look, _place(model, CLEAN)
    plans = [
        (choice,) * kept + (clean,) * (rest - kept)
        for choice in range(len(model.menu.actions()))
        for kept in range(1, rest + 1)
    ]
    return list(dict.fromkeys(plans))


def grow(
    seen: NDArray[Any],
    points: NDArray[Any],
    names: Sequence[str],
    rest: Sequence[tuple[Action, ...]],
    depth: int,
    least: int,
) -> Node:
    """Return the tree whose questions part episodes so that the best continuations of the parts give most.

    Args:
        seen: features of N episodes at the look, in the first columns, `[N, F]`.
        points: what each continuation gives in each, `[N, C]`.
        names: names of the features.
        rest: actions of each continuation.
        depth: most questions.
        least: episodes that a part has at least.
    """
    count, (total, best) = len(points), (points.sum(axis=0), points.mean(axis=0).max() + WORTH)
    found: tuple[int, float] | None = None
    for column in range(len(names) if depth and count >= 2 * least else 0):
        values = seen[:, column]
        order = np.argsort(values, kind="stable")
        ranked, sums = values[order], np.cumsum(points[order], axis=0)
        places = np.unique(np.linspace(least, count - least, THRESHOLDS).astype(int))
        for place in places[ranked[places] > ranked[places - 1]]:
            value = (sums[place - 1].max() + (total - sums[place - 1]).max()) / count
            if value > best:
                best, found = value, (column, float(ranked[place - 1] + ranked[place]) / 2)
    if found is None:
        return Leaf(rest[int(total.argmax())])
    column, threshold = found
    below = seen[:, column] < threshold
    parts = [grow(seen[part], points[part], names, rest, depth - 1, least) for part in (below, ~below)]
    return parts[0] if parts[0] == parts[1] else Split(names[column], round(threshold, 4), *parts)


def markdown(result: dict[str, Any]) -> str:
    """Format what was found: points above plain training on the tasks of each split, and the rule."""
    rows = [[name, *(f"{value:+.2f}" for value in row.values())] for name, row in result["points"].items()]
    return "\n".join(
        [
            "# What needs no network, in the surrogate",
            "",
            f"`{result['command']}`",
            "",
            "Points of accuracy above plain training, clipped at 5 either way, means over the tasks of each split. "
            "Found on train, chosen by validation.",
            "",
            tabulate(rows, ["", *SPLITS], tablefmt="pipe", disable_numparse=True),
            "",
            "The rule:",
            "",
            *(f"    {line}" for line in result["rule"]),
            "",
        ]
    )


def _columns(seen: NDArray[Any], rule: Rule, model: SurrogateModel) -> NDArray[Any]:
    return seen[:, model.view.columns(rule.features)]


def _play_rule(rule: Rule, games: Games, model: SurrogateModel) -> NDArray[Any]:
    actions, look = model.menu.actions(), len(rule.first)
    first = [actions.index(action) for action in rule.first]
    _, seen = games.play([*first, *[0] * (len(model.segments) - look)], look)
    rest = np.array([[actions.index(action) for action in rule.choose(row)] for row in _columns(seen, rule, model)])
    return games.play([*first, *rest.T])[0]


def _place(model: SurrogateModel, policy: MixPolicy) -> int:
    return model.menu.actions().index(model.menu.find(policy))


if __name__ == "__main__":
    main()
