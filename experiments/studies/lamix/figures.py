"""Figures of LaMix's paper (Bypassing the Random Input Mixing in Mixup) on development images, one command each.

On 1,000 images, 100 epochs and 3 seeds β from 0.5 to 1 is within noise, 0.3 loses 1.4 ± 0.4 points and 0.1 fails in
part (results/lamix; 2 cores of an Intel Xeon, about 40 s a training).

    python experiments/studies/lamix/figures.py targets    # five largest entries of soft targets beside mixed images
    python experiments/studies/lamix/figures.py labels     # soft and global labels at several epochs
    python experiments/studies/lamix/figures.py beta       # accuracy against β (eq. 10)
    python experiments/studies/lamix/figures.py smoothing  # accuracy against label smoothing's factor, beside LaMix
    python experiments/studies/lamix/figures.py curves     # accuracy over a long training
    python experiments/studies/lamix/figures.py embedding  # held-out images at a bottleneck of 2 units

Each writes figure.png, results.json and runs.jsonl, the trainings finished so far, into its folder. A seed draws
training images, weights, data order and mixing for everything that is compared. Finished trainings do not run again:
the same command resumes, and with more seeds it adds to them. The test set is never read.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import matplotlib
import tyro
from tabulate import tabulate
from tyro.conf import Suppress

from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.stats import EvalStats
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.comparison.config import ComparisonConfig, ComparisonTrainConfig
from rlmix.experiments.comparison.contestants import CONTESTANTS, Contestant, only_policy
from rlmix.experiments.comparison.intervals import format_shares, mean_interval, paired_difference
from rlmix.experiments.comparison.trainings import Setting, open_log, resolve
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, DataConfig, ParallelConfig, flatten
from rlmix.experiments.studies.lamix import charts
from rlmix.experiments.studies.lamix.looks import LOOKS

Run = Mapping[str, Any]  # a line of runs.jsonl
Runs = Mapping[str, Sequence[Run]]  # by arm, in the same order of seeds


@dataclass(frozen=True, kw_only=True)
class FigureSetting(Setting):
    """Setting of every training of a figure, with the epochs at which it is measured.

    Attributes:
        figure: name of the figure.
        epochs: epochs after which the network is measured, in ascending order.
        looked_at: number of development images, or of pairs, that measurements beyond accuracy take.
    """

    figure: str
    epochs: list[int]
    looked_at: int

    def to_json(self) -> dict[str, Any]:
        """Return the options by name, as logs and results hold them."""
        return {**super().to_json(), "figure": self.figure, "epochs": self.epochs, "looked_at": self.looked_at}


@dataclass(frozen=True)
class FigureTrainConfig(ComparisonTrainConfig):
    """Setting of the trainings of a figure, whose length is told in epochs."""

    updates: Suppress[int] = 1000


@dataclass(frozen=True)
class FigureConfig:
    """Options that all figures have."""

    data: Annotated[DataConfig, UNPREFIXED] = field(default_factory=lambda: DataConfig(train_size=1000))
    train: Annotated[FigureTrainConfig, UNPREFIXED] = field(default_factory=FigureTrainConfig)
    epochs: int = 100
    """Length of each training, in passes over the training images, whose number --batch-size must divide."""
    parallel: Annotated[ParallelConfig, UNPREFIXED] = field(default_factory=ParallelConfig)
    seeds: int = 3
    """Number of trainings of each arm, with seeds 0, 1, 2, ..."""
    out: str | None = None
    """Folder of the results; optional, defaults to runs/lamix/NAME-OF-THE-FIGURE."""

    min_seeds: ClassVar[int] = 2  # an interval needs two values

    def __post_init__(self) -> None:
        require_at_least(self, epochs=1, seeds=self.min_seeds)


@dataclass(frozen=True)
class TargetsConfig(FigureConfig):
    """The five largest entries of soft targets (eq. 10), beside the mixed image and the two it is made of."""

    seeds: int = 1
    """Number of trainings; the targets of the first one are drawn."""
    pairs: int = 5
    """Number of mixed images."""

    min_seeds: ClassVar[int] = 1  # one arm alone

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, pairs=1)


@dataclass(frozen=True)
class LabelsConfig(FigureConfig):
    """Distribution of soft labels (eq. 10) and global labels (eq. 9) of mixed images over a training."""

    at: tuple[int, ...] = (1, 10, 30, 100)
    """Epochs after which the labels are measured."""
    pairs: int = 1000
    """Number of mixed development images whose labels are counted."""

    min_seeds: ClassVar[int] = 1  # one arm alone

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, pairs=1)


@dataclass(frozen=True)
class BetaConfig(FigureConfig):
    """LaMix's accuracy against β, the local label's weight (eq. 10); β = 1 has no global label."""

    betas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    """Values of β, each in [0, 1]; differences are taken to the last one."""


@dataclass(frozen=True)
class SmoothingConfig(FigureConfig):
    """Label smoothing's accuracy against its factor, beside LaMix; differences are taken to plain training."""

    factors: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8)
    """Factors of label smoothing, each above 0 and at most 1; plain training, factor 0, is always included."""


