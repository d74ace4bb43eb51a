"""Trainings of a comparison: their setting, the contestants, and the result of a training."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch

from rlmix.agent.any_agent import AnyAgent, load_agent
from rlmix.agent.experience import Experience, Scale
from rlmix.agent.files import RULE, SHIPPED
from rlmix.agent.led import train_by_agent
from rlmix.agent.loop_policy import policies_of
from rlmix.agent.rl_mix.learner import RLMixLearner
from rlmix.agent.rl_mix.loop import last_quarter, play, random_thresholds
from rlmix.agent.rule import Rule
from rlmix.classifier.data import Splits
from rlmix.classifier.errors import near_matches
from rlmix.classifier.evaluation.measure import NotMeasurable, Subject, subject_of
from rlmix.classifier.evaluation.measures import MEASURES
from rlmix.classifier.files import LineLog
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.scheduled import train_schedule
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import RLMixEnv
from rlmix.experiments.comparison.config import NAMED, ComparisonConfig, ComparisonTrainConfig
from rlmix.experiments.comparison.contestants import (
    CONTESTANTS,
    Contestant,
    Saliency,
    ThresholdChoice,
    agent_places,
    load_schedules,
)
from rlmix.experiments.comparison.results import pack_hits
from rlmix.experiments.comparison.runner import Line, TrainingLog
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, DataConfig

LOGGED = {"method": str, "seed": int, "accuracy": float, "diverged": bool, "measures": dict}  # fields of a logged line
TRIAL_IMAGES = 20  # images that measures are tried on before the first training


def _title(name: str, place: str, agent: AnyAgent) -> str:
    kind = "rule" if isinstance(agent, Rule) else "agent"
    return f"the shipped {kind}" if place in (SHIPPED, RULE) else f"{name}, {'a' if kind == 'rule' else 'an'} {kind}"


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as a log gives them back, with lists in place of tuples."""
    return json.loads(json.dumps(options))


DEFAULTS = _plain({**asdict(DataConfig()), **asdict(ComparisonTrainConfig())})


@dataclass(frozen=True)
class Setting:
    """Setting of all trainings; nothing is left to `auto`. With contestant and seed it determines the result."""

    data: Annotated[DataConfig, UNPREFIXED]
    train: Annotated[ComparisonTrainConfig, UNPREFIXED]
    torch: str
    split: str = "development"

    def training(self, saliency: Saliency) -> TrainConfig:
        """Return the Trainer's configuration."""
        return replace(self.train, saliency=saliency)

    def draw(self, seed: int) -> Splits:
        """Return the images of the training with a seed; the data set is loaded and split once in each process."""
        data = self.data
        return whole_splits(data).draw(data.train_size, data_seed=seed, label_noise=data.label_noise)

    def to_json(self) -> dict[str, Any]:
        """Return the options by name, as logs and results hold them: those that every log has, and those changed.

        The data set's folder is not among them: it does not change the result.
        """
        options = _plain({**asdict(self.data), **asdict(self.train)})
        changed = {
            name: value
            for name, value in options.items()
            if value != DEFAULTS[name] and name not in (*NAMED, "development_size", "data_root")
        }
        return {
            **{name: options[name] for name in NAMED},
            "torch": self.torch,
            "split": self.split,
            "development_size": options["development_size"],
            **changed,
        }


def select_contestants(config: ComparisonConfig) -> dict[str, Contestant]:
    """Return the contestants by name: those of the registry in its order, then the schedules, then the agents.

    Raises:
        RunError: a name is unknown, or the baseline is not among the contestants.
        PolicyError: a schedule cannot be used; names the file and the field.
        DamagedFileError: an agent cannot be used.
    """
    names = config.contestants or tuple(CONTESTANTS)
    for name in names:
        if name not in CONTESTANTS:
            near = near_matches(name, CONTESTANTS)
            raise RunError(f"--contestants must be among {', '.join(CONTESTANTS)}, got {name!r}{near}")
    for measure in config.measures:
        if measure not in MEASURES:
            raise RunError(f"--measures must be among {', '.join(MEASURES)}, got {measure!r}")
    selected = {name: CONTESTANTS[name] for name in CONTESTANTS if name in names}
    for name, schedule in load_schedules(config.schedules, selected).items():
        selected[name] = Contestant(name, schedule)
    for name, place in agent_places(config.agents, selected).items():
        agent = load_agent(place)
        selected[name] = Contestant(_title(name, place, agent), agent, experience=Experience.load(place))
    if config.baseline not in selected:
        raise RunError(f"--baseline must be one of the contestants {' '.join(selected)}, got {config.baseline}")
    return selected


