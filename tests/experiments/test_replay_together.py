"""Final training in two processes through Ray Train: interrupted and killed, it ends as one never disturbed."""

import json
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, distributed, multiprocessing, nn

from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments import replay_policy
from rlmix.experiments.training import replay
from tests.envs.tiny import PAUSE, network
from tests.experiments.own_words import own_words

UPDATES = 240
PAUSED = 0.02  # seconds of each pass of the training that is to be disturbed
OPTIONS = (
    "--policy policy.json --dataset digits --model tests.envs.tiny:patient --validation-size 200 --batch-size 40 "
    f"--updates {UPDATES} --lr 0.05 --evaluations 4 --precision fp32 --compile off --checkpoint-seconds 0.2 --seed 3"
).split()
ROOT = Path(__file__).parents[2]
TRAINER = "ray::RayTrainWorker"
BREAKS_AT = 80  # pass of a network in training


@pytest.fixture
def policy(tmp_path: Path) -> None:
    schedule = PolicySchedule(
        ((0.5, MixPolicy({"clean": 0.5, "rmix": 0.5})), (1.0, MixPolicy({"clean": 0.5, "cutmix": 0.5})))
    )
    schedule.save(tmp_path / "policy.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--num-workers 0", "num_workers must be at least 1"),
        ("--num-workers 3", "--batch-size must be divisible by --num-workers 3"),
        ("--num-workers 2 --compile on", "--compile on"),
        ("--address auto", "--num-workers"),
    ],
)
def test_refused_in_one_line(refused: Any, policy: None, options: str, told: str) -> None:
    assert told in refused(replay_policy.main, [*OPTIONS, "--out", "run", *options.split()])


def in_two_processes(rank: int, run: Path) -> None:
    os.chdir(run.parent)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{run.parent}/meeting", rank=rank, world_size=2)
    replay.ddp_worker({"run": str(run)})
    distributed.destroy_process_group()


class BreaksOnce(nn.Module):
    """A network whose output is not a number once, in the second process alone, at a pass of its training."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.network = network(num_classes, in_channels)
        self.passes = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += self.training and torch.is_grad_enabled()
        wrong = self.passes == BREAKS_AT and distributed.is_initialized() and distributed.get_rank() == 1
        output: Tensor = self.network(images)
        return output * torch.nan if wrong else output


def test_what_one_process_sees_takes_all_of_them_back(
    policy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def without_ray(_loop: Any, run: Path, workers: int, _share: Any) -> None:
        multiprocessing.spawn(in_two_processes, (run.resolve(),), nprocs=workers)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(replay, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(replay, "run_distributed", without_ray)
    options = ["--model", f"{__name__}:BreaksOnce", "--updates", "160", "--num-workers", "2", "--threads", "1"]
    replay_policy.main([*OPTIONS, *options, "--out", "run"])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    told = summary["went_back"]
    # Evaluations come every 40 updates, a look at the loss every 20; an update of these policies takes a pass or two.
    assert told["to_update"] % 40 == 0 and 0 < told["from_update"] - told["to_update"] <= 40
    assert BREAKS_AT / 2 - 1 <= told["from_update"] <= BREAKS_AT + 20
    assert told["lr"] == 0.025 and "was not finite before update" in told["reason"]
    assert summary["test"]["accuracy"] > 0.5
    assert capfd.readouterr().err.count("and resumed with half the learning rate") == 1


@pytest.mark.slow
def test_interrupted_and_killed_goes_on_where_it_was_and_ends_near_one_process(
    start: Any,
    wait_until: Any,
    members: Any,
    titled: Any,
    policy: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    killed = tmp_path / "killed"

    def trainers() -> list[int]:
        """The training processes, which a raylet of the command's group has started."""
        return titled(TRAINER, children(members(process)))

    def newest() -> int:
        return max((int(path.stem) for path in (killed / "checkpoints").glob("*.safetensors")), default=0)

    monkeypatch.setenv(PAUSE, str(PAUSED))
    asked = [*OPTIONS, "--num-workers", "2", "--threads", "1", "--out", "killed"]
    process = start("replay_policy.py", *asked, cwd=tmp_path, modules=ROOT)
    wait_until("a checkpoint", newest, running=process)
    trained_by = trainers()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal sends Ctrl-C, to all of them
    _, err = process.communicate(timeout=900)
    assert process.returncode == 130 and "Traceback" not in own_words(err), err
    assert err.endswith("\ninterrupted; resume with: python experiments/replay_policy.py --resume killed --trust\n")
    wait_until("all of them to end", lambda: not titled(TRAINER, trained_by))
    saved = newest()
    assert len(trained_by) == 2 and 0 < saved < UPDATES and not (killed / "stop").exists()

    process = start("replay_policy.py", "--resume", "killed", "--trust", cwd=tmp_path, modules=ROOT)
    wait_until("another checkpoint", lambda: newest() > saved, running=process)
    os.kill(trainers()[0], signal.SIGKILL)
    assert newest() < UPDATES
    _, err = process.communicate(timeout=900)
    assert process.returncode == 0, err

    # The same without Ray, undisturbed.
    monkeypatch.delenv(PAUSE)
    (tmp_path / "undisturbed").mkdir()
    for name in ("config.json", "policy.json"):
        shutil.copy(killed / name, tmp_path / "undisturbed" / name)
    multiprocessing.spawn(in_two_processes, (tmp_path / "undisturbed",), nprocs=2)
    assert (killed / "model.safetensors").read_bytes() == (tmp_path / "undisturbed/model.safetensors").read_bytes()

    # Batch statistics and partners are those of half a batch: near one process, not equal to it.
    monkeypatch.chdir(tmp_path)
    replay_policy.main([*OPTIONS, "--threads", "1", "--out", "alone"])
    curves = [clean_losses(tmp_path / name) for name in ("alone", "undisturbed")]
    assert len(curves[0]) == len(curves[1])
    gaps = [abs(one - other) for one, other in zip(*curves, strict=True)]
    assert sum(gaps) < 0.1 * sum(curves[0])
    accuracies = [
        json.loads((tmp_path / name / "summary.json").read_text())["test"]["accuracy"]
        for name in ("alone", "undisturbed")
    ]
    assert abs(accuracies[0] - accuracies[1]) < 0.05


def children(parents: Sequence[int]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if int(parent) in parents:
                found.append(int(entry.name))
    return found


def clean_losses(run: Path) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars("train/clean_loss")]
