"""Methods that spend a budget of trainings, played on recorded ones; each continues only what is recorded.

A method gives, for each budget, the training that it keeps and what it has spent. A training has the place of its fixed
policy, or `LED`. One that is stopped and taken up again costs nothing twice. Optuna's samplers and pruners are its own
(`optuna` is needed for them alone).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rlmix.agent.budget import BudgetSearch, search_budget
from rlmix.agent.values import Forecaster
from rlmix.classifier.errors import InputError
from rlmix.envs.segments import segment_lengths
from rlmix.experiments.search.task_family import MENU, SEGMENTS
from rlmix.experiments.studies.broad.record import CHOICES
from rlmix.experiments.studies.budget.recorded import LED, POLICIES, Ends, RecordedTask

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

LENGTHS = segment_lengths(SEGMENTS)
GOING_ON = 0.8  # share of the trainings that goes on after a segment, where some are stopped by validation
MAX_TRIALS = 100  # of Optuna: a policy that is suggested again costs nothing


class Kept(NamedTuple):
    """What a method has done with a budget.

    Attributes:
        policy: policy of the training that is kept, or `LED`.
        cost: updates that were spent, in whole trainings.
    """

    policy: int
    cost: float


def best_of(task: RecordedTask, policies: Sequence[int]) -> int:
    """Return the training with the highest validation accuracy at the end, the first of equal ones."""
    return max(policies, key=lambda policy: task.final[policy])


def ours(search: BudgetSearch, task: RecordedTask) -> Kept:
    """Search as `replay_policy.py --budget` does, but without branches, to the end."""
    try:
        last, _ = search_budget(search, lambda step, _: (None, task.result(step)))
    except InputError:  # all have diverged; the agent's is among them
        return Kept(LED, search.cost)
    return Kept(LED if last.own else CHOICES.index(last.action), search.cost)


def search_of(task: RecordedTask, budget: float, forecaster: Forecaster, worth: float | None = None) -> BudgetSearch:
    """Return our search at its start; nothing recorded tells of a branch."""
    start, own = task.observations[LED, 0], task.choices[0]
    return BudgetSearch(forecaster, budget, start, own, images=task.images, worth=worth, branching=False)


def at_random(task: RecordedTask, budget: float, random: np.random.Generator) -> Kept:
    """Train so many different policies to the end; validation decides."""
    drawn = random.permutation(POLICIES)[: int(budget)]
    return Kept(best_of(task, drawn.tolist()), len(drawn))


def falling_counts(budget: float) -> list[int]:
    """Return the number of trainings in each segment that a budget pays for if a fifth ends after each."""

    def counts(first: float) -> list[int]:
        return [max(1, round(first * GOING_ON**segment)) for segment in range(len(LENGTHS))]

    firsts = np.arange(1, budget / LENGTHS[0] + 0.05, 0.05)
    paid = [counts(first) for first in firsts if np.dot(counts(first), LENGTHS) <= budget + 1e-9]
    return paid[-1]


def by_validation(task: RecordedTask, budget: float, order: Sequence[int]) -> Kept:
    """Begin the first trainings of an order; after each segment a fifth ends, those that are behind in validation."""
    counts = falling_counts(budget)
    going = list(order[: counts[0]])
    spent = LENGTHS[0] * len(going)
    for segment in range(1, len(counts)):
        going.sort(key=lambda policy: -task.validation[policy, segment - 1])
        going = going[: counts[segment]]
        spent += LENGTHS[segment] * len(going)
    return Kept(best_of(task, going), spent)


def portfolio(tasks: Sequence[RecordedTask | Ends], size: int, *, led: bool = False) -> list[int]:
    """Return the policies whose best by validation is best on some tasks, added one after the other.

    Args:
        tasks: tasks that they are chosen on.
        size: number of policies.
        led: whether they stand beside the training that the agent led.
    """
    final, development = (np.stack([getattr(task, name) for task in tasks]) for name in ("final", "development"))
    chosen: list[int] = []

    def worth(policy: int) -> float:
        columns = [LED, *chosen, policy] if led else [*chosen, policy]
        best = final[:, columns].argmax(axis=1)
        return float(development[:, columns][np.arange(len(tasks)), best].mean())

    while len(chosen) < min(size, POLICIES):
        chosen.append(max((policy for policy in range(POLICIES) if policy not in chosen), key=worth))
    return chosen


def tpe_with_hyperband(seed: int, reduction: int) -> tuple[BaseSampler, BasePruner]:
    """Return Optuna's Tree-structured Parzen Estimator and Hyperband, which counts per cent of a training."""
    from optuna.pruners import HyperbandPruner
    from optuna.samplers import TPESampler

    first, last = (round(100 * SEGMENTS[place]) for place in (0, -1))
    return TPESampler(seed=seed), HyperbandPruner(first, last, reduction)


