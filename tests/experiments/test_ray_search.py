"""The search on a cluster of three nodes: what is lost changes nothing, and what cannot be had is refused at once."""

import ast
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from rlmix.agent.ray_env import WorkerResources
from rlmix.experiments import train_agent
from rlmix.experiments.search import search
from rlmix.experiments.search.cluster import worker_capacity
from tests.envs.tiny import PAUSE
from tests.experiments.inline import skip_drawing
from tests.experiments.own_words import own_words
from tests.experiments.test_train_agent import OPTIONS, outcome, status_of
from tests.soak.writes import workers_here

ROOT = Path(__file__).parents[2]
NODE: dict[str, Any] = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
# Long enough to be disturbed four times; where nobody disturbs it, its network makes no pauses.
SEARCH = [*OPTIONS, "--episodes", "20", "--model", "tests.envs.tiny:patient"]
PAUSED = 0.05  # seconds
WORKER, DRIVER = "ray::RayWorker", "ray::ImplicitFunc"
PATIENCE = 600  # seconds; a busy machine takes some


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The machine of the command, and two others with room for the workers; three pretend GPUs in all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PAUSE, str(PAUSED))
        patch.setenv("PYTHONPATH", str(ROOT))  # the network is one of the tests'
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, **NODE})
        for _ in range(2):
            started.add_node(num_cpus=2, num_gpus=1, **NODE)
    yield started
    started.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same search leaves without Ray."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        skip_drawing(patch)
        patch.setattr(search, "ProcessVecEnv", workers_here)
        train_agent.main([*SEARCH, "--out", str(folder / "run")])
    return outcome(folder / "run")


def children(cluster: Cluster) -> dict[int, list[int]]:
    """The processes that each node's raylet has started; other clusters may run on this machine."""
    started: dict[int, list[int]] = {raylet(node): [] for node in cluster.list_all_nodes()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                above = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if above in started:
                started[above].append(int(entry.name))
    return started


def raylet(node: Any) -> int:
    return node.all_processes["raylet"][0].process.pid


def test_a_traceback_that_ray_logs_is_not_taken_for_ours() -> None:
    raised = 'Traceback (most recent call last):\n  File "a.py", line 3, in b\n    c()\nTimeoutError: late\n'
    record = f"2026-11-28 10:00:00,123\tERROR gcs.py:12 -- Safe to ignore:\n{raised}"
    repeated = "\x1b[36m(TrainController pid=12)\x1b[0m Traceback (most recent call last):\n(raylet) KeyError\n"
    assert own_words(f"worker 0: lost\n{record}{repeated}\ninterrupted\n") == "worker 0: lost\n\ninterrupted\n"
    for ours in (raised, f"{record}{raised}", f"{repeated}{raised}", f"{repeated}interrupted\n{raised}"):
        assert own_words(ours).endswith(raised)


@pytest.mark.slow
def test_interrupted_then_worker_driver_and_node_lost(
    cluster: Cluster,
    undisturbed: dict[str, bytes],
    start: Any,
    wait_until: Any,
    titled: Any,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"

    def ours(title: str) -> list[int]:
        return titled(title, [process for processes in children(cluster).values() for process in processes])

    def newest() -> str:
        return max((path.stem for path in run.glob("checkpoints/*.safetensors")), default="")

    asked = [*SEARCH, "--backend", "ray", "--address", cluster.address, "--out", "run"]
    process = start("train_agent.py", *asked, cwd=tmp_path, modules=ROOT)
    wait_until("a checkpoint", newest, running=process)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and "Traceback" not in own_words(err), err
    assert err.endswith("\ninterrupted; resume with: python experiments/train_agent.py --resume run --trust\n")
    wait_until("driver and workers to end", lambda: not ours(DRIVER) and not ours(WORKER))
    assert not (run / "summary.json").exists()

    before, lost = newest(), []

    def disturb() -> None:
        wait_until("more of the search", lambda: newest() > before)
        time.sleep(random.uniform(0, 0.5))
        os.kill(random.choice(ours(WORKER)), signal.SIGKILL)
        lost.append("worker")
        wait_until("another worker", lambda: len(ours(WORKER)) == 2)
        (driver,) = ours(DRIVER)
        os.kill(driver, signal.SIGKILL)
        lost.append("driver")
        wait_until("another driver", lambda: len(ours(WORKER)) == 2 and ours(DRIVER) not in ([], [driver]))
        own = ray.get_runtime_context().get_node_id()
        by_raylet = children(cluster)
        node = next(
            node for node in cluster.worker_nodes if titled(WORKER, by_raylet[raylet(node)]) and node.node_id != own
        )
        cluster.remove_node(node, allow_graceful=False)
        lost.append("node")

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    train_agent.main(["--resume", str(run), "--trust"])
    disturbing.join()
    cluster.add_node(num_cpus=2, num_gpus=1, **NODE)
    assert lost == ["worker", "driver", "node"]
    assert outcome(run) == undisturbed
    told = "".join(capfd.readouterr())
    assert "it is replaced and its episode repeated" in told
    assert told.count("it is restarted from its checkpoint") == 1


@pytest.mark.parametrize(
    ("asked", "room"),
    [
        (WorkerResources(1), 5),
        (WorkerResources(2), 2),
        (WorkerResources(4), 0),
        (WorkerResources(0.5), 10),
        (WorkerResources(0.25, 0.25), 12),
        (WorkerResources(0.1, 0.6), 3),  # two would not fit on one GPU
        (WorkerResources(1, 0.25), 5),
        (WorkerResources(1, 2), 0),
    ],
)
def test_room_is_what_the_machines_have(cluster: Cluster, asked: WorkerResources, room: int) -> None:
    ray.init(address=cluster.address, logging_level="ERROR", ignore_reinit_error=True)
    try:
        assert worker_capacity(asked) == room
    finally:
        ray.shutdown()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--workers 4 --cpus-per-worker 2", "room for 2 "),
        ("--workers 4 --gpus-per-worker 1", "room for 3 "),
        ("--cpus-per-worker 8", r"room for 0 \(3 machines: 1 CPU and 1 GPU; 2 CPU and 1 GPU; 2 CPU and 1 GPU\)"),
        ("--cpus-per-worker 0", "a worker's CPUs"),
        ("--gpus-per-worker 1.5", "a worker's GPUs"),
        ("--worker-timeout 0", "worker_timeout"),
        ("--gpus-per-worker 0.5 --device nonsense", "device must be"),
    ],
)
def test_what_the_cluster_cannot_hold_is_refused_at_once(
    cluster: Cluster, refused: Any, options: str, told: str
) -> None:
    asked = [*OPTIONS, "--backend", "ray", "--address", cluster.address, "--out", "run", *options.split()]
    assert re.search(told, refused(train_agent.main, asked))


