"""Final training in two processes through Ray Train: killed and resumed it ends as one never stopped."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from classifier.files import load_state
from classifier.mixing import MixPolicy, PolicySchedule
from experiments import replay_policy

OPTIONS = (
    "--policy policy.json --dataset digits --model tests.envs.tiny:network --validation-size 200 --batch-size 40 "
    "--updates 400 --lr 0.05 --evaluations 4 --precision fp32 --compile off --checkpoint-seconds 0.2 --seed 3"
).split()
ROOT = Path(__file__).parents[2]


@pytest.fixture
def policy(tmp_path: Path) -> None:
    schedule = PolicySchedule(
        ((0.5, MixPolicy({"clean": 0.5, "rmix": 0.5})), (1.0, MixPolicy({"clean": 0.5, "cutmix": 0.5})))
    )
    schedule.save(tmp_path / "policy.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--num-workers 0", "--num-workers must be at least 1"),
        ("--num-workers 3", "--batch-size must part into 3 slices"),
        ("--num-workers 2 --compile on", "--compile on"),
        ("--address auto", "--num-workers"),
    ],
)
def test_refused_in_one_line(refused: Any, policy: None, options: str, told: str) -> None:
    assert told in refused(replay_policy.main, [*OPTIONS, "--out", "run", *options.split()])


@pytest.mark.slow
def test_killed_and_resumed_and_near_one_process(
    start: Any, wait_until: Any, policy: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: str) -> Any:
        return start("replay_policy.py", *arguments, cwd=tmp_path, modules=ROOT)

    undisturbed = run(*OPTIONS, "--num-workers", "2", "--out", "undisturbed")
    _, err = undisturbed.communicate(timeout=300)
    assert undisturbed.returncode == 0, err

    process = run(*OPTIONS, "--num-workers", "2", "--out", "killed")
    wait_until("a checkpoint", lambda: any((tmp_path / "killed/checkpoints").glob("*.safetensors")), running=process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    wait_until("the lock", lambda: not locked(tmp_path / "killed"))
    newest = max((tmp_path / "killed/checkpoints").glob("*.safetensors"))
    assert load_state(newest)["trainer"]["updates_done"] < 400
    process = run("--resume", "killed")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert (tmp_path / "killed/model.safetensors").read_bytes() == (
        tmp_path / "undisturbed/model.safetensors"
    ).read_bytes()

    # Batch statistics and partners are those of half a batch: near one process, not equal to it.
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    replay_policy.main([*OPTIONS, "--threads", "1", "--out", "alone"])
    curves = [clean_losses(tmp_path / name) for name in ("alone", "undisturbed")]
    assert len(curves[0]) == len(curves[1]) == 20
    gaps = [abs(one - other) for one, other in zip(*curves, strict=True)]
    assert sum(gaps) / len(gaps) < 0.1 * sum(curves[0]) / len(curves[0])
    accuracies = [json.loads((tmp_path / name / "summary.json").read_text())["test"]["accuracy"] for name in
                  ("alone", "undisturbed")]  # fmt: skip
    assert abs(accuracies[0] - accuracies[1]) < 0.05


def clean_losses(run: Path) -> list[float]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return [event.value for event in events.Scalars("train/clean_loss")]


def locked(run: Path) -> bool:
    """Whether the process that the lock names still runs."""
    return Path(f"/proc/{(run / 'lock').read_text().strip()}").exists()
