"""Measure how many training images per second each mixing method takes in, and what the environment adds to that.

python experiments/benchmarks/training_speed.py
python experiments/benchmarks/training_speed.py --model search --threads 2 --rounds 15
python experiments/benchmarks/training_speed.py --model search --profile rmix

Every contestant runs a short stretch in every round, in rotated order, and a ratio is the median of the rounds' own
ratios: what else a shared machine does then meets both sides of it alike. All of them are measured in one process, on
the same images, with random crops and flips, from new weights in every stretch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from rlmix.classifier.data import Dataset, Splits, load_dataset, resized, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision, why_not_compile
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.models import build_model
from rlmix.classifier.training.batches import BLOCK
from rlmix.classifier.training.config import Precision, TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import MixPolicyEnv, TaskDistribution
from rlmix.experiments.benchmarks.timing import (
    clocked,
    prepare_output,
    ratios,
    rotated,
    say,
    set_threads_for,
    spread,
    summary,
)
from rlmix.experiments.comparison.contestants import CONTESTANTS, Saliency, only_policy
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine

UPDATES = 10**6  # of the learning-rate schedule; no stretch gets far into it
WARM_UP = 2  # updates before the clock starts: the first draws, the optimiser's state
PROFILED = 10  # updates
TASKS = 2  # of the episodes, so that a reset has other images to draw, as in a search


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure training images per second under each mixing method, and the environment's own share of the time."""

    dataset: str = "fashion_mnist"
    """Data set by name, or package.module:function that returns a rlmix.classifier.data.Dataset."""
    data_root: str | None = None
    """Folder where the data set lies; none looks in the usual places, then downloads."""
    model: tuple[str, ...] = ("search", "preact_resnet18")
    """Networks by name."""
    image_size: int = 32
    """Side that images are resized to, for every network but search; 0 leaves them."""
    contestants: tuple[str, ...] = ()
    """Ways to train, e.g. plain rmix rmix-exact; none measures all. The two that ratios refer to are always there."""
    batch_size: int = 100
    """Images per update."""
    threads: int | None = None
    """Threads on a CPU; none is what a search's worker has, 1, for the network search, and 2 for others."""
    seconds: float = 5.0
    """Length of one contestant's stretch in one round."""
    rounds: int = 9
    """Stretches of each contestant, and episodes of the environment."""
    compile: bool = True
    """Whether the compiled fast path is measured too; compiling takes a minute or more for each network."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    episode_train_size: int = 500
    """Training images of an episode, no more than there are; this and the next two as train_agent.py has them."""
    episode_updates: int = 250
    """Length of an episode's training."""
    validation_size: int = 3000
    """Validation images, no more than a fifth of the pool; the first 1000 are used before an episode's end."""
    profile: str | None = None
    """Contestant to print torch.profiler's table of, instead of measuring, e.g. plain or rmix."""
    out: str = "experiments/results/benchmark_speed.json"
    """The report, JSON."""


@dataclass(frozen=True)
class Variant:
    """A contestant as its speed is measured: with a number format, compiled or not.

    Attributes:
        contestant: how it mixes; a key of `CONTESTANTS` (`rl_mix_cost.py` measures RL-Mix).
        precision: `auto` (bf16 where it is native) or `fp32`.
        compile: whether the step is compiled.
    """

    contestant: str
    precision: Precision = "auto"
    compile: bool = False

    @property
    def policy(self) -> MixPolicy:
        """How it mixes."""
        return only_policy(CONTESTANTS[self.contestant])

    @property
    def saliency(self) -> Saliency:
        """`recycled` or `exact`, as in `TrainConfig`."""
        return CONTESTANTS[self.contestant].saliency