@pytest.mark.parametrize("options", ["--address auto", "--gpus-per-worker 0.5"])
def test_options_of_ray_alone_are_refused(refused: Any, options: str) -> None:
    assert "--backend ray" in refused(train_agent.main, [*OPTIONS, "--out", "run", *options.split()])


def test_no_cluster_there(refused: Any) -> None:
    asked = [*OPTIONS, "--backend", "ray", "--address", "127.0.0.1:1", "--out", "run"]
    assert "expected a Ray cluster at 127.0.0.1:1" in refused(train_agent.main, asked)


@pytest.mark.slow
def test_failing_search_is_told_in_its_own_words(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [*OPTIONS, "--backend", "ray", "--address", cluster.address, "--out", str(tmp_path / "run")]
    assert status_of([*asked, *"--lr 1e30 --episodes 4 --workers 1".split()]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line == "error: every training under the greedy agent diverged: search longer, or with a lower --lr"


def test_ray_listens_on_loopback_alone() -> None:
    """In a process of its own, since where Ray listens is settled when it is imported."""
    code = """
from rlmix.experiments.search.cluster import ray_session
import os, pathlib
def listening():
    own = {os.readlink(f"/proc/{p}/fd/{f}") for p in os.listdir("/proc") if p.isdigit() and owned(p)
           for f in os.listdir(f"/proc/{p}/fd") if pathlib.Path(f"/proc/{p}/fd/{f}").is_symlink()}
    for table in ("tcp", "tcp6"):
        for line in open(f"/proc/net/{table}").readlines()[1:]:
            _, local, _, state, *_, = line.split()
            inode = line.split()[9]
            if state == "0A" and f"socket:[{inode}]" in own:
                yield local.split(":")[0]
def owned(process):
    try:
        status = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(status[3]) == os.getsid(0) or int(status[1]) == os.getpid() or process == str(os.getpid())
with ray_session(None):
    import ray
    ray.get(ray.remote(num_cpus=0)(lambda: None).remote())
    print(sorted(set(listening())))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode == 0, done.stderr
    addresses = ast.literal_eval(done.stdout.splitlines()[-1])
    assert addresses
    # 127.0.0.1, and the same written as IPv6, as the kernel's tables have them
    assert set(addresses) <= {"0100007F", "0000000000000000FFFF00000100007F"}
