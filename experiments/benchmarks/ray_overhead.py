"""Measure what Ray costs: scaling of workers, the driver's share of a step, bytes, and a perturbation of PBT.

    python experiments/benchmarks/ray_overhead.py
    python experiments/benchmarks/ray_overhead.py --waiting-workers 1 4 16 --rounds 3

Four parts. *Scaling*: environment steps per second of one worker and of two, one thread each, with real trainings, in
alternating rounds. *Driver*: CPU seconds of the driver's process per environment step, for collecting alone and with
PPO's learning; the workers only wait, so that the remaining cost is the driver's. *Bytes*: size of a step's messages,
as Ray serialises them. *Perturbation*: time in which a member of a population takes over another's weights.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import gymnasium as gym
import numpy as np
import torch

from rlmix.agent.baselines import FIXED
from rlmix.agent.config import PPOConfig
from rlmix.agent.ppo import build_agent
from rlmix.agent.ray_env import RayVecEnv, WorkerResources
from rlmix.agent.workers import EpisodeCursor, make_worker
from rlmix.classifier.errors import require_at_least
from rlmix.classifier.files import write_atomic
from rlmix.envs import Menu
from rlmix.envs.observation import observation_space
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import UNPREFIXED, DatasetConfig, flatten
from rlmix.experiments.search.cluster import ray_session
from rlmix.experiments.search.config import SearchConfig, TaskTrainConfig
from rlmix.experiments.search.plan import START, Search, resolve

SEGMENTS = 4
DECLARED_CPUS = 128  # more than available: waiting workers need none


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure scaling, the driver's cost, bytes and a perturbation's cost on this machine."""

    data: Annotated[DatasetConfig, UNPREFIXED] = field(default_factory=DatasetConfig)
    train_size: int = 500
    """Number of training images of an episode."""
    updates: int = 250
    """Number of updates of an episode's training."""
    rounds: int = 5
    """Number of alternating rounds of one and of two workers, an episode each."""
    waiting_workers: tuple[int, ...] = (1, 4, 16, 64)
    """Numbers of workers that only wait."""
    wait: float = 0.5
    """Seconds of a step of a waiting worker."""
    waiting_steps: int = 16
    """Number of measured steps of each waiting worker."""
    perturbations: int = 5
    """Number of measured perturbations."""
    out: str = "experiments/results/benchmark_ray.json"
    """File of the report, JSON."""

    def __post_init__(self) -> None:
        require_at_least(self, rounds=1, waiting_steps=1, perturbations=1)


@dataclass(frozen=True)
class Start:
    """Copy of `EpisodeCursor` without its module, whose imports would cost each waiting worker 300 MB."""

    stream: str = "search"
    episode: int = 0
    actions: tuple[tuple[int, ...], ...] = ()


class WaitingWorker:
    """Stand-in for `RayWorker` that waits and gives a recorded answer; without torch, so that 64 fit into memory."""

    def __init__(self, make: Any, _index: int, _position: Any, _threads: int) -> None:
        self._make, self._steps = make, 0

    def build(self) -> None:
        """Unpack the recorded answer."""
        self._spaces, self._answer, self._seconds, self._segments = self._make

    def spaces(self) -> Any:
        """Return the spaces of observations and actions."""
        return self._spaces

    def attribute(self, _name: str) -> None:
        """Return None for every attribute."""

    def is_wrapped(self, _wrapper: Any) -> bool:
        """Return False: there is no wrapper."""
        return False

    def reset(self) -> Any:
        """Return the recorded observation."""
        return self._answer[0], {}

    def step(self, _action: Any) -> Any:
        """Wait, then answer."""
        time.sleep(self._seconds)
        self._steps += 1
        observation, reward, _, info = self._answer
        return observation, reward, self._steps % self._segments == 0, info


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    torch.set_num_threads(1)
    with command("benchmarks/ray_overhead", arguments) as call:
        config = call.parse(BenchmarkConfig, __doc__)
        search = setting(config)
        report: dict[str, Any] = {
            "kind": "benchmark_ray",
            "command": call.line,
            "config": flatten(asdict(config)),
            "machine": machine(),
        }
        with ray_session(None, cpus=DECLARED_CPUS):
            report["scaling"], answer = scaling(config, search)
            print(report["scaling"], flush=True)
            report["bytes"] = step_bytes(answer)
            print(report["bytes"], flush=True)
            report["perturbation"] = perturbation(config, search)
            print(report["perturbation"], flush=True)
            report["driver"] = []
            for workers in config.waiting_workers:
                report["driver"].append(driver(config, answer, workers))
                print(report["driver"][-1], flush=True)
                report["one_driver_feeds"] = feeds(report)
                # After each number: the largest come last, and may be more than the machine can start.
                write_atomic(Path(config.out), (json.dumps(report, indent=2) + "\n").encode())
        print(f"written: {config.out}")


def setting(config: BenchmarkConfig) -> Search:
    """Return the search whose segments are timed.

    Raises:
        RunError: an option is out of range.
    """
    search, _ = resolve(
        SearchConfig(
            data=config.data,
            train=TaskTrainConfig(compile="off"),
            train_size=(config.train_size, config.train_size),
            updates=(config.updates, config.updates),
            reward="change",
            tasks=1,
            workers=1,
        )
    )
    return search


