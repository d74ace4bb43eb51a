"""State of a training, from which observations are computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlmix.classifier.models import without_label_head
from rlmix.classifier.training.stats import EvalStats, TrainStats
from rlmix.envs.tasks import Task

if TYPE_CHECKING:
    from rlmix.classifier.data import Splits
    from rlmix.classifier.evaluation.label_check import LabelStats
    from rlmix.classifier.training.trainer import Trainer


@dataclass(frozen=True)
class Setting:
    """Network and images of a training, known before it starts.

    Attributes:
        parameters: number of the network's parameters, without LaMix's second head.
        normalised: whether the network has normalisation layers.
        channels: channels of the images.
        side: shorter side of the images in pixels.
        imbalance: training images of the most frequent label over those of the rarest, at least 1.
    """

    parameters: int
    normalised: bool
    channels: int
    side: int
    imbalance: float

    @classmethod
    def of(cls, trainer: Trainer) -> Setting:
        """Return the setting of a Trainer's training."""
        channels, height, width = trainer.data.train.image_shape
        own = without_label_head(dict(trainer.model.named_parameters()), trainer.head_layer)
        return cls(
            sum(tensor.numel() for tensor in own.values()),
            any("Norm" in type(module).__name__ for module in trainer.model.modules()),
            channels,
            min(height, width),
            _imbalance(trainer.data),
        )


@dataclass(frozen=True)
class TrainingState:
    """State of a training, from which observations are computed.

    Attributes:
        task: the training.
        num_classes: number of classes of the data set.
        batch_size: number of images per update.
        progress: share of the training that is done, in [0, 1].
        relative_lr: learning rate of the next update over the highest one.
        segment: statistics of the last segment; None at the start.
        evaluation: validation after it; None at the start, where accuracy is assumed to be at chance.
        accuracy_before: validation accuracy before it.
        action: the last action; None at the start.
        setting: network and images; None where no feature needs them.
        labels: signs of wrong labels after the last segment; None at the start and where they were not measured.
        before: state one segment earlier; None at the start.
    """

    task: Task
    num_classes: int
    batch_size: int
    progress: float
    relative_lr: float
    segment: TrainStats | None = None
    evaluation: EvalStats | None = None
    accuracy_before: float = 0.0
    action: tuple[int, ...] | None = None
    setting: Setting | None = None
    labels: LabelStats | None = None
    before: TrainingState | None = None

    @classmethod
    def at_start(cls, trainer: Trainer, task: Task) -> TrainingState:
        """Return the state of a Trainer's training of a task at its start."""
        return cls(
            task,
            trainer.num_classes,
            trainer.config.batch_size,
            trainer.progress,
            trainer.relative_lr,
            setting=Setting.of(trainer),
        )

    def after(
        self,
        *,
        progress: float,
        relative_lr: float,
        segment: TrainStats,
        evaluation: EvalStats | None,
        action: tuple[int, ...] | None,
        labels: LabelStats | None = None,
    ) -> TrainingState:
        """Return the state one segment later; arguments as the attributes."""
        before = self.evaluation or EvalStats.at_chance(self.num_classes)
        return replace(
            self,
            progress=progress,
            relative_lr=relative_lr,
            segment=segment,
            evaluation=evaluation,
            accuracy_before=before.accuracy,
            action=action,
            labels=labels,
            before=self,
        )

    def earlier(self, segments: int) -> TrainingState:
        """Return the state some segments earlier, or the start if there were not so many."""
        state = self
        for _ in range(segments):
            state = state.before or state
        return state


def _imbalance(data: Splits) -> float:
    counts = data.train.labels.bincount(minlength=data.num_classes)
    return int(counts.max()) / max(int(counts.min()), 1)