def all_where_there_are_fewer(config: ComparisonConfig) -> ComparisonConfig:
    """Return the options with all training images where there are fewer than the default number."""
    data = config.data
    if data.train_size is None or len(whole_splits(data).train) >= data.train_size:
        return config
    return replace(config, data=replace(data, train_size=None))


def resolve(config: ComparisonConfig, contestants: Collection[Contestant]) -> tuple[Setting, int, list[str]]:
    """Resolve `auto` options, check the setting (draw the data, build the network), and count the images to be read.

    Args:
        config: options of the comparison.
        contestants: contestants of the comparison.

    Returns:
        The setting, the number of images of the split, and notes on agents that learned from other sizes of trainings.

    Raises:
        RunError: an option is out of range, or a contestant cannot train this network on these images.
        DataError: the data set is not available or is too small.
    """
    data = whole_splits(config.data).draw(config.data.train_size, data_seed=0, label_noise=config.data.label_noise)
    part = data.test if config.test_set else data.development
    if not len(part):
        kind = "test" if config.test_set else "development"
        raise RunError(f"--dataset {config.data.dataset}: expected {kind} images, got none; choose a larger data set")
    device = resolve_device(config.train.device)
    precision = resolve_precision(config.train.precision, device)
    setting = Setting(
        replace(config.data, train_size=len(data.train)),
        replace(config.train, device=str(device), precision=precision),
        torch=torch.__version__,
        split="test" if config.test_set else "development",
    )
    trainer = Trainer(setting.training("exact"), data)
    for contestant in contestants:
        for policy in policies_of(contestant.policy):
            trainer.check(policy)
        if contestant.thresholds is not None:
            RLMixEnv(training=setting.training("exact"), splits=data, grid=contestant.thresholds.grid)
    # Try the measures before anything is trained; on development images, so that the test set is not read.
    tried = subject_of(trainer, "development", count=min(config.measured_images or TRIAL_IMAGES, TRIAL_IMAGES))
    _take_measures(tried, config.measures)
    scale = Scale.of(data, setting.train)
    remarks = {one.title: one.experience.remark(scale) for one in contestants if one.experience is not None}
    return setting, len(part), [f"{title}: {remark}" for title, remark in remarks.items() if remark]


def open_log(
    out: Path, setting: Setting, contestants: Mapping[str, Contestant], measures: Sequence[str], measured_images: int
) -> TrainingLog[tuple[str, int]]:
    """Open a folder's log of finished trainings, by contestant and seed.

    A training that lacks a measure, or was measured on another number of images, counts as not finished: its network
    was not kept.

    Raises:
        RunError: the folder cannot be written, or holds trainings of another setting, or of another schedule or agent
            by the same name.
    """
    path = out / "runs.jsonl"
    try:
        out.mkdir(parents=True, exist_ok=True)
        return TrainingLog(path, lambda lines: _reusable(path, lines, setting, contestants, measures, measured_images))
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None


