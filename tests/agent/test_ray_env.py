"""Workers on a Ray cluster: what they give does not depend on which of them dies, hangs or fails for a while."""

import os
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from rlmix.agent import ray_env
from rlmix.agent.ray_env import RayVecEnv, RayWorker, WorkerResources
from rlmix.agent.vec_env import WorkerFailedError
from rlmix.agent.workers import EpisodeCursor, Worker, episode_seed
from rlmix.classifier.errors import DataWarning
from tests.agent.stub import Stub, stub_workers

ROOT = Path(__file__).parents[2]
WORKERS = 5
SHARE = WorkerResources(cpus=0.5, gpus=0.25)
PATIENCE = 120  # seconds; a busy machine takes some


class Watched(Stub):
    """A stub that says which process it is in and which GPUs it sees, and raises while there is a file `folder/raise`.

    Args:
        folder: where the file is looked for.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def step(self, action: Any) -> Any:
        if (self._folder / "raise").exists():
            raise ValueError("the classifier has no legs")
        return super().step(action)

    def process(self) -> int:
        return os.getpid()

    def devices(self) -> str:
        return os.environ.get("CUDA_VISIBLE_DEVICES", "")


def watched_worker(folder: Path, index: int, position: EpisodeCursor) -> Worker:
    return Worker(Watched(folder), 3, index, position)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    """A machine with 4 CPUs and 2 declared GPUs."""
    ray.init(
        "local",  # not a cluster that another test runs at the same time
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the workers look for trouble."""
    return tmp_path_factory.mktemp("trouble")


@pytest.fixture(scope="module")
def shared(connected: None, folder: Path) -> Iterator[RayVecEnv]:
    """Workers for every test: starting one takes seconds."""
    positions = [EpisodeCursor()] * WORKERS
    vector = RayVecEnv(partial(watched_worker, folder), positions, share=SHARE, timeout=PATIENCE)
    yield vector
    vector.close()


@pytest.fixture
def workers(shared: RayVecEnv, monkeypatch: pytest.MonkeyPatch) -> RayVecEnv:
    """The shared workers at the start of their search, no episode running; slow starts are not told."""
    monkeypatch.setattr(ray_env, "NOTICE_SECONDS", ray_env.START_SECONDS)
    shared.env_method("seek", EpisodeCursor())
    return shared


def signal_one(vector: RayVecEnv, index: int, number: signal.Signals) -> int:
    (process,) = vector.env_method("process", indices=index)
    os.kill(process, number)
    return process


def same_as_here(vector: RayVecEnv, disturb: Callable[[int], Any] = lambda _: None) -> None:
    """Ten steps of the workers against those in this process, something being done to them before each step."""
    positions = [
        EpisodeCursor(),
        EpisodeCursor("greedy", 4, ((2, 0, 0, 0), (3, 1, 0, 0))),
        *[EpisodeCursor("search", 2)] * 3,
    ]
    for index, position in enumerate(positions):
        vector.env_method("seek", position, indices=index)
    here = stub_workers(positions)
    np.testing.assert_array_equal(vector.reset(), here.reset())
    for step in range(10):
        disturb(step)
        actions = np.array([(step % 7, 0, 0, worker % 3) for worker in range(WORKERS)])
        for mine, expected in zip(vector.step(actions), here.step(actions), strict=True):
            if isinstance(mine, list):
                assert [set(info) for info in mine] == [set(info) for info in expected]
                assert [info["episode_seed"] for info in mine] == [info["episode_seed"] for info in expected]
            else:
                np.testing.assert_array_equal(mine, expected)


# What they give


def test_workers_give_what_workers_in_this_process_give(workers: RayVecEnv) -> None:
    same_as_here(workers)


def test_methods_and_attributes_reach_the_environment(workers: RayVecEnv) -> None:
    assert workers.get_attr("_index") == list(range(WORKERS))
    processes = workers.env_method("process")
    assert len(set(processes)) == WORKERS
    assert workers.env_method("process", indices=[3, 1]) == [processes[3], processes[1]]
    assert workers.env_is_wrapped(Worker) == [True] * WORKERS
    assert workers.env_is_wrapped(Stub, indices=0) == [False]  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="colour"):
        workers.set_attr("colour", 3)


def test_quarters_of_a_gpu_are_placed_four_to_a_device(workers: RayVecEnv) -> None:
    assert sorted(Counter(workers.env_method("devices")).items(), key=lambda entry: entry[1]) in (
        [("1", 1), ("0", 4)],
        [("0", 1), ("1", 4)],
    )


# Faults


