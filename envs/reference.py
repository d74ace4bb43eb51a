"""How well a fixed reference policy does on a task: what the relative reward is measured against."""

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rlmix.classifier.data import ImageFiles
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs.tasks import Task


@dataclass(frozen=True)
class ReferenceCurve:
    """A reference policy's validation accuracy on one task.

    Attributes:
        accuracies: mean over seeds at the end of each segment, in [0, 1].
        scales: standard deviation of these over seeds, and at least the standard error of measuring them on so many
            validation images.
    """

    accuracies: tuple[float, ...]
    scales: tuple[float, ...]


def measure_reference(
    trainer: Trainer,
    task: Task,
    policy: MixPolicy,
    *,
    ends: Sequence[int],
    seeds: Sequence[int],
    validation_limit: int | None,
    cache: Path | None,
) -> ReferenceCurve:
    """Train the task under the reference policy, once for each seed, or read what an earlier run found.

    Args:
        trainer: holds the task's images; its training is replaced.
        task: what is trained.
        policy: the reference.
        ends: update at which each segment ends.
        seeds: training seeds, at least one.
        validation_limit: validation images at the end of every segment but the last.
        cache: folder of earlier results; none = not kept. One that is damaged or cannot be written is done without.
    """
    # The device and thread count change results in the last bits only; those of one run folder are always the same.
    key = json.dumps(
        [asdict(task), policy.to_json(), list(ends), list(seeds), validation_limit, _config_key(trainer)],
        sort_keys=True,
    )
    file = None if cache is None else cache / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    if file is not None and (known := _kept(file, key, len(ends))) is not None:
        return known
    curves, counts = [], []
    for seed in seeds:
        trainer.reset(seed, updates=task.updates)
        evaluations, diverged = [], False
        for segment, end in enumerate(ends):
            limit = None if segment == len(ends) - 1 else validation_limit
            # A training that diverged stays at chance until its end, as an episode does.
            diverged = diverged or trainer.train(policy, end - trainer.updates_done).diverged
            evaluation = None if diverged else trainer.evaluate("validation", limit=limit)
            if evaluation is None or not math.isfinite(evaluation.loss):
                diverged, chance = True, 1 / trainer.num_classes
                images = len(trainer.data.validation.labels[:limit])
                evaluation = EvalStats(chance, math.log(trainer.num_classes), chance, 0.0, images)
            evaluations.append(evaluation)
        curves.append([evaluation.accuracy for evaluation in evaluations])
        counts = [evaluation.images for evaluation in evaluations]
    mean = np.mean(curves, axis=0)
    spread = np.std(curves, axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
    errors = [standard_error(accuracy, images) for accuracy, images in zip(mean.tolist(), counts, strict=True)]
    scales = np.maximum(spread, errors)
    reference = ReferenceCurve(tuple(mean.tolist()), tuple(scales.tolist()))
    if file is not None:
        content = {"key": json.loads(key), **asdict(reference)}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, (json.dumps(content, indent=2) + "\n").encode())
        except OSError as error:
            print(f"warning: {file}: {error.strerror}; this reference will be measured again", file=sys.stderr)
    return reference


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy in [0, 1] measured on so many images; one of 1 on few images is not known without error."""
    likely = min(max(accuracy, 0.01), 0.99)
    return math.sqrt(likely * (1 - likely) / images)


def _kept(file: Path, key: str, segments: int) -> ReferenceCurve | None:
    """What an earlier run found, or none; says so where it was found and cannot be used."""
    try:
        entry = json.loads(file.read_bytes())
        curve = ReferenceCurve(tuple(map(float, entry["accuracies"])), tuple(map(float, entry["scales"])))
        whole = entry["key"] == json.loads(key) and len(curve.accuracies) == len(curve.scales) == segments
        usable = all(0 <= accuracy <= 1 for accuracy in curve.accuracies) and all(
            0 < s < math.inf for s in curve.scales
        )
        if not (whole and usable):
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
