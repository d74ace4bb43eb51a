"""Trainings of a comparison: its setting, who takes part, and what a training gives."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from rlmix.agent.rl_mix.learner import RLMixLearner
from rlmix.agent.rl_mix.loop import last_quarter, play, random_thresholds
from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.evaluation.measure import NotMeasurable, Subject, subject_of
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.files import LineLog
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.config import Precision, TrainConfig
from rlmix.classifier.training.scheduled import train_schedule
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import RLMixEnv
from rlmix.experiments.comparison.config import ComparisonConfig
from rlmix.experiments.comparison.contestants import CONTESTANTS, Contestant, PerBatch, Saliency
from rlmix.experiments.comparison.results import pack_hits
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.machine import machine

LOGGED = {"method": str, "seed": int, "accuracy": float, "diverged": bool, "measures": dict}  # of a line of runs.jsonl
TRIED = 20  # images that measures are tried on, before the first training


@dataclass(frozen=True)
class Setting:
    """What decides a training's result besides contestant and seed; nothing is left to `auto`."""

    dataset: str
    model: str
    train_size: int
    updates: int
    batch_size: int
    device: str
    precision: Precision
    torch: str
    split: str = "development"
    development_size: int | None = None

    def training(self, saliency: Saliency) -> TrainConfig:
        """The Trainer's setting."""
        return TrainConfig(
            model=self.model,
            updates=self.updates,
            batch_size=self.batch_size,
            saliency=saliency,
            device=self.device,
            precision=self.precision,
        )


def select_contestants(config: ComparisonConfig) -> dict[str, Contestant]:
    """The contestants by name: those of the list in its order, then the schedules.

    Raises:
        RunError: one is not known, or the baseline is none of them.
        PolicyError: a schedule cannot be used; names the file and the field.
    """
    names = config.contestants or tuple(CONTESTANTS)
    for name in names:
        if name not in CONTESTANTS:
            raise RunError(f"--contestants must be among {', '.join(CONTESTANTS)}, got {name!r}")
    for measure in config.measures:
        if measure not in MEASURES:
            raise RunError(f"--measures must be among {', '.join(MEASURES)}, got {measure!r}")
    asked = {name: CONTESTANTS[name] for name in CONTESTANTS if name in names}
    for entry in config.schedules:
        name, equals, path = entry.partition("=")
        if not (name and equals and path):
            raise RunError(f"--schedules must be NAME=FILE, such as learned=policy.json, got {entry!r}")
        if name in CONTESTANTS or name in asked:
            raise RunError(f"--schedules: the name {name!r} stands for another contestant; choose another")
        asked[name] = Contestant(name, PolicySchedule.load(path))
    if config.baseline not in asked:
        raise RunError(f"--baseline must be one of the contestants {' '.join(asked)}, got {config.baseline}")
    return asked


def resolve(config: ComparisonConfig, contestants: Collection[Contestant]) -> tuple[Setting, int]:
    """The setting with nothing left to `auto`, tried out (data drawn, network built), and how many images are read.

    Args:
        config: what was asked for.
        contestants: who will train.

    Raises:
        RunError: an option is out of range, or a contestant cannot train this network on these images.
        DataError: the data set cannot be had or is too small.
    """
    for name, least in (("seeds", 2), ("processes", 1)):
        if getattr(config, name) < least:
            raise RunError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    if config.measured_images is not None and config.measured_images < 2:
        raise RunError(f"--measured-images must be at least 2, got {config.measured_images}")
    data = _splits(config.dataset, config.data_root, config.development_size).draw(config.train_size, data_seed=0)
    part = data.test if config.test_set else data.development
    if not len(part):
        kind = "test" if config.test_set else "development"
        raise RunError(f"--dataset {config.dataset}: expected {kind} images, got none; choose a larger data set")
    device = resolve_device(config.device)
    setting = Setting(
        dataset=config.dataset,
        model=config.model,
        train_size=config.train_size,
        updates=config.updates,
        batch_size=config.batch_size,
        device=str(device),
        precision=resolve_precision(config.precision, device),
        torch=torch.__version__,
        split="test" if config.test_set else "development",
        development_size=config.development_size,
    )
    trainer = Trainer(setting.training("exact"), data)
    for contestant in contestants:
        for _, policy in contestant.schedule.segments:
            trainer.check(policy)
    # What cannot be measured is said before anything has been trained. Development images do, for this is no reading.
    tried = subject_of(trainer, "development", count=min(config.measured_images or TRIED, TRIED))
    _measured(tried, config.measures)
    return setting, len(part)


