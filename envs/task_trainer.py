"""TaskTrainer: a data set and a classifier's setting, from which any `Task` is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.evaluation import LabelStats, check_labels
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.scheduled import train_schedule
from rlmix.classifier.training.stats import EvalStats, TrainStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs.image_library import ImageLibrary
from rlmix.envs.tasks import Task

VALIDATION_LIMIT = 1000  # validation images that an agent sees after a segment, before the end of a training


@dataclass(frozen=True)
class Segment:
    """One segment of a training.

    Attributes:
        stats: statistics of its updates.
        evaluation: validation after it; at chance where the training diverged.
        diverged: whether a loss or a weight is not finite.
        labels: signs of wrong training labels after it; None where they were not measured.
    """

    stats: TrainStats
    evaluation: EvalStats
    diverged: bool
    labels: LabelStats | None = None


@dataclass(frozen=True)
class Snapshot:
    """Copy of a training, in memory; several continuations can start from it.

    Attributes:
        task: the task that is trained.
        state: `Trainer.state_dict()`.
        diverged: whether the training had diverged.
    """

    task: Task
    state: dict[str, Any]
    diverged: bool


class TaskTrainer:
    """Trains tasks, one at a time: of one data set with one network, or of a library's with a network each.

    The data set is loaded when the first task is prepared, and goes to the device once; tasks are drawn there. Tasks
    that name a data set are drawn from the library. A network is built anew only where a task needs another one.

    Args:
        dataset: name for `rlmix.classifier.data.load_dataset`.
        data_root: folder of the data set; optional, defaults to `$RLMIX_DATA`, else `~/.cache/rlmix/data`.
        image_size: side in pixels that images are resized to; optional, defaults to their own.
        training: the classifier's setting, a `TrainConfig` or a dictionary of its fields; a task sets `updates` and
            scales `lr`, and may set more (`Task.options`).
        validation_size: number of validation images; optional, defaults to the data set's.
        validation_limit: number of validation images used before the end of a training; None for all.
        splits: images that the caller has loaded already; the data set and its options are then not read.
        library: data sets of the tasks that name one; optional, defaults to none.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        dataset: str = "digits",
        data_root: str | None = None,
        *,
        image_size: int | None = None,
        training: TrainConfig | Mapping[str, Any] | None = None,
        validation_size: int | None = None,
        validation_limit: int | None = VALIDATION_LIMIT,
        splits: Splits | None = None,
        library: ImageLibrary | None = None,
    ) -> None:
        if validation_limit is not None and validation_limit < 1:
            raise InputError(f"validation_limit must be at least 1 image or None, got {validation_limit}")
        self.training = TrainConfig(**training) if isinstance(training, Mapping) else training or TrainConfig()
        self.validation_limit = validation_limit
        self.diverged = False
        self.trainings = 0
        """Number of trainings begun so far, restored ones included; tells a caller that its own was replaced."""
        self._dataset, self._data_root, self._image_size = dataset, data_root, image_size
        self._validation_size = validation_size
        self._splits, self._library = splits, library
        self._trainer: Trainer | None = None
        self._task: Task | None = None

    @property
    def trainer(self) -> Trainer:
        """Trainer of the current training.

        Raises:
            RuntimeError: no task has been prepared.
        """
        if self._trainer is None:
            raise RuntimeError("there is no training yet: call reset() or start() first")
        return self._trainer

    def prepare(self, task: Task) -> Trainer:
        """Return the trainer, holding the images and the setting of `task`; ends a training of another task.

        Raises:
            DataError: the data set is not available or too small.
        """
        if self._trainer is not None and task == self._task:
            return self._trainer
        config, data = task.training(self.training), self._draw(task)
        if self._trainer is None or not _fits(self._trainer, config, data):
            self._trainer = Trainer(config, data)
            if self._splits is not None:
                self._splits = self._splits.to(self._trainer.device)
        else:
            self._trainer.reset(0, data=data, updates=config.updates, lr=config.lr)
        if self._task is not None:
            self._begin()
        self._task = task
        return self._trainer

    def start(self, task: Task, seed: int) -> Trainer:
        """Start a training of `task`, and return its trainer.

        Args:
            task: the task.
            seed: seed of the `Trainer`; an episode's is its `training_seed`.
        """
        trainer = self.prepare(task)
        trainer.reset(seed)
        self._begin()
        return trainer

    def train_segment(self, policy: MixPolicy, end: int, *, check: bool = False) -> Segment:
        """Train under one policy and validate: on all validation images at the end, on `validation_limit` before.

        Args:
            policy: mixing policy of the segment.
            end: number of the update at which it ends, after where the training stands.
            check: whether the training labels are checked after it.
        """
        return self.validate(self.trainer.train(policy, end - self.trainer.updates_done), check=check)

    def validate(self, stats: TrainStats, *, check: bool = False) -> Segment:
        """Return the segment that the trainer has just trained, validated as `train_segment` does.

        Args:
            stats: statistics of its updates.
            check: whether the training labels are checked.
        """
        trainer = self.trainer
        if not stats.diverged:
            limit = None if trainer.updates_done == trainer.config.updates else self.validation_limit
            evaluation = trainer.evaluate("validation", limit=limit)
            if math.isfinite(evaluation.loss):
                labels = check_labels(trainer) if check else None
                return Segment(stats, evaluation, diverged=False, labels=labels)
        self.diverged = True
        return Segment(stats, EvalStats.at_chance(trainer.num_classes), diverged=True)

    def run(self, schedule: PolicySchedule, task: Task, seed: int) -> None:
        """Train `task` under a schedule; `diverged` is then True if it did not reach its end.

        Args:
            schedule: mixing policy for each part of the training.
            task: the task.
            seed: seed of the `Trainer`, as for `start`.
        """
        self.diverged = train_schedule(self.start(task, seed), schedule).diverged

    def measure(self, splits: Sequence[str]) -> dict[str, float]:
        """Return the trained classifier's accuracy on all images of each split; at chance where training diverged."""
        if not self.diverged:
            evaluations = {name: self.trainer.evaluate(name) for name in splits}
            if all(math.isfinite(evaluation.loss) for evaluation in evaluations.values()):
                return {name: evaluation.accuracy for name, evaluation in evaluations.items()}
        return dict.fromkeys(splits, EvalStats.at_chance(self.trainer.num_classes).accuracy)

    def end_readers(self) -> None:
        """End the processes that read streamed images ahead; further training starts them again."""
        if self._trainer is not None:
            self._trainer.batches.end_readers()

    def snapshot(self) -> Snapshot:
        """Return a copy of the training, which further training does not change."""
        state = self.trainer.state_dict()
        assert self._task is not None
        return Snapshot(self._task, state, self.diverged)

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot; on one machine the results are identical to those of its training."""
        self.prepare(snapshot.task).load_state_dict(snapshot.state)
        self._begin()
        self.diverged = snapshot.diverged

    def _draw(self, task: Task) -> Splits:
        """Return the images of a task."""
        if task.dataset is None:
            if self._splits is None:
                dataset = load_dataset(self._dataset, self._data_root, image_size=self._image_size)
                self._splits = split(dataset, validation_size=self._validation_size)
            return task.draw(self._splits)
        if self._library is None or task.image_size is None:
            raise InputError(f"a task of data set {task.dataset!r} needs a trainer with a library, and an image_size")
        splits = self._library.splits(task.dataset, task.image_size, grey=task.grey)
        confusions = self._library.confusions(task.dataset) if task.noise == "confusions" else None
        return task.draw(splits, confusions=confusions)

    def _begin(self) -> None:
        self.trainings += 1
        self.diverged = False


def _fits(trainer: Trainer, config: TrainConfig, data: Splits) -> bool:
    """Return whether a trainer's network and optimiser serve another training too, from new weights."""
    same_config = replace(trainer.config, updates=config.updates, lr=config.lr) == config
    same_shapes = (data.train.image_shape, data.num_classes) == (trainer.data.train.image_shape, trainer.num_classes)
    return same_config and same_shapes
