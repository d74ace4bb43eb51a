"""The figures of LaMix's paper (Bypassing the Random Input Mixing in Mixup) on development images, one command each.

python experiments/studies/lamix/figures.py targets    # the five largest entries of soft targets beside mixed images
python experiments/studies/lamix/figures.py labels     # soft and global labels at several epochs
python experiments/studies/lamix/figures.py beta       # accuracy against β (eq. 10)
python experiments/studies/lamix/figures.py smoothing  # accuracy against label smoothing's factor, beside LaMix
python experiments/studies/lamix/figures.py curves     # accuracy over a long training
python experiments/studies/lamix/figures.py embedding  # held-out images at a bottleneck of 2 units

Each leaves figure.png, results.json and runs.jsonl, the trainings finished so far, in its folder. A seed draws training
images, weights, data order and mixing for everything that is compared. Trainings that have finished are not run again:
the same command goes on, and with more seeds it adds to what is there. The test set is never read.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import torch
import tyro
from torch import Tensor

from rlmix.classifier.data import evaluation_chunks, load_dataset, split
from rlmix.classifier.evaluation.embeddings import class_distances
from rlmix.classifier.evaluation.network import PixelNetwork, predict
from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing import MixPolicy, PolicySchedule, one_hot
from rlmix.classifier.mixing.average import average
from rlmix.classifier.mixing.blend import blend_targets
from rlmix.classifier.mixing.targets import global_label, lamix_target
from rlmix.classifier.training.trainer import EVALUATION_BATCH, Trainer
from rlmix.experiments.comparison.contestants import CONTESTANTS, Contestant, only_policy
from rlmix.experiments.comparison.intervals import mean_interval, paired_difference
from rlmix.experiments.comparison.runner import run_all
from rlmix.experiments.comparison.trainings import ComparisonConfig, Setting, open_log, resolve
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.studies.lamix import charts

TOP = 5  # entries of a soft target that are shown, as in the paper
BINS = 20  # of labels' histograms, from 0 to the highest value that there can be

Run = Mapping[str, Any]  # a line of runs.jsonl
Runs = Mapping[str, Sequence[Run]]  # of each way to train, in the same order of seeds


@dataclass(frozen=True, kw_only=True)
class FigureSetting(Setting):
    """What decides a training's result and what is looked at on the way.

    Attributes:
        figure: a key of `MEASURES`.
        epochs: passes over the training images after which the network is looked at, rising.
        looked_at: development images, or pairs of them, that are looked at beyond accuracy.
    """

    figure: str
    epochs: list[int]
    looked_at: int


@dataclass(frozen=True)
class FigureConfig:
    """What all figures have in common."""

    dataset: str = "fashion_mnist"
    """Data set by name, or package.module:function that returns a rlmix.classifier.data.Dataset."""
    data_root: str | None = None
    """Folder where the data set lies; none looks in the usual places, then downloads."""
    model: str = "search"
    """Network by name, or package.module:function for your own function(num_classes, in_channels)."""
    train_size: int = 1000
    """Training images, drawn by the seed; a multiple of the batch size."""
    epochs: int = 100
    """Length of each training, in passes over the training images."""
    batch_size: int = 100
    """Images per update."""
    processes: int = 2
    """Trainings at a time, one thread each."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network; auto takes bf16 where it is native and agrees with fp32."""
    seeds: int = 3
    """Trainings of each kind: seeds 0, 1, 2, ..."""
    out: str | None = None
    """Folder of what is written; none is runs/lamix/NAME-OF-THE-FIGURE."""


@dataclass(frozen=True)
class TargetsConfig(FigureConfig):
    """The five largest entries of soft targets (eq. 10), beside the mixed image and the two it is made of."""

    seeds: int = 1
    """Trainings; the first one's targets are drawn."""
    pairs: int = 5
    """Mixed images."""


@dataclass(frozen=True)
class LabelsConfig(FigureConfig):
    """How soft labels (eq. 10) and global labels (eq. 9) of mixed images are distributed over a training."""

    at: tuple[int, ...] = (1, 10, 30, 100)
    """Epochs after which the labels are looked at."""
    pairs: int = 1000
    """Mixed development images whose labels are counted."""


