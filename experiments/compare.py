"""Compare ways to train over paired seeds: mean accuracy with intervals, and the difference to a baseline.

python experiments/compare.py --updates 10000 --seeds 5 --out experiments/results/methods
python experiments/compare.py --contestants rmix rmix-exact --baseline rmix-exact --updates 1000 --out runs/saliency

All contestants (`experiments/contestants.py`) train the same network for the same number of updates. A seed draws
training images, weights, data order and mixing draws for all of them, and a difference is the mean of the paired
differences. Accuracy is that of the development images, which neither training nor a search has seen. Trainings that
have finished are not run again: the same command goes on, and with more seeds or contestants it adds to what is there.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from stable_baselines3.common.logger import Logger

from agent.rl_mix import ThresholdPPO, last_quarter, play, random_thresholds
from classifier.data import Splits, load_dataset, split
from classifier.files import write_atomic
from classifier.hardware import resolve_device, resolve_precision
from classifier.trainer import TrainConfig, Trainer
from envs import RLMixEnv
from experiments.contestants import CONTESTANTS, PerBatch
from experiments.intervals import holm, mean_interval, paired_difference, paired_p_value
from experiments.pages import NAME, write_comparison_report
from experiments.run_folder import LineLog, RunError, interrupt_on_sigterm, machine, user_errors

COMMAND = "python experiments/compare.py"


@dataclass(frozen=True)
class ComparisonConfig:
    """Compare ways to train over paired seeds."""

    contestants: tuple[str, ...] = tuple(CONTESTANTS)
    """Ways to train, by their names in experiments/contestants.py; all of them by default."""
    baseline: str = "plain"
    """The contestant that the others are compared with."""

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
    processes: int = 2
    """Trainings at a time, one thread each."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network; auto takes bf16 where it is native and agrees with fp32."""
    out: str = "runs/comparison"
    """Folder of results.json, results.md and runs.jsonl, the trainings finished so far."""


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
        names = [name for name in CONTESTANTS if name in config.contestants]
        # Seed by seed: whenever it is stopped, what is there is nearly paired.
        wanted = [(name, seed) for seed in range(config.seeds) for name in names]
        missing = [job for job in wanted if job not in finished]
        print(f"{len(wanted)} trainings, {len(wanted) - len(missing)} of them finished before", flush=True)
        for done, run in enumerate(run_all(missing, setting, config), start=len(wanted) - len(missing) + 1):
            log.append(run)
            finished[run["method"], run["seed"]] = run
            print(
                f"{done:>4} of {len(wanted)}  {run['method']:<16}  seed {run['seed']:<3}  "
                f"{100 * run['accuracy']:.2f} %  {run['seconds']:.1f} s",
                flush=True,
            )
        runs = {name: [finished[name, seed] for seed in range(config.seeds)] for name in names}
        report = {
            "kind": "comparison",
            "command": command,
            "config": asdict(config),
            "setting": asdict(setting),
            "machine": machine(),
            "seeds": list(range(config.seeds)),
            **compare(runs, config.baseline),
        }
        write_atomic(out / "results.json", (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
        text = markdown(report)
        write_atomic(out / "results.md", text.encode())
        write_comparison_report(out, report)
    print(f"\n{text}\nwritten: {out}/results.json, results.md, {NAME}")


def resolve(config: ComparisonConfig) -> Setting:
    """The setting with nothing left to `auto`, tried out: data drawn, network built.

    Raises:
        RunError: an option is out of range.
        DataError: the data set cannot be had or is too small.
    """
    for name, least in (("seeds", 2), ("processes", 1)):
        if getattr(config, name) < least:
            raise RunError(f"--{name} must be at least {least}, got {getattr(config, name)}")
    for name in (*config.contestants, config.baseline):
        if name not in CONTESTANTS:
            raise RunError(f"--contestants must be among {', '.join(CONTESTANTS)}, got {name!r}")
    if config.baseline not in config.contestants:
        raise RunError(
            f"--baseline must be one of the contestants {' '.join(config.contestants)}, got {config.baseline}"
        )
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
        seconds of the updates alone, a per-batch agent's own included; of such an agent also what it did.
    """
    contestant = CONTESTANTS[name]
    data = _splits(setting.dataset, data_root).draw(setting.train_size, data_seed=seed)
    training = setting.training(contestant.saliency)
    if contestant.per_batch is None:
        trainer = Trainer(training, data, seed=seed)
        stats = trainer.train(contestant.policy, setting.updates, probe=False)
        ended: dict[str, Any] = {"diverged": stats.diverged, "seconds": stats.seconds}
    else:
        trainer, ended = train_per_batch(contestant.per_batch, training, data, seed)
    accuracy = 1 / trainer.num_classes if ended["diverged"] else trainer.evaluate("development").accuracy
    return {
        "method": name,
        "seed": seed,
        "accuracy": accuracy,
        "development_images": len(data.development),
        **ended,
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
        agent = ThresholdPPO(chooser.agent, env, seed=seed, updates=training.updates, logger=Logger(None, []))
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


def compare(runs: Mapping[str, Sequence[Mapping[str, Any]]], baseline: str) -> dict[str, Any]:
    """Means with 95 % intervals, and paired differences to a baseline with Holm-corrected p-values.

    Args:
        runs: lines of the log by contestant, in the same order of seeds.
        baseline: one of the contestants.
    """
    accuracies = {name: [run["accuracy"] for run in lines] for name, lines in runs.items()}
    others = [name for name in runs if name != baseline]
    p_values = holm([paired_p_value(accuracies[name], accuracies[baseline]) for name in others])
    return {
        "baseline": baseline,
        "methods": {
            name: {
                "title": CONTESTANTS[name].title,
                "policy": CONTESTANTS[name].policy.to_json(),
                "saliency": CONTESTANTS[name].saliency,
                "accuracy": _interval(accuracies[name]),
                "seconds": _interval([run["seconds"] for run in lines]),
                "diverged": sum(run["diverged"] for run in lines),
                **_per_batch(name, lines),
            }
            for name, lines in runs.items()
        },
        "development_images": runs[baseline][0]["development_images"],
        "processors": Counter(run["processor"] for lines in runs.values() for run in lines),
        "less_baseline": {
            name: {
                **dict(
                    zip(("mean", "half_width"), paired_difference(accuracies[name], accuracies[baseline]), strict=True)
                ),
                "p_value": p_value,
            }
            for name, p_value in zip(others, p_values, strict=True)
        },
    }


def markdown(report: Mapping[str, Any]) -> str:
    """The report for a reader: contestants from the best to the worst."""
    setting, host, baseline = report["setting"], report["machine"], report["methods"][report["baseline"]]["title"]
    processors = " and ".join(
        f"{name} ({count} training{'s' if count > 1 else ''})" for name, count in report["processors"].items()
    )
    comparisons = len(report["less_baseline"])
    corrected = f", corrected for {comparisons} comparisons (Holm)" if comparisons > 1 else ""
    rows = []
    for name, row in sorted(report["methods"].items(), key=lambda entry: -entry[1]["accuracy"]["mean"]):
        gap = report["less_baseline"].get(name)
        against = "" if gap is None else f"{100 * gap['mean']:+.2f} ± {100 * gap['half_width']:.2f}"
        p_value = "" if gap is None else f"{gap['p_value']:.3f}" if gap["p_value"] >= 0.001 else "< 0.001"
        rows.append(
            f"| {row['title']} | {_percent(row['accuracy'])} | {against} | {p_value} | "
            f"{row['seconds']['mean']:.0f} | {row['diverged']} |"
        )
    lines = [
        f"# {setting['dataset']}: {setting['train_size']:,} training images, {setting['updates']:,} updates",
        "",
        f"Network {setting['model']}, batches of {setting['batch_size']}, {setting['precision']} on "
        f"{setting['device']}, {len(report['seeds'])} seeds (0 to {report['seeds'][-1]}); a seed draws training "
        "images, weights, order and mixing for every row. Accuracy on "
        f"{report['development_images']:,} development images in %; means with 95 % Student t intervals over seeds. "
        f"Differences to *{baseline}* are paired by seed, p-values are those of paired t tests{corrected}. Methods mix "
        "half of the updates unless it says otherwise.",
        "",
        f"| | Accuracy | Less {baseline} | p | Seconds | Diverged |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Made by `{report['command']}` on {processors}, {host['cores']} cores"
        f"{', ' + host['gpu'] if host['gpu'] else ''}, torch {host['torch']}. Trainings shared the machine "
        f"({report['config']['processes']} at a time, one thread each) with other work: seconds are for orientation, "
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


def _per_batch(name: str, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is known of a per-batch chooser beyond what is known of all; nothing of others."""
    chooser = CONTESTANTS[name].per_batch
    if chooser is None:
        return {}
    return {"per_batch": asdict(chooser), "reward": _interval([run["last_quarter"]["reward"] for run in lines])}


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
