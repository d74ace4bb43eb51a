"""Validation accuracy of a fixed reference policy on a task, which some rewards compare with."""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rlmix.classifier.data import ImageFiles
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs.seeds import training_seed
from rlmix.envs.task_trainer import TaskTrainer
from rlmix.envs.tasks import Task


@dataclass(frozen=True)
class ReferenceCurve:
    """Validation accuracy of a reference policy on one task.

    Attributes:
        accuracies: mean over seeds at the end of each segment, in [0, 1].
        scales: standard deviation of these over seeds, and at least the standard error of measuring them on so many
            validation images.
    """

    accuracies: tuple[float, ...]
    scales: tuple[float, ...]

    @classmethod
    def from_trainings(cls, accuracies: Sequence[Sequence[float]], images: Sequence[int]) -> "ReferenceCurve":
        """Return the curve of trainings of one task from different seeds.

        Args:
            accuracies: validation accuracy at each segment's end in [0, 1], for each training.
            images: number of validation images that each of them was measured on.
        """
        curves = np.array(accuracies)
        mean = curves.mean(axis=0)
        spread = curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
        errors = [standard_error(accuracy, count) for accuracy, count in zip(mean.tolist(), images, strict=True)]
        return cls(tuple(mean.tolist()), tuple(np.maximum(spread, errors).tolist()))


class References:
    """Curves of the reference policy on tasks, each measured once, or read from an earlier run's cache.

    Args:
        trainer: trains the reference; a training that it has begun is lost when a curve is measured.
        policy: the reference.
        segments: progress at which each segment ends.
        seeds: number of trainings on each task; 0 for one, from the seed of the training that is compared.
        cache: folder of earlier results; None for no cache. A damaged or unwritable cache is ignored.

    Raises:
        ValueError: the number of seeds is below 0.
    """

    def __init__(
        self, trainer: TaskTrainer, policy: MixPolicy, *, segments: Sequence[float], seeds: int, cache: Path | None
    ) -> None:
        if seeds < 0:
            raise InputError(f"reference_seeds must be at least 0, got {seeds}")
        self._trainer, self._policy, self._segments = trainer, policy, segments
        self._seeds, self._cache = [training_seed(-1 - index) for index in range(seeds)], cache
        self._curves: dict[Task, ReferenceCurve] = {}

    def prepare(self, task: Task) -> None:
        """Measure a task's curve ahead of time, if it does not depend on what is compared with it."""
        if self._seeds and task not in self._curves:
            self._curves[task] = self._curve(task, self._seeds)

    def curve(self, task: Task, seed: int) -> ReferenceCurve:
        """Return the curve that a training of `task` from the `Trainer` seed `seed` is compared with."""
        self.prepare(task)
        return self._curves[task] if self._seeds else self._curve(task, [seed])

    def _curve(self, task: Task, seeds: Sequence[int]) -> ReferenceCurve:
        ends = [round(end * task.updates) for end in self._segments]
        limit = self._trainer.validation_limit
        trainer = self._trainer.prepare(task)
        key, file = "", None
        if self._cache is not None:
            # Device and thread count change results in the last bits only; those of one run folder are always the same.
            key = json.dumps(
                [task.to_json(), self._policy.to_json(), ends, list(seeds), limit, _config_key(trainer)], sort_keys=True
            )
            file = self._cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
            if (known := _read(file, key, len(ends))) is not None:
                return known
        images = len(trainer.data.validation)
        counts = [min(images, limit or images)] * (len(ends) - 1) + [images]
        reference = ReferenceCurve.from_trainings([self._accuracies(task, seed, ends) for seed in seeds], counts)
        if file is not None:
            content = {"key": json.loads(key), **asdict(reference)}
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, (json.dumps(content, indent=2) + "\n").encode())
            except OSError as error:
                print(f"warning: {file}: {error.strerror}; this reference will be measured again", file=sys.stderr)
        return reference

    def _accuracies(self, task: Task, seed: int, ends: Sequence[int]) -> list[float]:
        """Return validation accuracy after each segment; a training that diverged stays at chance until its end."""
        trainer = self._trainer.start(task, seed)
        return [
            EvalStats.at_chance(trainer.num_classes).accuracy
            if self._trainer.diverged
            else self._trainer.train_segment(self._policy, end).evaluation.accuracy
            for end in ends
        ]


def standard_error(accuracy: float, images: int) -> float:
    """Return the standard error of an accuracy in [0, 1] measured on so many images, above 0 even for 0 or 1."""
    likely = min(max(accuracy, 0.01), 0.99)
    return math.sqrt(likely * (1 - likely) / images)


def _read(file: Path, key: str, segments: int) -> ReferenceCurve | None:
    """Return the curve that an earlier run wrote, or None; warn about a file that cannot be used."""
    try:
        entry = json.loads(file.read_bytes())
        curve = ReferenceCurve(tuple(map(float, entry["accuracies"])), tuple(map(float, entry["scales"])))
        whole = entry["key"] == json.loads(key) and len(curve.accuracies) == len(curve.scales) == segments
        in_range = all(0 <= accuracy <= 1 for accuracy in curve.accuracies)
        if not (whole and in_range and all(0 < scale < math.inf for scale in curve.scales)):
            raise ValueError
        return curve
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        print(f"warning: {file}: not a reference as this program writes it; it is measured again", file=sys.stderr)
        return None


def _config_key(trainer: Trainer) -> dict[str, object]:
    data = trainer.data
    images = hashlib.sha256()  # the data set's name does not say how it was split, nor whether it is what it was
    for part in (data.train, data.validation):
        if isinstance(part, ImageFiles):
            images.update("\0".join((str(part.size), *part.paths)).encode())
        else:
            images.update(part.images.cpu().numpy().tobytes())
        images.update(part.labels.cpu().numpy().tobytes())
    return {
        **asdict(trainer.config),
        "updates": None,
        "precision": trainer.precision,
        "data": data.name,
        "images": images.hexdigest(),
    }
