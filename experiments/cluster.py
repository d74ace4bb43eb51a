"""Ray for the commands: connecting, what a cluster has, and a search as a trial with its workers in a placement group.

The driver of a trial stays on the machine of the command, where the run folder is; workers go wherever there is room.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from agent.ray_env import Share
from experiments.run_folder import RunError, interrupt_on_sigterm

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

Argument = TypeVar("Argument")
Value = TypeVar("Value")

DRIVER_MEMORY = 500 * 2**20  # bytes that a trial's driver reserves, so that it has a place of its own without a CPU
RESTARTS = 3  # of processes that train together, before their error ends the run
REPORTED_SECONDS = 3.0  # until then machines may not have told what has become free
NODE_LABEL = "ray.io/node-id"


@contextmanager
def connected(address: str | None, *, cpus: int | None = None) -> Iterator[None]:
    """Ray, for as long as it is needed.

    Args:
        address: of a cluster, `auto` for the one that this machine belongs to; none starts Ray on this machine, where
            it listens on loopback alone and has no dashboard.
        cpus: that Ray started here declares; none = those of the machine.

    Raises:
        RunError: Ray is not installed, or there is no such cluster.
    """
    if address is None:
        # Ray's own switch for a machine that is no cluster: its servers bind to 127.0.0.1. Read when Ray is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # A command stops at once, as its own run folder allows, and leaves its own results.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Ray Train asks a dashboard that is not there, and says so every second; it prints what a worker prints twice.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "Failed to query Ray Train Controller actor state")
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    try:
        import ray
    except ImportError:
        raise RunError("Ray is not installed: pip install 'rl-mix[ray]'") from None
    try:
        try:
            if address is None:
                ray.init("local", num_cpus=cpus, include_dashboard=False, logging_level=logging.ERROR)
            else:
                host, separator, port = address.rpartition(":")
                if separator and port.isdigit():
                    # Ray itself would try for minutes, then end the process.
                    socket.create_connection((host, int(port)), timeout=5).close()
                ray.init(address=address, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            raise RunError(
                f"no Ray cluster at {address or 'this machine'} ({' '.join(str(error).split()):.200}); start one with "
                "`ray start --head`, or leave --address out to have Ray started on this machine"
            ) from None
        interrupt_on_sigterm()  # Ray has put a handler of its own in its place
        yield
    finally:
        ray.shutdown()


def places(share: Share) -> int:
    """How many workers of a share the connected cluster has room for, whatever runs there now."""
    import ray

    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            by_cpu = int(has.get("CPU", 0) / share.cpus + 1e-6)
            gpus = has.get("GPU", 0)
            if share.gpus == 0:
                room += by_cpu
            elif share.gpus <= 1:  # a worker's part of a GPU lies on one GPU
                room += min(by_cpu, int(gpus) * int(1 / share.gpus + 1e-6))
            else:
                room += min(by_cpu, int(gpus / share.gpus))
    return room


def require_places(workers: int, share: Share) -> None:
    """Refuse what the connected cluster could never hold, and say so where it is busy now.

    Raises:
        RunError: it has too few CPUs or GPUs.
    """
    import ray

    room = places(share)
    if room < workers:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        there = "; ".join(sorted(f"{has.get('CPU', 0):g} CPU and {has.get('GPU', 0):g} GPU" for has in nodes))
        raise RunError(
            f"{workers} workers with {share} each do not fit: the cluster has {len(nodes)} machines ({there}), room "
            f"for {room} such workers; ask for fewer with --workers, or for less with --cpus-per-worker or "
            "--gpus-per-worker"
        )

    end = time.monotonic() + REPORTED_SECONDS
    while True:
        free = ray.available_resources()
        busy = free.get("CPU", 0) < workers * share.cpus or free.get("GPU", 0) < workers * share.gpus
        if not busy or time.monotonic() > end:
            break
        time.sleep(0.2)
    if busy:
        print(
            f"the cluster is busy: {free.get('CPU', 0):g} CPU and {free.get('GPU', 0):g} GPU are free; waiting until "
            f"there is room for {workers} workers with {share} each",
            file=sys.stderr,
            flush=True,
        )


def trial_resources(workers: int, share: Share) -> PlacementGroupFactory:
    """One placement group: a driver without a CPU on this machine, and the workers wherever there is room."""
    import ray
    from ray.tune import PlacementGroupFactory

    worker = {"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}
    here: list[dict[str, str]] = [{NODE_LABEL: ray.get_runtime_context().get_node_id()}]
    return PlacementGroupFactory(
        [{"memory": DRIVER_MEMORY}, *[worker] * workers], bundle_label_selector=here + [{}] * workers
    )


def single_resources(share: Share) -> PlacementGroupFactory:
    """What a trial that trains by itself has of its machine."""
    from ray.tune import PlacementGroupFactory

    return PlacementGroupFactory([{"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}])


def run_trial(trainable: Callable[[dict[str, str]], None], run: Path, workers: int, share: Share) -> None:
    """Run one trial to its end; what it prints is printed here.

    Args:
        trainable: given the run folder's path as `run`.
        run: folder; Tune's own files go into its folder `ray`.
        workers: actors that the trial starts.
        share: what each of them has of its machine.

    Raises:
        RunError: the trial failed; in its own words.
    """
    from ray import tune

    path = run.resolve()
    tuner = tune.Tuner(
        tune.with_resources(trainable, trial_resources(workers, share)),
        param_space={"run": str(path)},
        run_config=tune.RunConfig(name="ray", storage_path=str(path), verbose=0),
    )
    (result,) = tuner.fit()
    if result.error is not None:
        raise RunError(own_words(result.error))


def train_together(loop: Callable[[dict[str, str]], None], run: Path, workers: int, share: Share) -> None:
    """Run a training loop in several processes of one `torch.distributed` group, from the start again when one is lost.

    Args:
        loop: given the run folder's path as `run`; goes on from the folder's checkpoint.
        run: folder; Ray Train's own files go into its folder `ray`.
        workers: processes.
        share: what each of them has of its machine.

    Raises:
        RunError: there is no room, or the loop failed; in its own words.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    require_places(workers, share)
    path = str(run.resolve())
    trainer = TorchTrainer(
        loop,
        train_loop_config={"run": path},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=share.gpus > 0,
            resources_per_worker={"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})},
        ),
        run_config=RunConfig(name="ray", storage_path=path, failure_config=FailureConfig(max_failures=RESTARTS)),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray has several kinds of its own, with the loop's inside
        raise RunError(f"{own_words(error):.500}") from error


def on_a_worker(function: Callable[[Argument], Value], argument: Argument, share: Share) -> Value:
    """What a function gives on a machine, and with the GPU, that a worker would have.

    Raises:
        RunError: the function failed; in its own words.
    """
    import ray

    try:
        return ray.get(ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(function).remote(argument))
    except ray.exceptions.RayError as error:
        raise RunError(own_words(error)) from None


def own_words(error: BaseException) -> str:
    """What a trial's error says itself, without Ray's account of where it was raised."""
    while (cause := getattr(error, "cause", None)) is not None:
        error = cause
    return str(error)