def open_log(
    out: Path, setting: Setting, contestants: Mapping[str, Contestant], measures: Sequence[str], measured_images: int
) -> TrainingLog[tuple[str, int]]:
    """Open the log of finished trainings in a folder, by contestant and seed.

    A training that lacks one of the measures, or was measured on another number of images, counts as not finished: its
    network is gone.

    Raises:
        RunError: the folder cannot be written, or holds trainings of another setting, or of another schedule by the
            same name.
    """
    path = out / "runs.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        return TrainingLog(path, lambda lines: _usable(path, lines, setting, contestants, measures, measured_images))
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None


def collect_trainings(
    folder: Path,
    setting: Setting,
    contestants: Mapping[str, Contestant],
    measures: Sequence[str],
    measured_images: int,
) -> dict[tuple[str, int], dict[str, Any]]:
    """The finished trainings of another comparison, by contestant and seed; nothing in its folder is changed.

    Raises:
        RunError: there is none, or it has another setting, or another schedule by the same name.
    """
    path = folder / "runs.jsonl"
    try:
        runs = LineLog(path).read()
    except OSError as error:
        raise RunError(f"--collect {folder}: cannot be read ({error.strerror})") from None
    if not runs:
        raise RunError(f"--collect {folder}: expected a comparison's folder, got no training in its runs.jsonl")
    return _usable(path, runs, setting, contestants, measures, measured_images)


def _usable(
    path: Path,
    runs: Sequence[Line],
    setting: Setting,
    contestants: Mapping[str, Contestant],
    measures: Sequence[str],
    measured_images: int,
) -> dict[tuple[str, int], dict[str, Any]]:
    """The trainings of a log that need not be made again.

    Raises:
        RunError: one is of another setting, or of another schedule by the same name, or damaged.
    """
    for run in runs:
        with reject_incompatible(path):
            _ = run["method"], run["seed"]
            for field, kind in LOGGED.items():
                if field in run and not isinstance(run[field], kind):
                    raise TypeError(f"{field} must be of type {kind.__name__}, got {run[field]!r:.80}")
        difference = _first_difference(run.get("setting"), setting)
        if difference is None and run["method"] in contestants:
            expected = _segments(run["method"], contestants[run["method"]])
            if run.get("segments", expected) != expected:
                difference = f"another schedule by the name {run['method']}"
        if difference is not None:
            raise RunError(
                f"{path}: holds trainings of another setting ({difference}); choose another folder, or delete it"
            )
    finished = {(run["method"], run["seed"]): run for run in runs}
    if not measures:
        return finished
    return {
        job: run
        for job, run in finished.items()
        if set(measures) <= set(run.get("measures", {}))
        and (run["diverged"] or run.get("measured_images") == measured_images)
    }