@dataclass(frozen=True)
class BetaConfig(FigureConfig):
    """LaMix's accuracy against β, the local label's weight (eq. 10); β = 1 has no global label."""

    betas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
    """Values of β, each in [0, 1]; differences are to the last one."""


@dataclass(frozen=True)
class SmoothingConfig(FigureConfig):
    """Label smoothing's accuracy against its factor, beside LaMix; differences are to plain training."""

    factors: tuple[float, ...] = (0.1, 0.2, 0.4, 0.6, 0.8)
    """Label smoothing's factors, each above 0 and at most 1; plain training, factor 0, is always there."""


@dataclass(frozen=True)
class CurvesConfig(FigureConfig):
    """Accuracy over a long training: does plain training, mixup, CutMix or LaMix overfit in the end?"""

    epochs: int = 400
    """Length of each training, in passes over the training images."""
    points: int = 20
    """How often accuracy is measured, in even steps."""


@dataclass(frozen=True)
class EmbeddingConfig(FigureConfig):
    """Development images by class in the plane of a network whose embedding has 2 units: plain, mixup and LaMix."""

    model: str = "search_bottleneck"
    """Network with an embedding of 2 units, by name, or package.module:function for your own."""
    at: tuple[int, ...] = (10, 30, 100)
    """Epochs after which the embeddings are looked at."""
    images: int = 1000
    """Development images whose embeddings are measured; half of them are drawn."""


Command = (
    Annotated[TargetsConfig, tyro.conf.subcommand("targets")]
    | Annotated[LabelsConfig, tyro.conf.subcommand("labels")]
    | Annotated[BetaConfig, tyro.conf.subcommand("beta")]
    | Annotated[SmoothingConfig, tyro.conf.subcommand("smoothing")]
    | Annotated[CurvesConfig, tyro.conf.subcommand("curves")]
    | Annotated[EmbeddingConfig, tyro.conf.subcommand("embedding")]
)