def collect_trainings(
    folder: Path,
    setting: Setting,
    contestants: Mapping[str, Contestant],
    measures: Sequence[str],
    measured_images: int,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the finished trainings of another comparison, by contestant and seed; its folder is not changed.

    Raises:
        RunError: there is none, or it has another setting, or another schedule or agent by the same name.
    """
    path = folder / "runs.jsonl"
    try:
        runs = LineLog(path).read()
    except OSError as error:
        raise RunError(f"--collect {folder}: cannot be read ({error.strerror})") from None
    if not runs:
        raise RunError(f"--collect {folder}: expected a comparison's folder, got no training in its runs.jsonl")
    return _reusable(path, runs, setting, contestants, measures, measured_images)


def _reusable(
    path: Path,
    runs: Sequence[Line],
    setting: Setting,
    contestants: Mapping[str, Contestant],
    measures: Sequence[str],
    measured_images: int,
) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the trainings of a log that need not run again.

    Raises:
        RunError: one is of another setting, or of another schedule or agent by the same name, or damaged.
    """
    for run in runs:
        with reject_incompatible(path):
            _ = run["method"], run["seed"]
            for field, kind in LOGGED.items():
                if field in run and not isinstance(run[field], kind):
                    raise TypeError(f"{field} must be of type {kind.__name__}, got {run[field]!r:.80}")
        difference = _first_difference(run.get("setting"), setting)
        if difference is None and run["method"] in contestants:
            expected = _identity(run["method"], contestants[run["method"]])
            if run.get("segments", expected) != expected:
                difference = f"another schedule or agent by the name {run['method']}"
        if difference is not None:
            raise RunError(
                f"{path}: holds trainings of another setting ({difference}); choose another folder with --out, or "
                "delete it"
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
    """Run one training from start to end.

    Args:
        name: name of the contestant.
        contestant: contestant to train.
        seed: RNG seed for training images, weights, data order, mixing and measures.
        setting: setting of every training.
        config: options of the comparison, for the measures.

    Returns:
        The line of the log: accuracy on all images of the split in [0, 1], at chance after a diverged training; which
        images are right in float32; the measures; and seconds of the updates alone, including those of RL-Mix's agent.
        RL-Mix's lines also have the entries of `train_rl_mix`, an agent's the schedule that it chose.

    Raises:
        RunError: a measure cannot be taken.
    """
    data = setting.draw(seed)
    training = setting.training(contestant.saliency)
    if contestant.thresholds is not None:
        trainer, ended = train_rl_mix(contestant.thresholds, training, data, seed)
    elif isinstance(contestant.policy, AnyAgent):
        trainer = Trainer(training, data, seed=seed)
        stats, chosen = train_by_agent(trainer, contestant.policy)
        ended = {"diverged": stats.diverged, "seconds": stats.seconds, "chosen": chosen.to_json()}
    else:
        trainer = Trainer(training, data, seed=seed)
        stats = train_schedule(trainer, contestant.policy)
        ended = {"diverged": stats.diverged, "seconds": stats.seconds}
    if ended["diverged"]:
        evaluation = EvalStats.at_chance(trainer.num_classes)
        measured: dict[str, Any] = {"hits": None, "measures": dict.fromkeys(config.measures)}
    else:
        evaluation = trainer.evaluate(setting.split)
        measured = _measure(trainer, seed, setting, config)
    return {
        "method": name,
        "seed": seed,
        "accuracy": evaluation.accuracy,
        **ended,
        **measured,
        "segments": _identity(name, contestant),
        "processor": machine()["processor"],
        "setting": setting.to_json(),
    }


def train_rl_mix(
    thresholds: ThresholdChoice, training: TrainConfig, data: Splits, seed: int
) -> tuple[Trainer, dict[str, Any]]:
    """Run one training whose thresholds are chosen for every batch, by an agent that learns as it goes or at random.

    Returns:
        The Trainer at its end, and entries of the log's line; `last_quarter` is the mean reward and the share of each
        threshold over the last quarter of the training.
    """
    env = RLMixEnv(training=training, splits=data, grid=thresholds.grid)
    choose, learn = random_thresholds(seed, training.batch_size), None
    if thresholds.learned:
        agent = RLMixLearner(thresholds.agent, env, seed=seed, updates=training.updates)
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


def _take_measures(subject: Subject, measures: Sequence[str]) -> dict[str, Any]:
    """Return a network's measures by name.

    Raises:
        RunError: one of them cannot be taken.
    """
    try:
        return {measure: MEASURES[measure].run(subject) for measure in measures}
    except (ImportError, NotMeasurable) as error:
        raise RunError(f"--measures {' '.join(measures)}: {error}") from error


def _measure(trainer: Trainer, seed: int, setting: Setting, config: ComparisonConfig) -> dict[str, Any]:
    """Return which images a trained network gets right, and its measures."""
    whole = subject_of(trainer, setting.split, seed=seed)
    hits = pack_hits(whole.predictions.right)
    count = min(config.measured_images or whole.count, whole.count)
    subject = whole if count == whole.count else replace(whole, count=count)
    return {"hits": hits, "measures": _take_measures(subject, config.measures), "measured_images": count}


def _identity(name: str, contestant: Contestant) -> list[dict[str, Any]] | str | None:
    """Return what tells a user's contestant from others, segments or the agent's checksum; None for the registry's."""
    if name in CONTESTANTS:
        return None
    policy = contestant.policy
    return policy.checksum if isinstance(policy, AnyAgent) else policy.to_json()["segments"]


def whole_splits(data: DataConfig) -> Splits:
    """Return a data set's splits, with all training images; loaded once in each process."""
    return _loaded(replace(data, train_size=None, label_noise=0.0))


@functools.cache
def _loaded(data: DataConfig) -> Splits:
    return data.draw(0)


def _first_difference(logged: Any, setting: Setting) -> str | None:
    if not isinstance(logged, dict):
        return "without a setting"
    # Logs lack options that have their default; the oldest also lack the split.
    defaults = {**DEFAULTS, "split": "development"}
    expected, logged = {**defaults, **setting.to_json()}, {**defaults, **logged}
    names = [name for name in {**expected, **logged} if expected.get(name) != logged.get(name)]
    return f"{names[0]} {logged.get(names[0])!r:.80}, not {expected.get(names[0])!r}" if names else None
