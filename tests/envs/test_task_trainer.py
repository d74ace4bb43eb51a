"""Trainings of tasks without an environment: from start to end, and several continuations of one."""

import math
from typing import Any

import pytest
import torch

from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import MixPolicyEnv, Task, TaskTrainer
from tests.envs.tiny import TRAINING, digits, same_weights, tiny

TASK, OTHER = Task(100, 20, 0.2, 5), Task(60, 12, 0.0, 6, lr_scale=0.5)
PLAIN, CUTMIX = MixPolicy({"clean": 1.0}), MixPolicy({"clean": 0.5, "cutmix": 0.5})
RMIX = MixPolicy({"clean": 0.5, "rmix": 0.5})
SPLITS = ["validation", "development"]


def task_trainer(**changes: Any) -> TaskTrainer:
    return TaskTrainer(splits=digits(), **{"training": TRAINING, **changes})


def by_hand(task: Task, seed: int, *policies: MixPolicy) -> Trainer:
    """A training whose policies each have an equal share of the updates."""
    data = digits().draw(task.train_size, data_seed=task.data_seed, label_noise=task.label_noise)
    config = TrainConfig(**{**TRAINING, "lr": TRAINING["lr"] * task.lr_scale}, updates=task.updates)
    trainer = Trainer(config, data, seed=seed)
    for policy in policies:
        trainer.train(policy, task.updates // len(policies))
    return trainer


def network(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.network_state().items()}


@pytest.mark.parametrize("before", [None, OTHER])
def test_running_a_schedule_is_training_by_hand(before: Task | None) -> None:
    trainer = task_trainer()
    if before is not None:
        trainer.run(PolicySchedule.fixed(CUTMIX), before, 1)
    trainer.run(PolicySchedule(((0.5, RMIX), (1.0, PLAIN))), TASK, 7)
    expected = by_hand(TASK, 7, RMIX, PLAIN)
    assert same_weights(network(trainer.trainer), network(expected))
    assert trainer.measure(SPLITS) == {name: expected.evaluate(name).accuracy for name in SPLITS}
    assert not trainer.diverged


def test_segments_end_where_they_are_told_and_are_validated_on_the_limit_before_the_end() -> None:
    trainer = task_trainer(validation_limit=30)
    trainer.start(TASK, 7)
    first, last = trainer.train_segment(CUTMIX, 10), trainer.train_segment(PLAIN, 20)
    expected = by_hand(TASK, 7)
    expected.train(CUTMIX, 10)
    assert first.evaluation == expected.evaluate("validation", limit=30)
    expected.train(PLAIN, 10)
    assert last.evaluation == expected.evaluate("validation")
    assert (first.stats.updates, last.stats.updates) == (10, 10)
    assert (first.evaluation.images, last.evaluation.images) == (30, 100)


def test_several_continuations_start_from_one_snapshot() -> None:
    trainer = task_trainer()
    trainer.start(TASK, 3)
    trainer.train_segment(RMIX, 10)
    snapshot = trainer.snapshot()
    for policy in (CUTMIX, PLAIN, CUTMIX):
        trainer.run(PolicySchedule.fixed(PLAIN), OTHER, 0)  # other images between
        trainer.restore(snapshot)
        segment = trainer.train_segment(policy, 20)
        expected = by_hand(TASK, 3, RMIX, policy)
        assert same_weights(network(trainer.trainer), network(expected))
        assert segment.evaluation == expected.evaluate("validation")


def test_a_diverged_training_is_at_chance_until_another_one_is_started() -> None:
    trainer = task_trainer(training={**TRAINING, "lr": 1e6})
    trainer.run(PolicySchedule.fixed(PLAIN), TASK, 0)
    assert trainer.diverged and trainer.measure(SPLITS) == dict.fromkeys(SPLITS, 0.1)
    kept = trainer.snapshot()
    slow = Task(100, 20, 0.0, 5, lr_scale=1e-8)
    trainer.start(slow, 0)
    segment = trainer.train_segment(PLAIN, 20)
    assert not trainer.diverged and not segment.diverged
    assert trainer.measure(["validation"]) == {"validation": segment.evaluation.accuracy}
    trainer.restore(kept)
    assert trainer.diverged and trainer.measure(SPLITS) == dict.fromkeys(SPLITS, 0.1)
    trainer.start(TASK, 0)
    segment = trainer.train_segment(PLAIN, 20)
    assert trainer.diverged and segment.diverged
    assert (segment.evaluation.accuracy, segment.evaluation.loss) == (0.1, math.log(10))


def test_there_is_no_training_before_the_first() -> None:
    for use in (lambda trainer: trainer.trainer, TaskTrainer.snapshot, lambda trainer: trainer.measure(SPLITS)):
        with pytest.raises(RuntimeError, match="no training yet"):
            use(task_trainer())
    with pytest.raises(ValueError, match=r"validation_limit.*0"):
        task_trainer(validation_limit=0)


def test_environments_can_share_a_trainer_but_not_be_played_in_turn() -> None:
    one = tiny(reward="final")
    other = MixPolicyEnv(task_trainer=one.task_trainer, tasks=one.tasks, segments=2, reward="final")
    one.reset(seed=0)
    one.step((0, 0, 0, 0))
    other.reset(seed=4)
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        one.step((0, 0, 0, 0))
    accuracies = [other.step((0, 0, 0, 0))[-1]["validation_accuracy"] for _ in range(2)]
    alone = tiny(reward="final", segments=2)
    alone.reset(seed=4)
    assert accuracies == [alone.step((0, 0, 0, 0))[-1]["validation_accuracy"] for _ in range(2)]
    snapshot = one.task_trainer.snapshot()
    other.reset(seed=4)
    one.task_trainer.restore(snapshot)
    with pytest.raises(RuntimeError, match=r"call reset\(\)"):
        other.step((0, 0, 0, 0))