def test_killed_workers_are_replaced_and_nothing_else_changes(
    workers: RayVecEnv, capsys: pytest.CaptureFixture[str]
) -> None:
    victims = {1: 1, 4: 0}  # by step: in the middle of an episode, and between two
    same_as_here(workers, lambda step: step in victims and signal_one(workers, victims[step], signal.SIGKILL))
    told = capsys.readouterr().err.splitlines()
    for line, worker in zip(told, victims.values(), strict=True):
        assert line.startswith(f"worker {worker}: was lost (") and "killed" in line, "Ray's own words about the cause"
        assert line.endswith("; it is replaced and its episode repeated")


def test_hanging_worker_is_noticed_told_and_replaced(
    workers: RayVecEnv, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "_timeout", 4.0)
    hung: list[int] = []
    same_as_here(workers, lambda step: step == 2 and hung.append(signal_one(workers, 0, signal.SIGSTOP)))
    # On a busy machine others may have seemed to hang too.
    told = capsys.readouterr().err.splitlines()
    assert "worker 0: gave no answer in time (4 seconds a step); it is replaced and its episode repeated" in told
    wait_until(lambda: not alive(hung[0]))


def test_killed_between_being_moved_and_starting(workers: RayVecEnv) -> None:
    """A replacement stands where the lost one was sent, though another episode was running."""
    workers.reset()
    workers.step(np.zeros((WORKERS, 4), dtype=int))
    workers.env_method("seek", EpisodeCursor("contest", 7))
    signal_one(workers, 0, signal.SIGKILL)
    workers.step(np.zeros((WORKERS, 4), dtype=int))
    workers.reset()
    assert [info["episode_seed"] for info in workers.reset_infos] == [
        episode_seed(3, "contest", worker, 7) for worker in range(WORKERS)
    ]


def test_worker_that_fails_again_and_again_ends_the_search_with_its_own_error(
    workers: RayVecEnv, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workers.reset()
    (folder / "raise").touch()
    with pytest.raises(WorkerFailedError, match=r"worker 0 failed 3 times in a row: ValueError: .* has no legs"):
        workers.step(np.zeros((WORKERS, 4), dtype=int))
    assert capsys.readouterr().err.count("it is replaced") == 2
    (folder / "raise").unlink()
    same_as_here(workers)


def test_worker_that_cannot_be_built_ends_the_search_with_its_own_error(connected: None) -> None:
    def make(index: int, position: EpisodeCursor) -> Worker:
        raise ValueError("no such classifier")

    with pytest.raises(WorkerFailedError, match=r"worker 0 failed 1 times in a row: ValueError: no such classifier"):
        RayVecEnv(make, [EpisodeCursor()], share=WorkerResources(0.1), max_failures=1)


def test_workers_do_not_repeat_what_is_odd_about_the_data(tmp_path: Path) -> None:
    def make(index: int, position: EpisodeCursor) -> Worker:
        warnings.warn("2 of 9 images are the same", DataWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return watched_worker(tmp_path, index, position)

    worker = RayWorker(make, 0, EpisodeCursor(), torch.get_num_threads())
    with pytest.warns(UserWarning) as told:
        worker.build()
        warnings.warn("1 of 9 images is damaged", DataWarning, stacklevel=1)  # what is said later is not lost
    assert [str(one.message) for one in told] == ["something else", "1 of 9 images is damaged"]


def test_waiting_for_a_machine_is_told(
    connected: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ray_env, "NOTICE_SECONDS", 0.5)
    monkeypatch.setattr(ray_env, "START_SECONDS", 0.5)
    with pytest.raises(WorkerFailedError, match=r"did not start within 0\.5 seconds: it needs 50 CPU, not free"):
        RayVecEnv(partial(watched_worker, ROOT), [EpisodeCursor()], share=WorkerResources(50), max_failures=1)
    told = capsys.readouterr().err
    assert "worker 0 has not started yet; it needs 50 CPU, free in the cluster: " in told and "of 4 CPU, " in told


# Shares


def test_threads_are_the_share_of_cpus() -> None:
    assert [WorkerResources(cpus).threads for cpus in (0.25, 1, 1.5, 4)] == [1, 1, 1, 4]


@pytest.mark.parametrize(("cpus", "gpus"), [(0, 0), (-1, 0), (float("nan"), 0), (1, -0.5), (1, 1.5), (1, float("inf"))])
def test_share_out_of_range_is_refused(cpus: float, gpus: float) -> None:
    with pytest.raises(ValueError, match="worker's"):
        WorkerResources(cpus, gpus)


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"it did not come to be within {PATIENCE} seconds")
        time.sleep(0.01)
