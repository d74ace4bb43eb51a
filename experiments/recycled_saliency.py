"""Compare R-Mix with recycled saliency to R-Mix with exact saliency: what does the cheap saliency cost in accuracy?

python experiments/recycled_saliency.py
python experiments/recycled_saliency.py --context --seeds 20

Both train the same network for the same number of updates, half of them mixed. Recycled saliency mixes the very batch
that the clean update before it has seen, exact saliency a fresh one with a pass of its own: recycled training also
passes over its images half as often, and what is compared is the two as they are used, that included. A seed draws
training images, weights, data order and mixing draws for both, and what is reported is the mean of the paired
differences. Accuracy is that of the development images, which neither training nor a search has seen. Trainings that
have finished are not run again: the same command goes on, and with more --seeds it adds to what is there.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from classifier.data import Splits, load_dataset, split
from classifier.files import write_atomic
from classifier.hardware import resolve_device, resolve_precision
from classifier.mixing import MixPolicy
from classifier.trainer import TrainConfig, Trainer
from experiments.intervals import mean_interval, paired_difference
from experiments.run_folder import LineLog, RunError, interrupt_on_sigterm, machine, user_errors

COMMAND = "python experiments/recycled_saliency.py"
RMIX = MixPolicy({"clean": 0.5, "rmix": 0.5})


@dataclass(frozen=True)
class ComparisonConfig:
    """Compare the accuracy of R-Mix with recycled and with exact saliency, over paired seeds."""

    dataset: str = "fashion_mnist"
    """Data set by name, or package.module:function that returns a classifier.data.Dataset."""
    data_root: str | None = None
    """Folder where the data set lies; none looks in the usual places, then downloads."""
    model: str = "search"
    """Network by name, or package.module:function for your own function(num_classes, in_channels)."""
    train_size: int = 1000
    """Training images, drawn by the seed."""
    updates: int = 1000
    """Length of each training."""
    batch_size: int = 100
    """Images per update."""
    seeds: int = 10
    """Trainings of each contestant, at least 2: seeds 0, 1, 2, ..."""
    context: bool = False
    """Train CutMix on half the updates and no mixing at all too, to compare the difference with."""
    processes: int = 2
    """Trainings at a time, one thread each."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network; auto takes bf16 where it is native and agrees with fp32."""
    out: str = "experiments/results/recycled_saliency"
    """Folder of results.json, results.md and runs.jsonl, the trainings finished so far."""


@dataclass(frozen=True)
class Contestant:
    """What is trained under.

    Attributes:
        title: name in the table.
        policy: how it mixes.
        saliency: where R-Mix's saliency comes from, `recycled` or `exact`.
    """

    title: str
    policy: MixPolicy
    saliency: str = "recycled"


RECYCLED, EXACT = "rmix-recycled", "rmix-exact"
CONTESTANTS = {
    RECYCLED: Contestant("R-Mix, recycled saliency", RMIX),
    EXACT: Contestant("R-Mix, exact saliency", RMIX, "exact"),
    "cutmix": Contestant("CutMix on half", MixPolicy({"clean": 0.5, "cutmix": 0.5})),
    "plain": Contestant("no mixing", MixPolicy({"clean": 1.0})),
}