@dataclass(frozen=True)
class Plan:
    """What a figure trains and what it looks at.

    Attributes:
        figure: its name.
        arms: what is trained, by name.
        baseline: the arm that differences are to; none = there is nothing to compare.
        at: epochs after which the network is looked at, rising.
        looked_at: development images, or pairs of them, that are looked at beyond accuracy.
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
        config = call.parse(Command, __doc__)  # type: ignore[arg-type]
        plan = planned(config)
        setting = settled(config, plan)
        out = Path(config.out or f"runs/lamix/{plan.figure}")
        log, finished = open_log(out, setting, plan.arms, (), 0)
        # Seed by seed: whenever it is stopped, what is there is nearly paired.
        wanted = [(name, seed) for seed in range(config.seeds) for name in plan.arms]
        missing = [job for job in wanted if job not in finished]
        print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them finished before", flush=True)
        jobs = [
            functools.partial(train, name, only_policy(plan.arms[name]), seed, setting, config.data_root)
            for name, seed in missing
        ]
        for done, run in enumerate(run_all(jobs, config.processes), start=len(wanted) - len(missing) + 1):
            log.append(run)
            finished[run["method"], run["seed"]] = run
            print(
                f"{done:>4} of {len(wanted)}  {run['method']:<14}  seed {run['seed']:<3}  "
                f"{100 * run['points'][-1]['accuracy']:.2f} %  {run['seconds']:.1f} s",
                flush=True,
            )
        runs = {name: [finished[name, seed] for seed in range(config.seeds)] for name in plan.arms}
        report = {
            "kind": f"lamix_{plan.figure}",
            "command": call.line,
            "config": asdict(config),
            "setting": asdict(setting),
            "machine": machine(),
            "seeds": list(range(config.seeds)),
            "development_images": runs[next(iter(runs))][0]["development_images"],
            "arms": summary(plan, runs),
        }
        write_atomic(out / "results.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
        with matplotlib.rc_context({"savefig.facecolor": "white"}):
            charts.CHARTS[plan.figure](report, runs).savefig(out / "figure.png", dpi=100, pil_kwargs={"optimize": True})
    print(f"\n{text_report(report)}\nwritten: {out}/figure.png, results.json")


def planned(config: FigureConfig) -> Plan:
    """What the figure trains and looks at.

    Raises:
        RunError: an option is out of range.
        PolicyError: a β or a factor is.
    """
    match config:
        case TargetsConfig():
            return Plan("targets", _contestants("lamix"), None, [config.epochs], _at_least_one(config.pairs, "pairs"))
        case LabelsConfig():
            at = _checked_epochs(config.at, config.epochs)
            return Plan("labels", _contestants("lamix"), None, at, _at_least_one(config.pairs, "pairs"))
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
            return Plan("beta", arms, list(arms)[-1], [config.epochs])
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
            return Plan("smoothing", arms, "plain", [config.epochs])
        case CurvesConfig():
            if not 2 <= config.points <= config.epochs:
                raise RunError(f"--points must be in [2, {config.epochs}], one an epoch, got {config.points}")
            at = [round(config.epochs * point / config.points) for point in range(1, config.points + 1)]
            return Plan("curves", _contestants("plain", "mixup", "cutmix", "lamix"), "plain", at)
        case EmbeddingConfig():
            at = _checked_epochs(config.at, config.epochs)
            arms = _contestants("plain", "mixup", "lamix")
            return Plan("embedding", arms, "plain", at, _at_least_one(config.images, "images"))
    raise AssertionError(f"no plan for {type(config).__name__}")


def settled(config: FigureConfig, plan: Plan) -> FigureSetting:
    """The setting with nothing left to `auto`, tried out: data drawn, network built.

    Raises:
        RunError: an option is out of range.
        DataError: the data set cannot be had or is too small.
    """
    least = 1 if plan.baseline is None else 2  # an interval takes two values
    for name, low in (("seeds", least), ("processes", 1), ("epochs", 1), ("batch_size", 2)):
        if getattr(config, name) < low:
            raise RunError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(config, name)}")
    if config.train_size % config.batch_size:
        raise RunError(
            f"--train-size must be a multiple of --batch-size {config.batch_size}, so that an epoch is a whole number "
            f"of updates, got {config.train_size}"
        )
    setting, _ = resolve(
        ComparisonConfig(
            contestants=("plain",),
            baseline="plain",
            dataset=config.dataset,
            data_root=config.data_root,
            model=config.model,
            train_size=config.train_size,
            updates=config.epochs * config.train_size // config.batch_size,
            batch_size=config.batch_size,
            device=config.device,
            precision=config.precision,
        ),
        plan.arms.values(),
    )
    return FigureSetting(**asdict(setting), figure=plan.figure, epochs=list(plan.at), looked_at=plan.looked_at)


def train(name: str, policy: MixPolicy, seed: int, setting: FigureSetting, data_root: str | None) -> dict[str, Any]:
    """One training from start to end, looked at on the way.

    Args:
        name: of the arm.
        policy: that it trains under.
        seed: of the training images, and of weights, data order and mixing.
        setting: of every training.
        data_root: folder where the data set lies; none = looked for.

    Returns:
        The line of the log; `points` holds accuracy on all development images in [0, 1] (at chance once the training
        has diverged), and whatever else the figure shows, after each of the setting's epochs; `seconds` are those of
        the updates alone.

    Raises:
        RunError: a training that more than accuracy is to be seen of has diverged.
    """
    data = split(load_dataset(setting.dataset, data_root)).draw(setting.train_size, data_seed=seed)
    trainer = Trainer(setting.training("recycled"), data, seed=seed)
    measure = MEASURES.get(setting.figure)
    points: list[dict[str, Any]] = []
    seconds, diverged = 0.0, False
    for epoch in setting.epochs:
        until = epoch * setting.train_size // setting.batch_size
        stats = trainer.train(policy, until - trainer.updates_done, probe=False)
        seconds, diverged = seconds + stats.seconds, diverged or stats.diverged
        if diverged and measure is not None:
            raise RunError(
                f"{name}, seed {seed}: the training diverged (a loss is not finite) before epoch {epoch}, so there is "
                "nothing to draw; choose another network or more training images"
            )
        points.append(
            {
                "epoch": epoch,
                "accuracy": 1 / trainer.num_classes if diverged else trainer.evaluate("development").accuracy,
                **({} if measure is None else measure(trainer, policy, setting.looked_at)),
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
        "setting": asdict(setting),
    }


@dataclass(frozen=True, eq=False)
class MixedPairs:
    """Pairs of development images of two different classes, mixed as LaMix mixes, and their labels.

    Attributes:
        pixels: `[3, N, C, H, W]` in [0, 255]: the first images, the mixed ones, the second images.
        classes: `[2, N]`, the true classes of first and second images.
        lam: `[N]` in [0, 1], weight of the first image's label.
        global_label: `[N, K]`, `p` (eq. 9).
        soft_label: `[N, K]`, `beta y_lam + (1 - beta) p` (eq. 10).
    """

    pixels: Tensor
    classes: Tensor
    lam: Tensor
    global_label: Tensor
    soft_label: Tensor


def mixed_pairs(trainer: Trainer, policy: MixPolicy, count: int) -> MixedPairs:
    """Mix neighbours among the first development images, and ask the network, in evaluation mode, for their labels.

    Args:
        trainer: whose network has the second head.
        policy: for λ's distribution, here a draw for every pair, and β.
        count: of pairs; fewer where there are not so many.
    """
    images, labels = _development(trainer, 3 * count)  # in about 9 of 10 pairs of 10 classes the classes differ
    images, labels = (tensor[: len(labels) // 2 * 2].unflatten(0, (-1, 2)) for tensor in (images, labels))
    chosen = (labels[:, 0] != labels[:, 1]).nonzero()[:count, 0]
    first, second = images[chosen].float().unbind(1)
    classes = labels[chosen].T
    both, pairs = torch.cat((first, second)), len(chosen)
    partner = torch.arange(2 * pairs, device=both.device).roll(pairs)
    generator = torch.Generator().manual_seed(trainer.seed)
    draws = torch.rand(pairs, generator=generator, dtype=torch.float64).tolist()
    lam = torch.tensor([policy.lam.quantile(draw) for draw in draws], device=both.device)
    targets = one_hot(classes.flatten(), trainer.num_classes)
    local = blend_targets(targets, partner, lam.repeat(2)[:, None])[:pairs]
    mixed = average(both, targets, partner=partner, lam=0.5)[0][:pairs]
    chunks = zip(mixed.split(EVALUATION_BATCH), classes[0].split(EVALUATION_BATCH), strict=True)
    global_logits = predict(_network(trainer), chunks).logits.chunk(2, dim=1)[1]
    return MixedPairs(
        torch.stack((first, mixed, second)),
        classes,
        lam,
        global_label(global_logits),
        lamix_target(local, global_logits, policy.label_beta),
    )


def measure_targets(trainer: Trainer, policy: MixPolicy, count: int) -> dict[str, Any]:
    """The largest entries of soft targets, and what they are targets of."""
    pairs = mixed_pairs(trainer, policy, count)
    names = trainer.data.class_names
    top = pairs.soft_label.topk(min(TOP, trainer.num_classes), dim=1)
    return {
        "pairs": [
            {
                "pixels": pairs.pixels[:, number].round().byte().tolist(),
                "classes": [names[index] for index in pairs.classes[:, number].tolist()],
                "lam": float(pairs.lam[number]),
                "top": [
                    [names[index], weight]
                    for weight, index in zip(top.values[number].tolist(), top.indices[number].tolist(), strict=True)
                ],
            }
            for number in range(len(pairs.lam))
        ]
    }


def measure_labels(trainer: Trainer, policy: MixPolicy, count: int) -> dict[str, Any]:
    """Histograms and means of soft and global labels at the two true classes, and at all others."""
    pairs = mixed_pairs(trainer, policy, count)
    true = one_hot(pairs.classes.flatten(), trainer.num_classes).unflatten(0, (2, -1)).sum(dim=0).bool()
    highest = math.e / (math.e + trainer.num_classes - 1)  # of a class in the global label
    found: dict[str, Any] = {"histograms": {}, "means": {}}
    for kind, label, end in (("soft", pairs.soft_label, 1), ("global", pairs.global_label, highest)):
        for place, values in (("true", label[true]), ("other", label[~true])):
            # On the host: histc on a GPU is not deterministic.
            found["histograms"][f"{kind}_{place}"] = values.cpu().clamp(max=end).histc(BINS, 0, end).long().tolist()
            found["means"][f"{kind}_{place}"] = float(values.mean())
    return found


def measure_embedding(trainer: Trainer, policy: MixPolicy, count: int) -> dict[str, Any]:
    """Where development images lie in the plane, and how tight their classes lie."""
    images, labels = _development(trainer, count)
    chunks = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    embeddings = predict(_network(trainer), chunks).embeddings
    if embeddings.shape[1] != 2:
        raise RunError(
            f"--model must have an embedding of 2 units, as search_bottleneck has, got {embeddings.shape[1]}"
        )
    drawn = len(labels) // 2
    return {
        "embeddings": [[round(value, 3) for value in row] for row in embeddings[:drawn].tolist()],
        "labels": labels[:drawn].tolist(),
        "spread": class_distances(embeddings, labels).ratio,
    }


MEASURES: dict[str, Callable[[Trainer, MixPolicy, int], dict[str, Any]]] = {
    "targets": measure_targets,
    "labels": measure_labels,
    "embedding": measure_embedding,
}


def summary(plan: Plan, runs: Runs) -> dict[str, Any]:
    """Of every arm: means over seeds with 95 % intervals after each epoch looked at, and the difference at the end.

    Args:
        plan: of the figure.
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
    """What every seed has measured after one epoch, as means with intervals; pictures are those of runs.jsonl."""
    point = {"epoch": seeds[0]["epoch"], "accuracy": _interval([entry["accuracy"] for entry in seeds])}
    if "means" in seeds[0]:
        point["labels"] = {name: _interval([entry["means"][name] for entry in seeds]) for name in seeds[0]["means"]}
    if "spread" in seeds[0]:
        point["spread"] = _interval([entry["spread"] for entry in seeds])
    return point


