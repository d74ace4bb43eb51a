"""Ray for the commands: connecting, what a cluster has, and a search as a trial with its workers in a placement group.

The driver of a trial stays on the machine of the command, where the run folder is; workers go wherever there is room.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rlmix.agent.ray_env import WorkerResources
from rlmix.classifier.errors import InputError
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import stop_file
from rlmix.experiments.runs.signals import StopSignal, interrupt_on_sigterm

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory, RunConfig

Argument = TypeVar("Argument")
Value = TypeVar("Value")

DRIVER_MEMORY = 500 * 2**20  # bytes that a trial's driver reserves, so that it has a place of its own without a CPU
RESTARTS = 3  # of a trial, or of processes that train together, before their error ends them
REPORTED_SECONDS = 3.0  # until then machines may not have told what has become free
NODE_LABEL = "ray.io/node-id"


@contextmanager
def ray_session(address: str | None, *, cpus: int | None = None) -> Iterator[None]:
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
    # Ray Train would print what a worker prints twice.
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
                if address.rpartition(":")[2].isdigit():
                    check_reachable(address)  # Ray itself would try for minutes, then end the process
                ray.init(address=address, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise RunError(
                f"no Ray cluster at {address or 'this machine'} ({' '.join(str(error).split()):.200}); start one with "
                "`ray start --head`, or leave --address out to have Ray started on this machine"
            ) from None
        interrupt_on_sigterm()  # Ray has put a handler of its own in its place
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Return if somebody listens at `HOST:PORT`.

    Raises:
        OSError: nobody does.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()


def worker_capacity(share: WorkerResources) -> int:
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


def check_capacity(workers: int, share: WorkerResources) -> None:
    """Refuse what the connected cluster could never hold, and say so where it is busy now.

    Raises:
        RunError: it has too few CPUs or GPUs.
    """
    import ray

    room = worker_capacity(share)
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


def trial_resources(workers: int, share: WorkerResources) -> PlacementGroupFactory:
    """One placement group: a driver without a CPU on this machine, and the workers wherever there is room."""
    import ray
    from ray.tune import PlacementGroupFactory

    worker = {"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}
    here: list[dict[str, str]] = [{NODE_LABEL: ray.get_runtime_context().get_node_id()}]
    return PlacementGroupFactory(
        [{"memory": DRIVER_MEMORY}, *[worker] * workers], bundle_label_selector=here + [{}] * workers
    )


def single_resources(share: WorkerResources) -> PlacementGroupFactory:
    """What a trial that trains by itself has of its machine."""
    from ray.tune import PlacementGroupFactory

    return PlacementGroupFactory([{"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}])


def tune_setting(run: Path, *, verbose: int) -> RunConfig:
    """How trials of a run are run: one whose process is lost, or that fails, is started again and says so.

    Args:
        run: folder; Tune's own files go into its folder `ray`.
        verbose: what Tune prints, from 0 for nothing to 2.
    """
    from ray import tune

    class RecoveryLogger(tune.Callback):
        """Says on standard error that a trial is started again."""

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            reason = " ".join(root_message(trial.get_pickled_error()).split())
            print(
                f"trial {trial.trial_id} ended too early ({reason:.240}); it is started again, from its checkpoint",
                file=sys.stderr,
                flush=True,
            )

    return tune.RunConfig(
        name="ray",
        storage_path=str(run.resolve()),
        failure_config=tune.FailureConfig(max_failures=RESTARTS),
        callbacks=[RecoveryLogger()],
        verbose=verbose,
    )


def run_trial(trainable: Callable[[dict[str, str]], None], run: Path, workers: int, share: WorkerResources) -> None:
    """Run one trial to its end; what it prints is printed here.

    Args:
        trainable: given the run folder's path as `run`; goes on from the folder's checkpoint.
        run: folder; Tune's own files go into its folder `ray`.
        workers: actors that the trial starts.
        share: what each of them has of its machine.

    Raises:
        RunError: the trial failed; in its own words.
    """
    from ray import tune

    def trial(parameters: dict[str, str]) -> None:
        try:
            trainable(parameters)
        except InputError as error:  # another try would end the same
            tune.report({"error": str(error)})

    tuner = tune.Tuner(
        tune.with_resources(trial, trial_resources(workers, share)),
        param_space={"run": str(run.resolve())},
        run_config=tune_setting(run, verbose=0),
    )
    result = tuner.fit()[0]
    if result.error is not None:
        raise RunError(root_message(result.error))
    if result.metrics is not None and "error" in result.metrics:
        raise RunError(result.metrics["error"])


def train_together(loop: Callable[[dict[str, str]], None], run: Path, workers: int, share: WorkerResources) -> None:
    """Run a training loop in several processes of one `torch.distributed` group, from the start again when one is lost.

    A first Ctrl-C or SIGTERM is handed on by a file that the loop looks for; a second one ends everything at once.

    Args:
        loop: given the run folder's path as `run`; goes on from the folder's checkpoint; saves and returns when there
            is a file `stop_file(run)`, and removes it where it came to its end all the same.
        run: folder; Ray Train's own files go into its folder `ray`.
        workers: processes.
        share: what each of them has of its machine.

    Raises:
        RunError: there is no room, or the loop failed; in its own words.
        KeyboardInterrupt: the loop was asked to stop, and did.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        """Without Ray's watch over the placement group, which ends with this process anyway.

        It asks the dashboard, and where there is none it delays the end by 12 seconds and prints a traceback.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # of Ray Train's version 2, chosen at run time
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    check_capacity(workers, share)
    path = str(run.resolve())
    trainer = Trainer(
        loop,
        train_loop_config={"run": path},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=share.gpus > 0,
            resources_per_worker={"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})},
        ),
        run_config=RunConfig(name="ray", storage_path=path, failure_config=FailureConfig(max_failures=RESTARTS)),
    )
    failed: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # Ray has several kinds of its own, with the loop's inside
            failed.append(error)

    stop_file(run).unlink(missing_ok=True)
    # Not in the main thread, where Ray Train would answer Ctrl-C itself: by killing the processes before they save.
    fitting = threading.Thread(target=fit, daemon=True)
    with StopSignal() as stop:
        fitting.start()
        while fitting.is_alive() and not stop.asked:
            fitting.join(0.2)
        if stop.asked:
            print("\nstopping when all have saved; once more to stop at once", file=sys.stderr, flush=True)
            stop_file(run).touch()
        cluster = ray.get_runtime_context().gcs_address
        while fitting.is_alive():
            fitting.join(0.2)
            try:
                check_reachable(cluster)
            except OSError:
                break  # a SIGTERM to all has ended it too, which Ray would take a minute to notice
    if stop_file(run).exists():
        stop_file(run).unlink()
        raise KeyboardInterrupt
    if failed:
        raise RunError(f"{root_message(failed[0]):.500}") from failed[0]


def run_on_worker(function: Callable[[Argument], Value], argument: Argument, share: WorkerResources) -> Value:
    """What a function gives on a machine, and with the GPU, that a worker would have.

    Raises:
        RunError: the function failed; in its own words.
    """
    import ray

    try:
        return ray.get(ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(function).remote(argument))
    except ray.exceptions.RayError as error:
        raise RunError(root_message(error)) from None


def root_message(error: BaseException) -> str:
    """What a trial's error says itself, without Ray's account of where it was raised."""
    while (cause := getattr(error, "cause", None)) is not None:
        error = cause
    return str(error)
