"""Measure how many steps a second the surrogate makes, on one thread, by the number of games in a batch.

    python experiments/benchmarks/surrogate_speed.py

`VectorEnv` is Gymnasium's, with actions drawn beforehand; `VecEnv` is Stable-Baselines3's, whose infos are one
dictionary for each game. CPU seconds beside wall seconds say whether others used the machine.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from rlmix.agent.surrogate_vec_env import SurrogateVecEnv
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.envs.surrogate import SurrogateVectorEnv
from rlmix.envs.surrogate_model import SHIPPED, SurrogateModel
from rlmix.experiments.benchmarks.timing import prepare_output, summary
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine

DRAWN = 10  # batches of actions, used in turn


@dataclass(frozen=True)
class SpeedConfig:
    """Measure the surrogate's steps a second on this machine."""

    model: str = SHIPPED
    """Folder of the surrogate; "shipped" is the one that comes with the program."""
    games: tuple[int, ...] = (1, 16, 256, 1024, 4096)
    """Games in a batch."""
    steps: int = 100
    """Steps of each batch in a round; they end and start episodes too."""
    rounds: int = 7
    """Rounds, of each kind and size in turn."""
    out: str = "experiments/results/benchmark_surrogate.json"
    """The report, JSON."""

    def __post_init__(self) -> None:
        require_at_least(self, steps=1, rounds=1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("benchmarks/surrogate_speed", arguments) as call:
        config = call.parse(SpeedConfig, __doc__)
        if not config.games or min(config.games) < 1:
            raise RunError(f"--games must be at least 1 each, got {' '.join(map(str, config.games)) or 'none'}")
        out = Path(config.out)
        prepare_output(out)
        torch.set_num_threads(1)
        report = {
            "kind": "surrogate_speed",
            "command": call.line,
            "config": asdict(config),
            "machine": machine(),
            "batches": measure(config),
            "load_average_after": os.getloadavg(),
        }
        write_atomic(out, (json.dumps(report, indent=2) + "\n").encode())
        print(f"{text_report(report)}\nwritten: {out}")


def measure(config: SpeedConfig) -> list[dict[str, Any]]:
    """Return steps a second of each kind of environment and size of batch, by the clock and by CPU time."""
    model = SurrogateModel.load(config.model)
    kinds: dict[str, Callable[[int], Any]] = {
        "VectorEnv": lambda games: SurrogateVectorEnv(games, model=model),
        "VecEnv": lambda games: SurrogateVecEnv(games, model=model),
    }
    clocks: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for _ in range(config.rounds):
        for kind, make in kinds.items():
            for games in config.games:
                env = make(games)
                space = SurrogateVectorEnv(games, model=model).action_space
                space.seed(0)
                actions = [space.sample() for _ in range(DRAWN)]
                env.reset()
                env.step(actions[0])
                started = time.perf_counter(), time.process_time()
                for step in range(config.steps):
                    env.step(actions[step % DRAWN])
                made = games * config.steps
                seconds = time.perf_counter() - started[0], time.process_time() - started[1]
                clocks.setdefault((kind, games), []).append((made / seconds[0], made / seconds[1]))
    return [
        {
            "kind": kind,
            "games": games,
            "steps_per_second": summary([wall for wall, _ in rounds]),
            "steps_per_cpu_second": summary([cpu for _, cpu in rounds]),
        }
        for (kind, games), rounds in clocks.items()
    ]


def text_report(report: Mapping[str, Any]) -> str:
    """Return the report for a reader."""
    host = report["machine"]
    rows = [
        [entry["kind"], f"{entry['games']:,}"]
        + [f"{entry[key]['median']:,.0f}" for key in ("steps_per_second", "steps_per_cpu_second")]
        for entry in report["batches"]
    ]
    return "\n".join(
        [
            f"{host['processor']}, one thread, torch {host['torch']}, load {host['load_average'][0]:.1f} before and "
            f"{report['load_average_after'][0]:.1f} after; medians over {report['config']['rounds']} rounds",
            "",
            tabulate(
                rows,
                ["", "games in a batch", "steps a second", "steps a CPU second"],
                tablefmt="plain",
                disable_numparse=True,
            ),
        ]
    )


if __name__ == "__main__":
    main()
