"""Measure training images per second under each mixing method, and the environment's overhead.

    python experiments/benchmarks/training_speed.py
    python experiments/benchmarks/training_speed.py --model search --threads 2 --rounds 15
    python experiments/benchmarks/training_speed.py --model search --profile rmix

Every contestant runs a short segment of updates in every round, in rotated order, and a ratio is the median of the
rounds' own ratios, so that other load of a shared machine affects both sides alike. All are measured in one process, on
the same images, with random crops and flips, from new weights in every segment.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile

from rlmix.classifier.data import Splits, split
from rlmix.classifier.errors import InputError, require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device, resolve_precision, why_not_compile
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.models import build_model
from rlmix.classifier.training.config import Precision
from rlmix.classifier.training.draws import BLOCK
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import MixPolicyEnv, TaskDistribution
from rlmix.experiments.benchmarks.timing import (
    BenchmarkTrainConfig,
    clocked,
    prepare_output,
    ratios,
    require_seconds,
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
from rlmix.experiments.runs.options import UNPREFIXED, DatasetConfig, flatten

WARM_UP = 2  # updates before the clock starts: first draws, the optimiser's state
PROFILED = 10  # updates
TASKS = 2  # of the episodes, so that a reset draws other images, as in a search


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure training images per second under each mixing method, and the environment's overhead."""

    data: Annotated[DatasetConfig, UNPREFIXED] = field(
        default_factory=lambda: DatasetConfig(image_size=32, validation_size=3000)
    )
    train: Annotated[BenchmarkTrainConfig, UNPREFIXED] = field(default_factory=BenchmarkTrainConfig)
    model: tuple[str, ...] = ("search", "preact_resnet18")
    """Networks by name; search sees images of their own size, others those of --image-size."""
    contestants: tuple[str, ...] = ()
    """Training methods, e.g. plain rmix rmix-exact; optional, defaults to all. The two that ratios refer to are always
    measured."""
    threads: int | None = None
    """Number of threads on a CPU; optional, defaults to 1 for the network search (as in a search) and 2 for others."""
    seconds: float = 5.0
    """Seconds of each contestant in a round."""
    rounds: int = 9
    """Number of rounds, and of episodes of the environment."""
    compile: bool = True
    """Measure the compiled fast path too; compiling takes a minute or more for each network."""
    episode_train_size: int = 500
    """Number of training images of an episode, at most those available."""
    episode_updates: int = 250
    """Number of updates of an episode's training."""
    profile: str | None = None
    """Contestant whose torch.profiler table is printed, instead of a measurement, e.g. plain or rmix; optional."""
    out: str = "experiments/results/benchmark_speed.json"
    """File of the report, JSON."""

    def __post_init__(self) -> None:
        require_at_least(self, threads=1, rounds=1, episode_train_size=1, episode_updates=1)
        require_seconds(self.seconds)


