"""Part of the GPU check that measures trainings an hour, by the number of environment processes that share the GPU."""

from __future__ import annotations

import time
from functools import partial

from rlmix.agent.vec_env import ProcessVecEnv
from rlmix.agent.workers import EpisodeCursor, Job, Worker
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.classifier.training.config import TrainConfig
from rlmix.envs import MixPolicyEnv, Task, TaskDistribution
from rlmix.experiments.benchmarks.gpu_sizes import Note, Sizes, generated
from rlmix.experiments.benchmarks.timing import summary

POLICY = MixPolicy({"clean": 0.5, "cutmix": 0.5})


def make_worker(device: str, sizes: Sizes, index: int, position: EpisodeCursor) -> Worker:
    """Return a worker with generated images, in its own process: nothing but the sizes is sent there."""
    env = MixPolicyEnv(
        training=TrainConfig(device=device, batch_size=min(100, sizes.train_size)),
        tasks=TaskDistribution(train_size=(sizes.train_size,) * 2, updates=(sizes.updates,) * 2),
        splits=generated(28, 1, sizes.train_size, 10),
        reward="final",
    )
    return Worker(env, 0, index, position)


def measure_environments(device: str, sizes: Sizes, _tests: str, note: Note) -> None:
    """Note trainings an hour of the search network with 1, 2, 4, ... processes, all started once."""
    most = max(sizes.processes)
    started = time.perf_counter()
    workers = ProcessVecEnv(partial(make_worker, device, sizes), [EpisodeCursor()] * most, processes=most)
    try:
        run(workers, most, sizes)  # libraries are loaded, images sent
        note("seconds_to_start", time.perf_counter() - started)
        note("setting", {"updates": sizes.updates, "train_size": sizes.train_size, "policy": POLICY.to_json()})
        for count in sizes.processes:
            seconds = [run(workers, count, sizes) for _ in range(sizes.rounds)]
            note(f"{count} processes", {"trainings_per_hour": summary([3600 * count / each for each in seconds])})
    finally:
        workers.close()


def run(workers: ProcessVecEnv, count: int, sizes: Sizes) -> float:
    """Return the seconds in which the first `count` workers make a training each, with its last validation.

    Args:
        workers: the workers.
        count: number of trainings.
        sizes: number of updates and images.
    """
    task = Task(sizes.train_size, sizes.updates, 0.0, 0)
    schedule = PolicySchedule.fixed(POLICY)
    jobs = [Job.from_chooser(str(index), schedule, task, index, ["validation"]) for index in range(count)]
    started = time.perf_counter()
    workers.env_method("train_under", jobs, indices=range(count))
    return time.perf_counter() - started
