"""Measure the cost of RL-Mix's per-batch agent: an update of its classifier against one of exact R-Mix.

    python experiments/benchmarks/rl_mix_cost.py
    python experiments/benchmarks/rl_mix_cost.py --model search --rounds 15

Both sides mix every batch with saliency from a pass of its own, in one process and on the same images. Each runs a
segment of updates in every round, in alternating order; a ratio is the median of the rounds' own ratios, so that other
load of a shared machine affects both sides alike. The agent is the published one; its choices and its storing are timed
as they happen. One pass of its own update is timed in every round, on a rollout filled up with the stored steps. It
counts once for each of the agent's epochs, divided by the n_steps updates of the classifier that the rollout covers.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from tabulate import tabulate

from rlmix.agent.config import RLMixAgentConfig
from rlmix.agent.rl_mix.learner import RLMixLearner
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.classifier.hardware import resolve_device
from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.rmix_trainer import RMixTrainer
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import RLMixEnv
from rlmix.experiments.benchmarks.timing import (
    BenchmarkTrainConfig,
    clocked,
    prepare_output,
    require_seconds,
    say,
    set_threads_for,
    spread,
    summary,
)
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, DataConfig, flatten

WARM_UP = 2  # updates before the clock starts: first draws, the optimiser's state
EVERY_BATCH = MixPolicy({"rmix": 1.0})
PUBLISHED_RATIO = 2.0  # 8 hours against 4 on a P100 (arXiv 2212.04875)
PARTS = {  # of an update of RL-Mix: name, and the method that is timed
    "clean pass": (RMixTrainer, "next_clean"),
    "mixed update": (RMixTrainer, "train_mixed"),
    "choosing": (RLMixLearner, "choose"),
    "storing": (RLMixLearner, "learn"),
}


@dataclass(frozen=True)
class CostConfig:
    """Measure the cost of RL-Mix's per-batch agent beside exact R-Mix."""

    data: Annotated[DataConfig, UNPREFIXED] = field(default_factory=lambda: DataConfig(image_size=32, train_size=1000))
    train: Annotated[BenchmarkTrainConfig, UNPREFIXED] = field(default_factory=BenchmarkTrainConfig)
    model: tuple[str, ...] = ("search", "preact_resnet18")
    """Networks by name; search sees images of their own size, others those of --image-size."""
    threads: int | None = None
    """Number of threads on a CPU; optional, defaults to 1 for the network search and 2 for others."""
    seconds: float = 5.0
    """Approximate seconds of each side in a round, at least 2 updates."""
    rounds: int = 9
    """Number of rounds."""
    out: str = "experiments/results/rl_mix_cost.json"
    """File of the report, JSON."""

    def __post_init__(self) -> None:
        require_at_least(self, threads=1, rounds=1)
        require_seconds(self.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/rl_mix_cost", arguments) as call:
        config = call.parse(CostConfig, __doc__)
        check(config)
        out = Path(config.out)
        prepare_output(out)
        report = {
            "kind": "rl_mix_cost",
            "command": call.line,
            "config": flatten(asdict(config)),
            "agent": asdict(RLMixAgentConfig()),
            "machine": machine(),
            "device": str(resolve_device(config.train.device)),
            "models": [measure(config, model) for model in config.model],
            "load_average_after": os.getloadavg(),
        }
        write_atomic(out, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    print(f"\n{text_report(report)}\nwritten: {out}")


def check(config: CostConfig) -> None:
    """Check the options.

    Raises:
        RunError: an option is out of range.
    """
    if not config.model:
        raise RunError("--model must name at least one network, got none")
    least, train_size = WARM_UP * config.train.batch_size, config.data.train_size
    if train_size is not None and train_size <= least:
        raise RunError(f"--train-size must be above {least}, {WARM_UP} batches, got {train_size}")
    resolve_device(config.train.device)


def measure(config: CostConfig, model: str) -> dict[str, Any]:
    """Measure the seconds of an update on both sides, their ratio, and the share of each part of RL-Mix's update.

    Raises:
        RunError: network and images do not fit, or there are fewer images than a batch holds.
    """
    set_threads_for(model, config.threads)
    image_size = None if model == "search" else config.data.image_size
    data = replace(config.data, image_size=image_size).draw(0)
    training = replace(config.train, model=model, saliency="exact")
    env, trainer = RLMixEnv(training=training, splits=data), Trainer(training, data)
    published = RLMixAgentConfig()
    agent = RLMixLearner(replace(published, epochs=1), env, seed=0, updates=training.updates)
    say(f"{model}: warming up")
    time_exact(trainer, 2)
    length = max(2, int(config.seconds / time_exact(trainer, 2)))
    length = min(length, agent.model.n_steps - 1)  # the agent's own update is timed separately
    time_rl_mix(env, agent, 2, published)
    rounds = []
    for number in range(config.rounds):
        say(f"{model}: round {number + 1} of {config.rounds}")
        seconds: dict[str, Any] = {}
        for side in ("exact", "rl_mix") if number % 2 else ("rl_mix", "exact"):
            if side == "exact":
                seconds["exact"] = time_exact(trainer, length)
            else:
                seconds.update(time_rl_mix(env, agent, length, published))
        rounds.append(seconds)
    whole = [entry["stepping"] + entry["parts"]["learning"] for entry in rounds]
    return {
        "model": model,
        "image_shape": list(data.train.image_shape),
        "threads": torch.get_num_threads(),
        "precision": trainer.precision,
        "updates_per_round": length,
        "agent_parameters": sum(parameter.numel() for parameter in agent.model.policy.parameters()),
        "exact_seconds": summary([entry["exact"] for entry in rounds]),
        "rl_mix_seconds": summary(whole),
        "ratio": summary([ours / entry["exact"] for ours, entry in zip(whole, rounds, strict=True)]),
        "percent_of_rl_mix": {
            part: summary([100 * entry["parts"][part] / ours for ours, entry in zip(whole, rounds, strict=True)])
            for part in rounds[0]["parts"]
        },
    }


def time_exact(trainer: Trainer, updates: int) -> float:
    """Return the seconds of an update of exact R-Mix that mixes every batch."""
    trainer.reset(0)
    trainer.train(EVERY_BATCH, WARM_UP, probe=False)
    return trainer.train(EVERY_BATCH, updates, probe=False).seconds / updates


def time_rl_mix(env: RLMixEnv, agent: RLMixLearner, updates: int, config: RLMixAgentConfig) -> dict[str, Any]:
    """Return the seconds of an update of RL-Mix without the agent's own (`stepping`), and those of each part with it.

    Args:
        env: environment of the agent.
        agent: agent of `config`, except that it learns in a single epoch.
        updates: number of timed updates.
        config: configuration of the agent whose cost is measured.
    """
    observation, _ = env.reset(seed=0)
    for update in range(WARM_UP):
        observation, *_ = env.step(agent.choose(observation, update))
    agent.model.rollout_buffer.reset()
    with ExitStack() as stack:
        clocks = {part: stack.enter_context(clocked(*method)) for part, method in PARTS.items()}
        started = time.perf_counter()
        for update in range(WARM_UP, WARM_UP + updates):
            observation, reward, terminated, truncated, _ = env.step(agent.choose(observation, update))
            agent.learn(reward, observation, terminated, truncated)
            if terminated or truncated:
                env.reset()
        stepping = (time.perf_counter() - started) / updates
    parts = {part: sum(seconds) / updates for part, seconds in clocks.items()}
    parts["saliency, reward, copies"] = stepping - sum(parts.values())
    parts["learning"] = config.epochs * pass_seconds(agent) / config.n_steps
    return {"stepping": stepping, "parts": parts}


def pass_seconds(agent: RLMixLearner) -> float:
    """Return the seconds of an update of an agent, on a rollout filled up with copies of its stored steps."""
    buffer = agent.model.rollout_buffer
    filled = buffer.pos
    for row in range(filled, buffer.buffer_size):
        for values in agent.rows().values():
            values[row] = values[row % filled]
    buffer.pos, buffer.full = buffer.buffer_size, True
    started = time.perf_counter()
    agent.update(torch.zeros(1, 1), done=True)
    return time.perf_counter() - started


def text_report(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    host = report["machine"]
    lines = [
        f"{host['processor']}, {host['cores']} cores, torch {host['torch']}, device {report['device']}, load "
        f"{host['load_average'][0]:.1f} before and {report['load_average_after'][0]:.1f} after; medians over "
        f"{report['config']['rounds']} rounds [quartiles] (range)"
    ]
    for result in report["models"]:
        shape = " x ".join(str(side) for side in result["image_shape"])
        lines += [
            "",
            f"{result['model']}, images {shape}, batches of {report['config']['batch_size']}, {result['precision']}, "
            f"threads {result['threads']}",
            tabulate(
                [
                    ("exact R-Mix, every batch", f"{1000 * result['exact_seconds']['median']:,.1f} ms an update"),
                    ("RL-Mix, learning included", f"{1000 * result['rl_mix_seconds']['median']:,.1f} ms an update"),
                    ("ratio", f"{spread(result['ratio'])}; published: about {PUBLISHED_RATIO:g}"),
                    *(
                        (f"of RL-Mix's time: {part}", f"{values['median']:.1f} %")
                        for part, values in result["percent_of_rl_mix"].items()
                    ),
                ],
                tablefmt="plain",
                disable_numparse=True,
            ),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