def train(name: str, contestant: Contestant, seed: int, setting: Setting, config: ComparisonConfig) -> dict[str, Any]:
    """One training from start to end.

    Args:
        name: the contestant's.
        contestant: what is trained under.
        seed: of the training images, and of weights, data order and mixing; and of what is measured.
        setting: of every training.
        config: for the data's folder and what is measured.

    Returns:
        The line of the log: accuracy on all images of the split in [0, 1], at chance after a diverged training; which
        images are right in float32, and the measures; and seconds of the updates alone, a per-batch agent's own
        included; of such an agent also what it did.

    Raises:
        RunError: a measure cannot be taken.
    """
    splits = _splits(setting.dataset, config.data_root, setting.development_size)
    data = splits.draw(setting.train_size, data_seed=seed)
    training = setting.training(contestant.saliency)
    if contestant.per_batch is None:
        trainer = Trainer(training, data, seed=seed)
        stats = train_schedule(trainer, contestant.schedule)
        ended = {"diverged": stats.diverged, "seconds": stats.seconds}
    else:
        trainer, ended = train_per_batch(contestant.per_batch, training, data, seed)
    if ended["diverged"]:
        evaluation = EvalStats.at_chance(trainer.num_classes)
        seen: dict[str, Any] = {"hits": None, "measures": dict.fromkeys(config.measures)}
    else:
        evaluation = trainer.evaluate(setting.split)
        seen = _look(trainer, seed, setting, config)
    return {
        "method": name,
        "seed": seed,
        "accuracy": evaluation.accuracy,
        **ended,
        **seen,
        "segments": _segments(name, contestant),
        "processor": machine()["processor"],
        "setting": asdict(setting),
    }


def train_per_batch(
    chooser: PerBatch, training: TrainConfig, data: Splits, seed: int
) -> tuple[Trainer, dict[str, Any]]:
    """One training whose thresholds are chosen batch by batch, learning included.

    Returns:
        The Trainer at its end; and what the log's line has of it: `last_quarter` is the mean reward and the share of
        each threshold over the last quarter of the training.
    """
    env = RLMixEnv(training=training, splits=data, grid=chooser.grid)
    choose, learn = random_thresholds(seed, training.batch_size), None
    if chooser.learned:
        agent = RLMixLearner(chooser.agent, env, seed=seed, updates=training.updates)
        choose, learn = agent.choose, agent.learn
    observation, _ = env.reset(seed=seed)
    started = time.perf_counter()
    epochs = list(play(env, observation, choose, learn))
    seconds = time.perf_counter() - started
    return env.trainer, {
        "diverged": epochs[-1].diverged,
        "seconds": seconds,
        "last_quarter": last_quarter([epoch.line() for epoch in epochs], training.updates),
    }


def _measured(subject: Subject, measures: Sequence[str]) -> dict[str, Any]:
    """The measures of a network, by name.

    Raises:
        RunError: one of them cannot be taken.
    """
    try:
        return {measure: MEASURES[measure].run(subject) for measure in measures}
    except (ImportError, NotMeasurable) as error:
        raise RunError(f"--measures {' '.join(measures)}: {error}") from error


def _look(trainer: Trainer, seed: int, setting: Setting, config: ComparisonConfig) -> dict[str, Any]:
    """Which images a trained network gets right, and what else is measured of it."""
    whole = subject_of(trainer, setting.split, seed=seed)
    seen = whole.predictions
    count = min(config.measured_images or whole.count, whole.count)
    subject = whole if count == whole.count else replace(whole, count=count)
    return {"hits": pack_hits(seen.right), "measures": _measured(subject, config.measures), "measured_images": count}


def _segments(name: str, contestant: Contestant) -> list[dict[str, Any]] | None:
    """What tells a schedule by this name from another one; nothing of the contestants that the program names."""
    return None if name in CONTESTANTS else contestant.schedule.to_json()["segments"]


@functools.cache
def _splits(dataset: str, root: str | None, development_size: int | None) -> Splits:
    return split(load_dataset(dataset, root), development_size=development_size)


def _first_difference(there: Any, setting: Setting) -> str | None:
    if not isinstance(there, dict):
        return "without a setting"
    # Older logs know no other split, and none of another size.
    asked, there = asdict(setting), {"split": "development", "development_size": None, **there}
    names = [name for name in {**asked, **there} if asked.get(name) != there.get(name)]
    return f"{names[0]} {there.get(names[0])!r:.80}, not {asked.get(names[0])!r}" if names else None
