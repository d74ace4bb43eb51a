"""Ray for the commands: sessions, capacity of a cluster, trials in placement groups, and distributed training.

A trial's driver stays on the command's machine, where the run folder is; its workers go wherever there is room.
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

DRIVER_MEMORY = 500 * 2**20  # bytes that a trial's driver reserves, as a bundle without a CPU needs some resource
RESTARTS = 3  # of a trial or of a distributed training, before its error is final
REPORTED_SECONDS = 3.0  # machines may take this long to report freed resources
NODE_LABEL = "ray.io/node-id"


@contextmanager
def ray_session(address: str | None, *, cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray while the block runs.

    Args:
        address: address of a cluster, or `auto` for the one that this machine belongs to; None starts Ray on this
            machine, on loopback alone and without a dashboard.
        cpus: number of CPUs that Ray started here declares; optional, defaults to those of the machine.

    Raises:
        RunError: Ray is not installed, or there is no such cluster.
    """
    if address is None:
        # Makes Ray's servers bind to 127.0.0.1. Ray reads it when it is imported.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # Ctrl-C is the command's own to handle: it stops at once, and its run folder can be resumed.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Otherwise Ray Train prints everything that a worker prints twice.
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
                    check_reachable(address)  # Ray itself tries for minutes, then ends the process
                ray.init(address=address, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise RunError(
                f"expected a Ray cluster at {address or 'this machine'}, got: {' '.join(str(error).split()):.200}; "
                "start one with `ray start --head`, or leave --address out to have Ray started on this machine"
            ) from None
        interrupt_on_sigterm()  # Ray has replaced the handler by its own
        yield
    finally:
        ray.shutdown()


def check_reachable(address: str) -> None:
    """Check that a server listens at `HOST:PORT`.

    Raises:
        OSError: none does.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), timeout=5).close()


def worker_capacity(share: WorkerResources) -> int:
    """Return the number of workers that the connected cluster could hold, whatever runs there now."""
    import ray

    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            by_cpu = int(resources.get("CPU", 0) / share.cpus + 1e-6)
            gpus = resources.get("GPU", 0)
            if share.gpus == 0:
                room += by_cpu
            elif share.gpus <= 1:  # a worker's fraction is of a single GPU
                room += min(by_cpu, int(gpus) * int(1 / share.gpus + 1e-6))
            else:
                room += min(by_cpu, int(gpus / share.gpus))
    return room


def check_capacity(
    workers: int,
    share: WorkerResources,
    *,
    advice: str = "--workers, or for less with --cpus-per-worker or --gpus-per-worker",
) -> None:
    """Check that the connected cluster can hold the workers; print a note if it is too busy now.

    Args:
        workers: number of workers.
        share: resources of each.
        advice: options to ask for fewer with, of the command; optional, defaults to those of a search.

    Raises:
        RunError: it has too few CPUs or GPUs.
    """
    import ray

    room = worker_capacity(share)
    if room < workers:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        machines = "; ".join(sorted(f"{node.get('CPU', 0):g} CPU and {node.get('GPU', 0):g} GPU" for node in nodes))
        raise RunError(
            f"expected room for {workers} workers with {share} each, got a cluster with room for {room} ({len(nodes)} "
            f"machines: {machines}); ask for fewer with {advice}"
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
    """Return a placement group: a driver without a CPU on this machine, and the workers wherever there is room."""
    import ray
    from ray.tune import PlacementGroupFactory

    worker = {"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}
    here: list[dict[str, str]] = [{NODE_LABEL: ray.get_runtime_context().get_node_id()}]
    return PlacementGroupFactory(
        [{"memory": DRIVER_MEMORY}, *[worker] * workers], bundle_label_selector=here + [{}] * workers
    )


def single_resources(share: WorkerResources) -> PlacementGroupFactory:
    """Return the resources of a trial that trains without workers."""
    from ray.tune import PlacementGroupFactory

    return PlacementGroupFactory([{"CPU": share.cpus, **({"GPU": share.gpus} if share.gpus else {})}])


def tune_setting(run: Path, *, verbose: int) -> RunConfig:
    """Return Tune's configuration of a run: a trial that fails, or whose process is lost, is restarted.

    Args:
        run: run folder; Tune's own files go into its folder `ray`.
        verbose: verbosity of Tune, from 0 (silent) to 2.
    """
    from ray import tune

    class RecoveryLogger(tune.Callback):
        """Callback that reports on standard error that a trial is restarted."""

        def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
            reason = " ".join(root_message(trial.get_pickled_error()).split())
            print(
                f"trial {trial.trial_id} failed ({reason:.240}); it is restarted from its checkpoint",
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
        trainable: function called with `run`, the path of the run folder; resumes from the folder's checkpoint.
        run: run folder; Tune's own files go into its folder `ray`.
        workers: number of actors that the trial starts.
        share: resources of each actor.

    Raises:
        RunError: the trial failed; has the trial's own message.
    """
    from ray import tune

    def trial(parameters: dict[str, str]) -> None:
        try:
            trainable(parameters)
        except InputError as error:  # a restart would fail in the same way
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


def run_distributed(loop: Callable[[dict[str, str]], None], run: Path, workers: int, share: WorkerResources) -> None:
    """Run a training loop in the processes of one `torch.distributed` group; all are restarted when one is lost.

    The first Ctrl-C or SIGTERM creates a file that the loop looks for; the second one ends everything at once.

    Args:
        loop: function called in each process with `run`, the path of the run folder. It resumes from the folder's
            checkpoint, and saves and returns once the file `stop_file(run)` exists. If it finishes the training all
            the same, it removes that file.
        run: run folder; Ray Train's own files go into its folder `ray`.
        workers: number of processes.
        share: resources of each process.

    Raises:
        RunError: the cluster is too small, or the loop failed; has the loop's own message.
        KeyboardInterrupt: the loop was asked to stop, and has saved.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        """Ray's trainer without its cleaner of the placement group, which ends with this process anyway.

        The cleaner needs a dashboard; without one it delays the end by 12 seconds and prints a traceback.
        """

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # of Ray Train's version 2, chosen at run time
            return [callback for callback in callbacks if type(callback).__name__ != "PlacementGroupCleanerCallback"]

    check_capacity(workers, share, advice="--num-workers, or for less with --threads")
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
    errors: list[Exception] = []

    def fit() -> None:
        try:
            trainer.fit()
        except Exception as error:  # Ray wraps the loop's error in one of several kinds of its own
            errors.append(error)

    stop_file(run).unlink(missing_ok=True)
    # Not in the main thread, where Ray Train handles Ctrl-C by killing the processes before they save.
    thread = threading.Thread(target=fit, daemon=True)
    with StopSignal() as stop:
        thread.start()
        while thread.is_alive() and not stop.asked:
            thread.join(0.2)
        if stop.asked:
            print("\nstopping when all processes have saved; repeat to stop at once", file=sys.stderr, flush=True)
            stop_file(run).touch()
        cluster = ray.get_runtime_context().gcs_address
        while thread.is_alive():
            thread.join(0.2)
            try:
                check_reachable(cluster)
            except OSError:
                break  # a SIGTERM to all processes has ended the cluster too; Ray takes a minute to notice
    if stop_file(run).exists():
        stop_file(run).unlink()
        raise KeyboardInterrupt
    if errors:
        raise RunError(f"{root_message(errors[0]):.500}") from errors[0]


def run_on_worker(function: Callable[[Argument], Value], argument: Argument, share: WorkerResources) -> Value:
    """Call a function where a worker would run, with a worker's resources, and return its result.

    Raises:
        RunError: the function failed; has its own message.
    """
    import ray

    try:
        return ray.get(ray.remote(num_cpus=share.cpus, num_gpus=share.gpus)(function).remote(argument))
    except ray.exceptions.RayError as error:
        raise RunError(root_message(error)) from None


def root_message(error: BaseException) -> str:
    """Return the message of the error that Ray has wrapped, without Ray's traceback."""
    while (cause := getattr(error, "cause", None)) is not None:
        error = cause
    return str(error)