PLAIN, SLOW = "plain", "rmix-exact-fp32"
FAST = ("rmix", "rmix-compiled")  # the faster one is the fast path
# The Trainer keeps images and weights in channels-last memory for all of them, the slow path included.
VARIANTS = {
    **{name: Variant(name) for name, entry in CONTESTANTS.items() if entry.thresholds is None},
    "rmix-compiled": Variant("rmix", compile=True),
    SLOW: Variant("rmix-exact", precision="fp32"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/training_speed", arguments) as call:
        config = call.parse(BenchmarkConfig, __doc__)
        check(config)
        dataset = load_dataset(config.dataset, config.data_root)
        data = split(dataset, validation_size=_validation_size(config, dataset))
        check_models(config, data)
        if config.profile is not None:
            for model in config.model:
                print_profile(config, model, data)
            return
        out = Path(config.out)
        prepare_output(out)
        report = {
            "kind": "benchmark_speed",
            "command": call.line,
            "config": asdict(config),
            "machine": machine(),
            "device": str(resolve_device(config.device)),
            "models": [measure_model(config, model, data) for model in config.model],
            "episode": measure_episodes(config, data) if "search" in config.model else None,
            "load_average_after": os.getloadavg(),
        }
        write_atomic(out, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    print(f"\n{text_report(report)}\nwritten: {out}")


def check(config: BenchmarkConfig) -> None:
    """Refuse what cannot be measured.

    Raises:
        RunError: naming the option.
    """
    for name, value in (("rounds", config.rounds), ("threads", config.threads), ("batch-size", config.batch_size)):
        least = 2 if name == "batch-size" else 1
        if value is not None and value < least:
            raise RunError(f"--{name} must be at least {least}, got {value}")
    if not 0 < config.seconds < float("inf"):
        raise RunError(f"--seconds must be a finite number above 0, got {config.seconds:g}")
    if not config.model:
        raise RunError("--model must name at least one network, got none")
    for name in config.contestants:
        if name not in VARIANTS:
            raise RunError(f"--contestants must be among {', '.join(VARIANTS)}, got {name!r}")
    if config.profile is not None and config.profile not in VARIANTS:
        raise RunError(f"--profile must be one of {', '.join(VARIANTS)}, got {config.profile!r}")
    device = resolve_device(config.device)
    reason = why_not_compile(device)
    asked = config.profile is None or VARIANTS[config.profile].compile
    if config.compile and asked and reason is not None:
        raise RunError(f"{reason}; install it, or leave the compiled contestant out with --no-compile")


def check_models(config: BenchmarkConfig, data: Splits) -> None:
    """Build every network once, now and not after the minutes that those before it take.

    Raises:
        RunError: a name is not known, or a network cannot be built.
    """
    for model in config.model:
        build_model(
            model,
            num_classes=data.num_classes,
            in_channels=data.train.image_shape[0],
            image_size=data.train.image_shape[1:],
        )


def measure_model(config: BenchmarkConfig, model: str, data: Splits) -> dict[str, Any]:
    """Images per second of every contestant with one network, round by round, and their ratios.

    Raises:
        RunError: the network cannot be built for these images.
    """
    data = _images_for(config, model, data)
    set_threads_for(model, config.threads)
    wanted = {*config.contestants, PLAIN, SLOW, FAST[0]} if config.contestants else set(VARIANTS)
    names = [name for name, variant in VARIANTS.items() if name in wanted and (config.compile or not variant.compile)]
    trainers = _build_trainers(config, model, data, names)
    names = [name for name in names if _trainable(trainers[name], name)]
    lengths = {}
    for name in names:
        say(f"{model}: warming up {name}")
        lengths[name] = fitting_length(trainers[name], VARIANTS[name], config.seconds)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(config.rounds):
        say(f"{model}: round {number + 1} of {config.rounds}")
        for name in rotated(names, number):
            rates[name].append(run_stretch(trainers[name], VARIANTS[name], lengths[name], seed=number))
    fast = max((name for name in FAST if name in rates), key=lambda name: np.median(rates[name]))
    result = {
        "model": model,
        "image_shape": list(data.train.image_shape),
        "threads": torch.get_num_threads(),
        "fast": fast,
        "contestants": {
            name: {
                "policy": VARIANTS[name].policy.to_json(),
                "saliency": VARIANTS[name].saliency,
                "precision": trainers[name].precision,
                "compiled": VARIANTS[name].compile,
                "updates_per_round": lengths[name],
                "images_per_second": summary(rates[name]),
                "of_plain": summary(ratios(rates[name], rates[PLAIN])),
                "of_slow": summary(ratios(rates[name], rates[SLOW])),
            }
            for name in names
        },
    }
    torch.compiler.reset()  # the next network's graphs must not count towards this one's limit of recompilations
    return result


def fitting_length(trainer: Trainer, variant: Variant, seconds: float) -> int:
    """Updates that take about so long, after a first stretch in which graphs are compiled and caches filled.

    Even, so that the halves of the mixed policies are whole; if long enough, also a multiple of the blocks in which
    the Trainer makes its random draws, so that each stretch bears its share of them.
    """
    updates, took = 2, 0.0
    run_stretch(trainer, variant, updates, seed=0)
    while True:
        took = updates * trainer.config.batch_size / run_stretch(trainer, variant, updates, seed=0)
        if took >= seconds / 4:
            break
        updates *= 2
    fitting = int(updates * seconds / took)
    period = 2 * BLOCK  # recycling draws a fresh batch on every other update only
    return max(fitting - fitting % (period if fitting >= period else 2), 2)


def run_stretch(trainer: Trainer, variant: Variant, updates: int, *, seed: int) -> float:
    """Training images per second of a contestant, over some updates from new weights."""
    trainer.config = replace(trainer.config, saliency=variant.saliency)
    trainer.reset(seed)
    trainer.train(variant.policy, WARM_UP, probe=False)
    stats = trainer.train(variant.policy, updates, probe=False)
    return stats.images / stats.seconds


def measure_episodes(config: BenchmarkConfig, data: Splits) -> dict[str, Any]:
    """Where the time of a search's episode goes: training, validation, and what the environment itself takes.

    Actions are drawn evenly from the menu. Measuring saliency and gradients for the observation counts as training.
    The references of the reward, trained once for each task of a search, are not counted.

    Raises:
        RunError: the environment cannot be made of these settings.
    """
    set_threads_for("search", config.threads)
    size = min(config.episode_train_size, len(data.train))
    length = config.episode_updates
    env = MixPolicyEnv(
        training=TrainConfig(batch_size=config.batch_size, device=config.device),
        tasks=TaskDistribution(train_size=(size, size), updates=(length, length), pool=TASKS),
        reference_seeds=1,
        splits=data,
    )
    say("episodes: training the reference")
    assert env.references is not None
    for number in range(TASKS):
        env.references.prepare(env.tasks.task(number))
    env.action_space.seed(0)
    _run_episode(env, seed=0)
    episodes = []
    for number in range(config.rounds):
        say(f"episodes: {number + 1} of {config.rounds}")
        episodes.append(_run_episode(env, seed=number + 1))
    totals = [episode["reset"] + episode["step"] for episode in episodes]
    own = [episode["step"] - episode["training"] - episode["validation"] for episode in episodes]

    def percent(parts: Sequence[float], wholes: Sequence[float]) -> dict[str, Any]:
        return summary([100 * ratio for ratio in ratios(parts, wholes)])

    return {
        "model": "search",
        "train_size": size,
        "updates": length,
        "segments": len(env.segments),
        "validation_images": len(data.validation),
        "validation_limit": env.task_trainer.validation_limit,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision("auto", resolve_device(config.device)),
        "compiled": False,
        "seconds": episodes,
        "step_overhead_percent": percent(own, [episode["step"] for episode in episodes]),
        "validation_percent": percent([episode["validation"] for episode in episodes], totals),
        "reset_percent": percent([episode["reset"] for episode in episodes], totals),
    }


def _run_episode(env: MixPolicyEnv, *, seed: int) -> dict[str, float]:
    """Seconds of one episode's reset and steps, and of the training and validation inside the steps."""
    started = time.perf_counter()
    env.reset(seed=seed)
    reset = time.perf_counter() - started
    steps, terminated = 0.0, False
    with clocked(Trainer, "train") as training, clocked(Trainer, "evaluate") as validation:
        while not terminated:
            action = env.action_space.sample()
            started = time.perf_counter()
            _, _, terminated, _, _ = env.step(action)
            steps += time.perf_counter() - started
    return {"reset": reset, "step": steps, "training": sum(training), "validation": sum(validation)}


def text_report(report: Mapping[str, Any]) -> str:
    """The report as aligned tables."""
    host = report["machine"]
    gpu = "" if host["gpu"] is None else f" ({host['gpu']})"
    lines = [
        f"{host['processor']}, {host['cores']} cores ({', '.join(host['cpu_flags']) or 'no vector flags known'}), "
        f"torch {host['torch']}, device {report['device']}{gpu}, "
        f"load {host['load_average'][0]:.1f} before and {report['load_average_after'][0]:.1f} after",
        f"medians over {report['config']['rounds']} rounds [quartiles] (range)",
    ]
    for result in report["models"]:
        shape = " x ".join(str(side) for side in result["image_shape"])
        lines += ["", f"{result['model']}, images {shape}, threads {result['threads']}, fast path: {result['fast']}"]
        rows = [
            (
                name,
                row["precision"],
                f"{row['images_per_second']['median']:,.0f}",
                spread(row["of_plain"]),
                spread(row["of_slow"]),
            )
            for name, row in result["contestants"].items()
        ]
        headers = ("", "format", "images/s", "ratio to plain", "ratio to the slow path")
        aligned = ("left", "left", "right", "left", "left")
        lines.append(tabulate(rows, headers, tablefmt="plain", disable_numparse=True, colalign=aligned))
    episode = report["episode"]
    if episode is not None:
        lines += [
            "",
            f"an episode of {episode['updates']} updates in {episode['segments']} segments, search network, "
            f"threads {episode['threads']}",
            tabulate(
                [
                    ("step beyond training and validation, % of the steps", spread(episode["step_overhead_percent"])),
                    ("validation, % of the episode", spread(episode["validation_percent"])),
                    ("reset, % of the episode", spread(episode["reset_percent"])),
                ],
                tablefmt="plain",
                disable_numparse=True,
            ),
        ]
    return "\n".join(lines)


def print_profile(config: BenchmarkConfig, model: str, data: Splits) -> None:
    """Print the operations that take most of one contestant's time.

    Raises:
        RunError: the network cannot be built for these images.
    """
    assert config.profile is not None
    data = _images_for(config, model, data)
    set_threads_for(model, config.threads)
    contestant = VARIANTS[config.profile]
    trainer = _build_trainers(config, model, data, [config.profile])[config.profile]
    run_stretch(trainer, contestant, 2, seed=0)
    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        trainer.train(contestant.policy, PROFILED, probe=False)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(f"{model}, {config.profile}, {PROFILED} updates, threads {torch.get_num_threads()}")
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60))


def _build_trainers(config: BenchmarkConfig, model: str, data: Splits, names: Sequence[str]) -> dict[str, Trainer]:
    """A trainer for each contestant; those that differ in policy and saliency alone share one."""
    built: dict[tuple[str, bool], Trainer] = {}
    for name in names:
        contestant = VARIANTS[name]
        key = (contestant.precision, contestant.compile)
        if key not in built:
            training = TrainConfig(
                model=model,
                updates=UPDATES,
                batch_size=config.batch_size,
                device=config.device,
                precision=contestant.precision,
                compile="on" if contestant.compile else "off",
            )
            built[key] = Trainer(training, data)
    return {name: built[VARIANTS[name].precision, VARIANTS[name].compile] for name in names}


def _images_for(config: BenchmarkConfig, model: str, data: Splits) -> Splits:
    """The images as they are for the search network, resized for the others."""
    if model == "search" or config.image_size == 0:
        return data
    size = config.image_size
    # Nothing but training images is looked at, but all are of one shape.
    return split(resized(load_dataset(config.dataset, config.data_root), size), validation_size=len(data.validation))


def _trainable(trainer: Trainer, name: str) -> bool:
    """Whether a network can be trained in a way; says why not."""
    try:
        trainer.check(VARIANTS[name].policy)
    except InputError as error:
        say(f"{trainer.config.model}: {name} is left out ({error})")
        return False
    return True


def _validation_size(config: BenchmarkConfig, dataset: Dataset) -> int:
    return min(config.validation_size, len(dataset.pool) // 5)


if __name__ == "__main__":
    main()