@dataclass(frozen=True)
class Variant:
    """Contestant in a number format, compiled or not.

    Attributes:
        contestant: training method, a key of `CONTESTANTS` (`rl_mix_cost.py` measures RL-Mix).
        precision: `auto` (bf16 where it is native) or `fp32`.
        compile: whether the step is compiled.
    """

    contestant: str
    precision: Precision = "auto"
    compile: bool = False

    @property
    def policy(self) -> MixPolicy:
        """Mixing policy of the contestant."""
        return only_policy(CONTESTANTS[self.contestant])

    @property
    def saliency(self) -> Saliency:
        """Source of saliency, `recycled` or `exact`."""
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
        data = images_for(config, "search")
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
            "config": flatten(asdict(config)),
            "machine": machine(),
            "device": str(resolve_device(config.train.device)),
            "models": [measure_model(config, model, data) for model in config.model],
            "episode": measure_episodes(config, data) if "search" in config.model else None,
            "load_average_after": os.getloadavg(),
        }
        write_atomic(out, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    print(f"\n{text_report(report)}\nwritten: {out}")


def check(config: BenchmarkConfig) -> None:
    """Check the options.

    Raises:
        RunError: an option is out of range.
    """
    if not config.model:
        raise RunError("--model must name at least one network, got none")
    for name in config.contestants:
        if name not in VARIANTS:
            raise RunError(f"--contestants must be among {', '.join(VARIANTS)}, got {name!r}")
    if config.profile is not None and config.profile not in VARIANTS:
        raise RunError(f"--profile must be one of {', '.join(VARIANTS)}, got {config.profile!r}")
    device = resolve_device(config.train.device)
    reason = why_not_compile(device)
    compiles = config.profile is None or VARIANTS[config.profile].compile
    if config.compile and compiles and reason is not None:
        raise RunError(f"{reason}; install it, or leave the compiled contestant out with --no-compile")


def images_for(config: BenchmarkConfig, model: str) -> Splits:
    """Return the images that a network is timed on: of their own size for `search`, of --image-size for others.

    Raises:
        DataError: the data set is not available or too small.
    """
    image_size = None if model == "search" else config.data.image_size
    dataset, size = replace(config.data, image_size=image_size).load(), config.data.validation_size
    return split(dataset, validation_size=None if size is None else min(size, len(dataset.pool) // 5))


def check_models(config: BenchmarkConfig, data: Splits) -> None:
    """Build every network once, so that errors come before minutes of measuring.

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
    """Measure the images per second of every contestant with one network, round by round, and their ratios.

    Raises:
        RunError: the network cannot be built for these images.
    """
    data = data if model == "search" else images_for(config, model)
    set_threads_for(model, config.threads)
    wanted = {*config.contestants, PLAIN, SLOW, FAST[0]} if config.contestants else set(VARIANTS)
    names = [name for name, variant in VARIANTS.items() if name in wanted and (config.compile or not variant.compile)]
    trainers = _build_trainers(config, model, data, names)
    names = [name for name in names if _trainable(trainers[name], name)]
    lengths = {}
    for name in names:
        say(f"{model}: warming up {name}")
        lengths[name] = updates_per_segment(trainers[name], VARIANTS[name], config.seconds)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(config.rounds):
        say(f"{model}: round {number + 1} of {config.rounds}")
        for name in rotated(names, number):
            rates[name].append(run_segment(trainers[name], VARIANTS[name], lengths[name], seed=number))
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
    torch.compiler.reset()  # otherwise this network's graphs count towards the next one's limit of recompilations
    return result


def updates_per_segment(trainer: Trainer, variant: Variant, seconds: float) -> int:
    """Return the number of updates that take about so many seconds, after one segment that compiles and fills caches.

    The number is even, so that policies that mix half of the updates have whole halves. If long enough, it is also a
    multiple of the blocks in which the Trainer makes its random draws, so that each segment has its share of them.
    """
    updates, elapsed = 2, 0.0
    run_segment(trainer, variant, updates, seed=0)
    while True:
        elapsed = updates * trainer.config.batch_size / run_segment(trainer, variant, updates, seed=0)
        if elapsed >= seconds / 4:
            break
        updates *= 2
    count = int(updates * seconds / elapsed)
    period = 2 * BLOCK  # recycling draws a fresh batch on every other update only
    return max(count - count % (period if count >= period else 2), 2)


def run_segment(trainer: Trainer, variant: Variant, updates: int, *, seed: int) -> float:
    """Return a contestant's training images per second over some updates from new weights."""
    trainer.config = replace(trainer.config, saliency=variant.saliency)
    trainer.reset(seed)
    trainer.train(variant.policy, WARM_UP, probe=False)
    stats = trainer.train(variant.policy, updates, probe=False)
    return stats.images / stats.seconds


def measure_episodes(config: BenchmarkConfig, data: Splits) -> dict[str, Any]:
    """Measure the shares of a search's episode: training, validation, and the environment's overhead.

    Actions are drawn uniformly from the menu. Measuring saliency and gradients for the observation counts as training.
    The reward's references, trained once for each task of a search, are not counted.

    Raises:
        RunError: the environment cannot be built with these options.
    """
    set_threads_for("search", config.threads)
    size = min(config.episode_train_size, len(data.train))
    length = config.episode_updates
    env = MixPolicyEnv(
        training=replace(config.train, updates=length),
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
        "precision": resolve_precision("auto", resolve_device(config.train.device)),
        "compiled": False,
        "seconds": episodes,
        "step_overhead_percent": percent(own, [episode["step"] for episode in episodes]),
        "validation_percent": percent([episode["validation"] for episode in episodes], totals),
        "reset_percent": percent([episode["reset"] for episode in episodes], totals),
    }


def _run_episode(env: MixPolicyEnv, *, seed: int) -> dict[str, float]:
    """Return the seconds of one episode's reset and steps, and of the training and validation inside the steps."""
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
    """Format the report as aligned tables."""
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
    data = data if model == "search" else images_for(config, model)
    set_threads_for(model, config.threads)
    contestant = VARIANTS[config.profile]
    trainer = _build_trainers(config, model, data, [config.profile])[config.profile]
    run_segment(trainer, contestant, 2, seed=0)
    on_gpu = trainer.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        trainer.train(contestant.policy, PROFILED, probe=False)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(f"{model}, {config.profile}, {PROFILED} updates, threads {torch.get_num_threads()}")
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60))


def _build_trainers(config: BenchmarkConfig, model: str, data: Splits, names: Sequence[str]) -> dict[str, Trainer]:
    """Build a Trainer for each contestant; those that differ only in policy and saliency share one."""
    built: dict[tuple[str, bool], Trainer] = {}
    for name in names:
        contestant = VARIANTS[name]
        key = (contestant.precision, contestant.compile)
        if key not in built:
            compiled: Literal["on", "off"] = "on" if contestant.compile else "off"
            training = replace(config.train, model=model, precision=contestant.precision, compile=compiled)
            built[key] = Trainer(training, data)
    return {name: built[VARIANTS[name].precision, VARIANTS[name].compile] for name in names}


def _trainable(trainer: Trainer, name: str) -> bool:
    """Return whether a network can be trained with a method; print the reason if not."""
    try:
        trainer.check(VARIANTS[name].policy)
    except InputError as error:
        say(f"{trainer.config.model}: {name} is left out ({error})")
        return False
    return True


if __name__ == "__main__":
    main()