def random_with_asha(seed: int, reduction: int) -> tuple[BaseSampler, BasePruner]:
    """Return Optuna's random sampler and Asynchronous Successive Halving (arXiv 1810.05934)."""
    from optuna.pruners import SuccessiveHalvingPruner
    from optuna.samplers import RandomSampler

    return RandomSampler(seed=seed), SuccessiveHalvingPruner(round(100 * SEGMENTS[0]), reduction)


def by_optuna(
    task: RecordedTask,
    budgets: Sequence[float],
    seed: int,
    reduction: int,
    parts: Callable[[int, int], tuple[BaseSampler, BasePruner]],
) -> dict[float, Kept]:
    """Return what one study of Optuna keeps at each budget: the best by validation of what has ended by then.

    Args:
        task: the task.
        budgets: budgets, at least 1 each.
        seed: RNG seed of the sampler.
        reduction: reduction factor of the pruner: one in so many goes on.
        parts: gives sampler and pruner for a seed and a reduction factor.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler, pruner = parts(seed, reduction)
    study = optuna.create_study(
        direction="maximize", sampler=sampler, pruner=pruner, study_name=f"{task.number}-{seed}"
    )
    trained: dict[int, int] = {}  # segments of each policy
    ended: list[int] = []
    cost, kept = 0.0, dict.fromkeys(budgets, Kept(-1, 0.0))
    for _ in range(MAX_TRIALS):
        trial = study.ask()
        choices = (trial.suggest_categorical(str(place), range(size)) for place, size in enumerate(MENU.sizes))
        policy = CHOICES.index(tuple(choices))
        for segment, length in enumerate(LENGTHS):
            if segment >= trained.get(policy, 0):
                cost += length
                trained[policy] = segment + 1
            trial.report(task.validation[policy, segment], round(100 * SEGMENTS[segment]))
            if segment < len(LENGTHS) - 1 and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, task.final[policy])
            ended.append(policy)
        for budget in budgets:
            if ended and cost <= budget + 1e-9:
                kept[budget] = Kept(best_of(task, ended), cost)
        if cost > max(budgets) or len(set(ended)) == POLICIES:
            break
    return kept


def everything(task: RecordedTask) -> Kept:
    """Train under every policy; validation decides."""
    return Kept(best_of(task, range(POLICIES)), POLICIES)


def left_out(
    tasks: Sequence[RecordedTask],
    size: int,
    *,
    whole_data_set: bool,
    led: bool = False,
    further: Sequence[Ends] = (),
) -> Mapping[int, Sequence[int]]:
    """Return a portfolio for each task by its number, chosen on other tasks: all, or those of other data sets.

    Args:
        tasks: the tasks.
        size: number of policies.
        whole_data_set: whether all tasks of the task's data set are left out.
        led: whether the policies stand beside the training that the agent led.
        further: further tasks to choose on, none of which is among `tasks`.
    """
    every: list[RecordedTask | Ends] = [*tasks, *further]

    def without(task: RecordedTask) -> list[RecordedTask | Ends]:
        if whole_data_set:
            return [other for other in every if other.dataset != task.dataset]
        return [other for other in every if other is not task]

    return {task.number: portfolio(without(task), size, led=led) for task in tasks}