@dataclass(frozen=True)
class CurvesConfig(FigureConfig):
    """Accuracy over a long training: does plain training, mixup, CutMix or LaMix overfit in the end?"""

    epochs: int = 400
    """Length of each training, in passes over the training images."""
    points: int = 20
    """Number of times that accuracy is measured, in even steps."""


@dataclass(frozen=True)
class EmbeddingConfig(FigureConfig):
    """Development images by class in the plane of a network whose embedding has 2 units: plain, mixup and LaMix."""

    train: Annotated[FigureTrainConfig, UNPREFIXED] = field(
        default_factory=lambda: FigureTrainConfig(model="search_bottleneck")
    )
    at: tuple[int, ...] = (10, 30, 100)
    """Epochs after which the embeddings are measured."""
    images: int = 1000
    """Number of development images whose embeddings are measured; half of them are drawn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(self, images=1)


Command = (
    Annotated[TargetsConfig, tyro.conf.subcommand("targets")]
    | Annotated[LabelsConfig, tyro.conf.subcommand("labels")]
    | Annotated[BetaConfig, tyro.conf.subcommand("beta")]
    | Annotated[SmoothingConfig, tyro.conf.subcommand("smoothing")]
    | Annotated[CurvesConfig, tyro.conf.subcommand("curves")]
    | Annotated[EmbeddingConfig, tyro.conf.subcommand("embedding")]
)


@dataclass(frozen=True)
class FigurePlan:
    """Trainings and measurements of a figure.

    Attributes:
        figure: name of the figure.
        arms: contestants by name.
        baseline: arm that the others are compared with; None if there is one arm.
        at: epochs after which the network is measured, in ascending order.
        looked_at: number of development images, or of pairs, that measurements beyond accuracy take.
    """

    figure: str
    arms: Mapping[str, Contestant]
    baseline: str | None
    at: Sequence[int]
    looked_at: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/lamix/figures", arguments) as call:
        call.resume = call.line
        config: FigureConfig = call.parse(Command, __doc__)  # type: ignore[arg-type]  # tyro takes unions of types
        plan = build_plan(config)
        setting = resolve_setting(config, plan)
        out = Path(config.out or f"runs/lamix/{plan.figure}")
        log = open_log(out, setting, plan.arms, (), 0)
        # Seed by seed, so that the trainings of an interrupted figure are nearly paired.
        jobs = {
            (name, seed): functools.partial(train, name, only_policy(arm), seed, setting)
            for seed in range(config.seeds)
            for name, arm in plan.arms.items()
        }
        log.run(jobs, processes=config.parallel.processes, describe=_describe)
        runs = {name: [log.finished[name, seed] for seed in range(config.seeds)] for name in plan.arms}
        report = {
            "kind": f"lamix_{plan.figure}",
            "command": call.line,
            "config": flatten(asdict(config)),
            "setting": setting.to_json(),
            "machine": machine(),
            "seeds": list(range(config.seeds)),
            "development_images": runs[next(iter(runs))][0]["development_images"],
            "arms": summarise_figure(plan, runs),
        }
        write_atomic(out / "results.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
        with matplotlib.rc_context({"savefig.facecolor": "white"}):
            charts.CHARTS[plan.figure](report, runs).savefig(out / "figure.png", dpi=100, pil_kwargs={"optimize": True})
    print(f"\n{text_report(report)}\nwritten: {out}/figure.png, results.json")


def build_plan(config: FigureConfig) -> FigurePlan:
    """Return the trainings and measurements of the figure.

    Raises:
        RunError: an option is out of range.
        PolicyError: a β or a factor is out of range.
    """
    match config:
        case TargetsConfig():
            return FigurePlan("targets", _contestants("lamix"), None, [config.epochs], config.pairs)
        case LabelsConfig():
            at = _checked_epochs(config.at, config.epochs)
            return FigurePlan("labels", _contestants("lamix"), None, at, config.pairs)
        case BetaConfig():
            lamix = only_policy(CONTESTANTS["lamix"])
            arms = {
                f"beta {beta:g}": Contestant(
                    f"LaMix, β = {beta:g}", PolicySchedule.fixed(replace(lamix, label_beta=beta))
                )
                for beta in config.betas
            }
            if len(arms) < 2 or len(arms) < len(config.betas):
                raise RunError(f"--betas must be at least two different values in [0, 1], got {config.betas}")
            return FigurePlan("beta", arms, list(arms)[-1], [config.epochs])
        case SmoothingConfig():
            if not config.factors or len(set(config.factors)) < len(config.factors) or min(config.factors) <= 0:
                raise RunError(f"--factors must be different values above 0 and at most 1, got {config.factors}")
            smoothed = {
                f"smoothing {factor:g}": Contestant(
                    f"label smoothing {factor:g}",
                    PolicySchedule.fixed(MixPolicy({"clean": 1.0}, label_smoothing=factor)),
                )
                for factor in config.factors
            }
            arms = {**_contestants("plain"), **smoothed, **_contestants("lamix")}
            return FigurePlan("smoothing", arms, "plain", [config.epochs])
        case CurvesConfig():
            if not 2 <= config.points <= config.epochs:
                raise RunError(f"--points must be in [2, {config.epochs}], one an epoch, got {config.points}")
            at = [round(config.epochs * point / config.points) for point in range(1, config.points + 1)]
            return FigurePlan("curves", _contestants("plain", "mixup", "cutmix", "lamix"), "plain", at)
        case EmbeddingConfig():
            at = _checked_epochs(config.at, config.epochs)
            arms = _contestants("plain", "mixup", "lamix")
            return FigurePlan("embedding", arms, "plain", at, config.images)
    raise AssertionError(f"no plan for {type(config).__name__}")


def resolve_setting(config: FigureConfig, plan: FigurePlan) -> FigureSetting:
    """Resolve `auto` options and check the setting: draw the data and build the network.

    Raises:
        RunError: an option is out of range.
        DataError: the data set is not available or too small.
    """
    data, batch_size = config.data, config.train.batch_size
    if not data.train_size or data.train_size % batch_size:
        raise RunError(
            f"--train-size must be a multiple of --batch-size {batch_size}, so that an epoch is a whole number of "
            f"updates, got {data.train_size}"
        )
    train = replace(config.train, updates=config.epochs * data.train_size // batch_size)
    setting, *_ = resolve(ComparisonConfig(data=data, train=train), plan.arms.values())
    return FigureSetting(
        setting.data,
        setting.train,
        setting.torch,
        figure=plan.figure,
        epochs=list(plan.at),
        looked_at=plan.looked_at,
    )


def train(name: str, policy: MixPolicy, seed: int, setting: FigureSetting) -> dict[str, Any]:
    """Train from start to end, measuring the network after each of the setting's epochs.

    Args:
        name: name of the arm.
        policy: mixing policy of the training.
        seed: RNG seed for training images, weights, data order and mixing.
        setting: setting of every training.

    Returns:
        The line of the log. `points` has, for each of the setting's epochs, accuracy on all development images in
        [0, 1] (at chance once the training has diverged) and the figure's other measurements. `seconds` are those of
        the updates alone.

    Raises:
        RunError: the training has diverged, and the figure shows more than accuracy.
    """
    data = setting.draw(seed)
    trainer = Trainer(setting.training("recycled"), data, seed=seed)
    look = LOOKS.get(setting.figure)
    points: list[dict[str, Any]] = []
    seconds, diverged = 0.0, False
    for epoch in setting.epochs:
        until = epoch * len(data.train) // setting.train.batch_size
        stats = trainer.train(policy, until - trainer.updates_done, probe=False)
        seconds, diverged = seconds + stats.seconds, diverged or stats.diverged
        if diverged and look is not None:
            raise RunError(
                f"{name}, seed {seed}: the training diverged (a loss is not finite) before epoch {epoch}, so there is "
                "nothing to draw; choose another network or more training images"
            )
        points.append(
            {
                "epoch": epoch,
                "accuracy": (
                    EvalStats.at_chance(trainer.num_classes) if diverged else trainer.evaluate("development")
                ).accuracy,
                **({} if look is None else look(trainer, policy, setting.looked_at)),
            }
        )
    return {
        "method": name,
        "seed": seed,
        "points": points,
        "diverged": diverged,
        "seconds": seconds,
        "development_images": len(data.development),
        "class_names": list(data.class_names),
        "processor": machine()["processor"],
        "setting": setting.to_json(),
    }


def summarise_figure(plan: FigurePlan, runs: Runs) -> dict[str, Any]:
    """Summarise every arm: means over seeds with 95 % intervals at each epoch, and the difference at the end.

    Args:
        plan: trainings of the figure.
        runs: lines of the log by arm, in the same order of seeds.
    """
    ends = {name: [run["points"][-1]["accuracy"] for run in lines] for name, lines in runs.items()}
    arms = {}
    for name, lines in runs.items():
        arm: dict[str, Any] = {
            "title": plan.arms[name].title,
            "policy": only_policy(plan.arms[name]).to_json(),
            "diverged": sum(run["diverged"] for run in lines),
            "seconds": _interval([run["seconds"] for run in lines]),
            "points": [_point([run["points"][place] for run in lines]) for place in range(len(plan.at))],
        }
        if plan.baseline is not None and name != plan.baseline:
            mean, half_width = paired_difference(ends[name], ends[plan.baseline])
            arm["less_baseline"] = {"baseline": plan.baseline, "mean": mean, "half_width": half_width}
        arms[name] = arm
    return arms


def _point(seeds: Sequence[Run]) -> dict[str, Any]:
    """Return means with intervals of all seeds' measurements after one epoch."""
    point = {"epoch": seeds[0]["epoch"], "accuracy": _interval([entry["accuracy"] for entry in seeds])}
    if "means" in seeds[0]:
        point["labels"] = {name: _interval([entry["means"][name] for entry in seeds]) for name in seeds[0]["means"]}
    if "spread" in seeds[0]:
        point["spread"] = _interval([entry["spread"] for entry in seeds])
    return point