def scaling(config: BenchmarkConfig, search: Search) -> tuple[dict[str, Any], Any]:
    """Measure the steps per second of one worker and of two; return them and a step's answer."""
    vectors = {
        workers: RayVecEnv(
            partial(make_worker, search.environment(None), 0), [EpisodeCursor()] * workers, share=WorkerResources()
        )
        for workers in (1, 2)
    }
    action = search.menu.find(FIXED[START])
    for vector in vectors.values():  # warm up: data, first draws, code paths
        vector.reset()
        for _ in search.segments:
            vector.step(np.array([action] * vector.num_envs))
    observation, reward, terminated, truncated, info = vectors[1].env_method("step", np.array(action))[0]
    answer = observation, float(reward), terminated or truncated, info  # as a worker's `EnvServer` gives it
    rates: dict[int, list[float]] = {1: [], 2: []}
    for round_number in range(config.rounds):
        for workers in (1, 2) if round_number % 2 == 0 else (2, 1):
            vector = vectors[workers]
            vector.reset()
            started = time.perf_counter()
            for _ in search.segments:
                vector.step(np.array([action] * workers))
            rates[workers].append(workers * len(search.segments) / (time.perf_counter() - started))
    for vector in vectors.values():
        vector.close()
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        "steps_per_second": {str(workers): values for workers, values in rates.items()},
        "median_steps_per_second": {str(workers): statistics.median(values) for workers, values in rates.items()},
        "two_over_one": ratios,
        "median_two_over_one": statistics.median(ratios),
        "segment_seconds": 1 / statistics.median(rates[1]),
    }, answer


def step_bytes(answer: Any) -> dict[str, int]:
    """Return the bytes of an action and of a step's answer, pickled as Ray pickles them, without its envelope."""
    from ray import cloudpickle

    return {
        "action": len(cloudpickle.dumps(np.zeros(4, dtype=np.int64), protocol=5)),
        "answer": len(cloudpickle.dumps(answer, protocol=5)),
    }


def driver(config: BenchmarkConfig, answer: Any, workers: int) -> dict[str, Any]:
    """Measure the driver's cost of an environment step, with workers that only wait."""
    spaces = (observation_space(Menu()), gym.spaces.MultiDiscrete(list(Menu().sizes)))
    given = (spaces, answer, config.wait, SEGMENTS)
    starts = [Start()] * workers
    vector = RayVecEnv(given, starts, share=WorkerResources(0.01), actor=WaitingWorker)  # type: ignore[arg-type]
    try:
        vector.reset()
        actions = np.zeros((workers, 4), dtype=np.int64)
        vector.step(actions)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(config.waiting_steps):
            vector.step(actions)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        ppo = PPOConfig(episodes_per_update=max(workers, 8))
        model = build_agent(ppo, vector, segments=SEGMENTS, seed=0, start=(2, 0, 0, 0))
        learning_wall, learning_cpu = time.perf_counter(), time.process_time()
        model.learn(SEGMENTS * ppo.episodes_per_update)
        learning_wall, learning_cpu = (
            time.perf_counter() - learning_wall,
            time.process_time() - learning_cpu,
        )
    finally:
        vector.close()
    steps = config.waiting_steps * workers
    learned = SEGMENTS * ppo.episodes_per_update
    return {
        "workers": workers,
        "cpu_seconds_per_step": cpu / steps,
        "wall_seconds_beyond_waiting_per_step": (wall - config.waiting_steps * config.wait) / steps,
        "cpu_seconds_per_step_with_learning": learning_cpu / learned,
        "wall_seconds_beyond_waiting_per_step_with_learning": (learning_wall - learned / workers * config.wait)
        / learned,
    }


def perturbation(config: BenchmarkConfig, search: Search) -> dict[str, Any]:
    """Measure the seconds of a perturbation (save a state, reset, restore another state), and those of a segment."""
    from ray import tune

    from rlmix.experiments.search.population_trainable import STATE, Member

    plan = [list(search.menu.find(FIXED[START]))] * len(search.segments)
    base = {"number": 0, "perturbed": False, "plan": plan}
    member = tune.with_parameters(Member, agent=asdict(search.config))(dict(base))
    times: dict[str, list[float]] = {"segment": [], "save": [], "reset": [], "restore": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(config.perturbations):
            times["segment"].append(_seconds(member.step))
            times["save"].append(_seconds(lambda: member.save_checkpoint(folder)))
            times["reset"].append(_seconds(lambda number=number: member.reset_config({**base, "number": number})))
            times["restore"].append(_seconds(lambda: member.load_checkpoint(folder)))
            member.reset_config(base)
        size = (Path(folder) / STATE).stat().st_size
    medians = {f"{name}_seconds": statistics.median(values) for name, values in times.items()}
    return {
        **medians,
        "perturbation_seconds": medians["save_seconds"] + medians["reset_seconds"] + medians["restore_seconds"],
        "state_bytes": size,
    }


def _seconds(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def feeds(report: dict[str, Any]) -> list[dict[str, float]]:
    """Return the number of workers that one driver can serve, by length of a segment.

    A step of N workers takes a segment's T seconds and N times the driver's cost c, so that the driver's share is
    N c / (T + N c). c is the cost with the largest number of workers.
    """
    cost = report["driver"][-1]["wall_seconds_beyond_waiting_per_step_with_learning"]
    cost = max(cost, report["driver"][-1]["cpu_seconds_per_step_with_learning"])
    return [
        {"segment_seconds": seconds, "workers_at_a_tenth": seconds / cost / 9, "workers_at_half": seconds / cost}
        for seconds in (round(report["scaling"]["segment_seconds"], 3), 1.0, 10.0, 60.0)
    ]


if __name__ == "__main__":
    main()
