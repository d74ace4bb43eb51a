"""The study of the family of tasks: which trainings a task gets."""

from collections import Counter

from experiments.family import MENU, PLAIN, REFERENCE, SEGMENTS
from experiments.study_family import FIXED, RANDOM, SWITCHING, plans


def test_every_task_gets_the_same_kinds_of_trainings_again() -> None:
    for task in range(30):
        drawn = plans(task)
        assert drawn == plans(task)
        assert len({(plan.training, plan.actions) for plan in drawn}) == len(drawn)
        assert all(len(plan.actions) == len(SEGMENTS) and plan.task == task for plan in drawn)
        assert all(set(plan.actions) <= set(MENU.actions()) for plan in drawn)
        known = {(plan.training, plan.actions[0]) for plan in drawn if len(set(plan.actions)) == 1}
        assert {(training, action) for training in (0, 1) for action in (PLAIN, REFERENCE)} <= known
        for plan in drawn:
            changes = sum(one != other for one, other in zip(plan.actions, plan.actions[1:], strict=False))
            assert changes <= {"random": len(SEGMENTS) - 1, "switching": 1}.get(plan.kind, 0)
            assert plan.training == 0 or plan.kind in ("reference", "plain")
    assert plans(0) != plans(1)
    counts = Counter(plan.kind for task in range(30) for plan in plans(task))
    assert 0.8 * 30 * FIXED <= counts["fixed"] <= 30 * FIXED
    assert 0.9 * 30 * SWITCHING <= counts["switching"] <= 30 * SWITCHING
    assert counts["random"] == 30 * RANDOM