def text_report(report: Mapping[str, Any]) -> str:
    """Format the report as text: accuracy at the end, and differences to the baseline."""
    rows = []
    for arm in report["arms"].values():
        gap = arm.get("less_baseline")
        against = "" if gap is None else f"{_percent(gap, signed=True)} against {gap['baseline']}"
        rows.append((arm["title"], _percent(arm["points"][-1]["accuracy"]), against))
    epoch, seeds = report["setting"]["epochs"][-1], len(report["seeds"])
    table = tabulate(rows, tablefmt="plain", disable_numparse=True)
    return f"development accuracy in % after epoch {epoch}, {seeds} seeds\n{table}"


def _describe(run: Run) -> str:
    accuracy = 100 * run["points"][-1]["accuracy"]
    return f"{run['method']:<14}  seed {run['seed']:<3}  {accuracy:.2f} %  {run['seconds']:.1f} s"


def _contestants(*names: str) -> dict[str, Contestant]:
    return {name: CONTESTANTS[name] for name in names}


def _checked_epochs(at: Sequence[int], last: int) -> Sequence[int]:
    if not at or list(at) != sorted(set(at)) or at[0] < 1 or at[-1] > last:
        raise RunError(f"--at must be ascending epochs in [1, {last}], the length of the training (--epochs), got {at}")
    return at


def _interval(values: Sequence[float]) -> dict[str, Any]:
    mean, half_width = mean_interval(values)
    return {"mean": mean, "half_width": half_width if math.isfinite(half_width) else None, "per_seed": list(values)}


def _percent(interval: Mapping[str, Any], *, signed: bool = False) -> str:
    return format_shares(interval["mean"], interval["half_width"], signed=signed)


if __name__ == "__main__":
    main()