def text_report(report: Mapping[str, Any]) -> str:
    """The report for a reader: accuracy at the end, and differences to the baseline."""
    lines = [f"development accuracy in % after epoch {report['setting']['epochs'][-1]}, {len(report['seeds'])} seeds"]
    for arm in report["arms"].values():
        gap = arm.get("less_baseline")
        against = (
            ""
            if gap is None
            else f"  {100 * gap['mean']:+.2f} ± {100 * gap['half_width']:.2f} against {gap['baseline']}"
        )
        lines.append(f"  {arm['title']:<24} {_percent(arm['points'][-1]['accuracy'])}{against}")
    return "\n".join(lines)


def _contestants(*names: str) -> dict[str, Contestant]:
    return {name: CONTESTANTS[name] for name in names}


def _at_least_one(value: int, option: str) -> int:
    if value < 1:
        raise RunError(f"--{option} must be at least 1, got {value}")
    return value


def _checked_epochs(at: Sequence[int], last: int) -> Sequence[int]:
    if not at or list(at) != sorted(set(at)) or at[0] < 1 or at[-1] > last:
        raise RunError(f"--at must be rising epochs in [1, {last}], the end of the training (--epochs), got {at}")
    return at


def _development(trainer: Trainer, count: int) -> tuple[Tensor, Tensor]:
    """The first development images, at most `count`, uint8 on the device, and their labels."""
    part = trainer.data.development
    chunks = evaluation_chunks(
        part,
        count=min(count, len(part)),
        batch_size=EVALUATION_BATCH,
        device=trainer.device,
        workers=trainer.config.readers,
    )
    images, labels = zip(*chunks, strict=True)
    return torch.cat(images), torch.cat(labels)


def _network(trainer: Trainer) -> PixelNetwork:
    """The network of this moment, second head and all; a copy, since the training goes on."""
    data = trainer.data
    network = PixelNetwork(copy.deepcopy(trainer.model), last_layer=trainer.head_layer, mean=data.mean, std=data.std)
    return network.to(trainer.device)


def _interval(values: Sequence[float]) -> dict[str, Any]:
    mean, half_width = mean_interval(values)
    return {"mean": mean, "half_width": half_width if math.isfinite(half_width) else None, "per_seed": list(values)}


def _percent(interval: Mapping[str, Any]) -> str:
    half_width = interval["half_width"]
    return f"{100 * interval['mean']:.2f}" + ("" if half_width is None else f" ± {100 * half_width:.2f}")


if __name__ == "__main__":
    main()