@dataclass(frozen=True)
class Setting:
    """What decides a training's result besides contestant and seed; nothing is left to `auto`."""

    dataset: str
    model: str
    train_size: int
    updates: int
    batch_size: int
    device: str
    precision: str
    torch: str

    def training(self, saliency: str) -> TrainConfig:
        """The Trainer's setting."""
        return TrainConfig(
            model=self.model,
            updates=self.updates,
            batch_size=self.batch_size,
            saliency=saliency,
            device=self.device,
            precision=self.precision,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    interrupt_on_sigterm()
    command = shlex.join([*COMMAND.split(), *arguments])
    with user_errors(command):
        config = tyro.cli(ComparisonConfig, args=arguments, description=__doc__)
        setting = resolve(config)
        out = Path(config.out)
        log, finished = open_log(out, setting)
        names = list(CONTESTANTS) if config.context else [RECYCLED, EXACT]
        # Seed by seed: whenever it is stopped, what is there is nearly paired.
        wanted = [(name, seed) for seed in range(config.seeds) for name in names]
        missing = [job for job in wanted if job not in finished]
        print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them finished before", flush=True)
        for done, run in enumerate(run_all(missing, setting, config), start=len(wanted) - len(missing) + 1):
            log.append(run)
            finished[run["method"], run["seed"]] = run
            print(
                f"{done:>4} of {len(wanted)}  {run['method']:<13}  seed {run['seed']:<3}  "
                f"{100 * run['accuracy']:.2f} %  {run['seconds']:.1f} s",
                flush=True,
            )
        runs = {name: [finished[name, seed] for seed in range(config.seeds)] for name in names}
        report = {
            "kind": "recycled_saliency",
            "command": command,
            "config": asdict(config),
            "setting": asdict(setting),
            "machine": machine(),
            "seeds": list(range(config.seeds)),
            **compare(runs),
        }
        write_atomic(out / "results.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
        text = markdown(report)
        write_atomic(out / "results.md", text.encode())
    print(f"\n{text}\nwritten: {out}/results.json, results.md")


def resolve(config: ComparisonConfig) -> Setting:
    """The setting with nothing left to `auto`, tried out: data drawn, network built.

    Raises:
        RunError: an option is out of range.
        DataError: the data set cannot be had or is too small.
    """
    for name, least in (("seeds", 2), ("processes", 1)):
        if getattr(config, name) < least:
            raise RunError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    data = _splits(config.dataset, config.data_root).draw(config.train_size, data_seed=0)
    if not len(data.development):
        raise RunError(f"--dataset {config.dataset}: expected development images, got none; choose a larger data set")
    try:
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
        )
        Trainer(setting.training("exact"), data)
    except ValueError as error:
        raise RunError(str(error)) from error
    return setting


def open_log(out: Path, setting: Setting) -> tuple[LineLog, dict[tuple[str, int], dict[str, Any]]]:
    """The log of finished trainings in a folder, and these trainings by contestant and seed.

    Raises:
        RunError: the folder cannot be written, or holds trainings of another setting.
    """
    log = LineLog(out / "runs.jsonl")
    try:
        out.mkdir(parents=True, exist_ok=True)
        runs = log.read()
        for run in runs:
            if run.get("setting") != asdict(setting):
                difference = _first_difference(run.get("setting"), setting)
                raise RunError(
                    f"--out {out}: holds trainings of another setting ({difference}); "
                    "choose another folder, or delete its runs.jsonl"
                )
        log.keep(len(runs))  # a line that an interruption tore would spoil the next one
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written ({error.strerror}); choose another folder") from None
    return log, {(run["method"], run["seed"]): run for run in runs}


def run_all(jobs: Sequence[tuple[str, int]], setting: Setting, config: ComparisonConfig) -> Iterator[dict[str, Any]]:
    """Run trainings in processes of their own, each result as soon as it is there.

    Args:
        jobs: pairs of contestant and seed.
        setting: of every training.
        config: for the number of processes and the data's folder.

    Raises:
        RunError: a process died.
    """
    if not jobs:
        return
    executor = ProcessPoolExecutor(
        min(config.processes, len(jobs)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        futures = [executor.submit(train, name, seed, setting, config.data_root) for name, seed in jobs]
        for future in as_completed(futures):
            yield future.result()
        executor.shutdown()
    except BaseException as error:
        # Not waiting for trainings that nobody will read: they are run again next time.
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(error, BrokenProcessPool):
            raise RunError(
                "a training's process died, perhaps for want of memory; the same command goes on, "
                "with --processes 1 it needs less"
            ) from None
        raise


def train(name: str, seed: int, setting: Setting, data_root: str | None) -> dict[str, Any]:
    """One training from start to end.

    Args:
        name: a key of `CONTESTANTS`.
        seed: of the training images, and of weights, data order and mixing.
        setting: of every training.
        data_root: folder where the data set lies; none = looked for.

    Returns:
        The line of the log: accuracy on all development images in [0, 1], at chance after a diverged training, and
        seconds of the updates alone.
    """
    contestant = CONTESTANTS[name]
    data = _splits(setting.dataset, data_root).draw(setting.train_size, data_seed=seed)
    trainer = Trainer(setting.training(contestant.saliency), data, seed=seed)
    stats = trainer.train(contestant.policy, setting.updates, probe=False)
    accuracy = 1 / trainer.num_classes if stats.diverged else trainer.evaluate("development").accuracy
    return {
        "method": name,
        "seed": seed,
        "accuracy": accuracy,
        "development_images": len(data.development),
        "diverged": stats.diverged,
        "seconds": stats.seconds,
        "setting": asdict(setting),
    }


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Means with 95 % intervals, and the paired difference recycled less exact.

    Args:
        runs: lines of the log by contestant, in the same order of seeds.
    """
    accuracies = {name: [run["accuracy"] for run in lines] for name, lines in runs.items()}
    difference, half_width = paired_difference(accuracies[RECYCLED], accuracies[EXACT])
    return {
        "methods": {
            name: {
                "policy": CONTESTANTS[name].policy.to_json(),
                "saliency": CONTESTANTS[name].saliency,
                "accuracy": _interval(accuracies[name]),
                "seconds": _interval([run["seconds"] for run in lines]),
                "diverged": sum(run["diverged"] for run in lines),
            }
            for name, lines in runs.items()
        },
        "development_images": runs[RECYCLED][0]["development_images"],
        "recycled_less_exact": {
            "mean": difference,
            "half_width": half_width,
            "per_seed": [ours - theirs for ours, theirs in zip(accuracies[RECYCLED], accuracies[EXACT], strict=True)],
        },
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report for a reader."""
    setting, host, gap = report["setting"], report["machine"], report["recycled_less_exact"]
    rows = [
        f"| {CONTESTANTS[name].title} | {_percent(row['accuracy'])} | "
        f"{row['seconds']['mean']:.1f} ± {row['seconds']['half_width']:.1f} | {row['diverged']} |"
        for name, row in report["methods"].items()
    ]
    low, high = (100 * (gap["mean"] + sign * gap["half_width"]) for sign in (-1, 1))
    lines = [
        "# R-Mix: recycled against exact saliency",
        "",
        f"{setting['dataset']}, {setting['train_size']:,} training images, {setting['updates']:,} updates of "
        f"{setting['batch_size']}, network {setting['model']}, {setting['precision']} on {setting['device']}, "
        f"{len(report['seeds'])} seeds (0 to {report['seeds'][-1]}). Accuracy on {report['development_images']:,} "
        "development images; means with 95 % Student t intervals over seeds.",
        "",
        "| Contestant | Accuracy, % | Seconds per training | Diverged |",
        "|---|---|---|---|",
        *rows,
        "",
        f"Recycled less exact, paired by seed: **{100 * gap['mean']:+.2f} ± {100 * gap['half_width']:.2f} points** "
        f"(95 % interval {low:+.2f} to {high:+.2f}).",
        "",
        f"Made by `{report['command']}` on {host['processor']}, {host['cores']} cores"
        f"{', ' + host['gpu'] if host['gpu'] else ''}, torch {host['torch']}. Trainings shared the machine "
        f"({report['config']['processes']} at a time, one thread each): seconds are for orientation, "
        "`benchmark_speed.py` measures speed.",
        "",
    ]
    return "\n".join(lines)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


@functools.cache
def _splits(dataset: str, root: str | None) -> Splits:
    return split(load_dataset(dataset, root))


def _interval(values: Sequence[float]) -> dict[str, Any]:
    mean, half_width = mean_interval(values)
    assert math.isfinite(half_width), "an interval takes two values"
    return {"mean": mean, "half_width": half_width, "per_seed": list(values)}


def _percent(interval: Mapping[str, Any]) -> str:
    return f"{100 * interval['mean']:.2f} ± {100 * interval['half_width']:.2f}"


def _first_difference(there: Any, setting: Setting) -> str:
    if not isinstance(there, dict):
        return "without a setting"
    asked = asdict(setting)
    name = next(name for name in [*asked, *there] if asked.get(name) != there.get(name))
    return f"{name} {there.get(name)!r:.80}, not {asked.get(name)!r}"


if __name__ == "__main__":
    main()
