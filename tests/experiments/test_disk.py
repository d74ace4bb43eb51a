"""What a run takes of the disk: no more than is told, and not told ten times too large."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlmix.experiments import train_agent, train_classifier
from rlmix.experiments.runs import disk
from rlmix.experiments.runs.disk import SCALAR, tell_disk
from rlmix.experiments.search import search
from tests.experiments.test_train_agent import OPTIONS
from tests.soak.writes import workers_here

FINAL = (
    "--dataset digits --train-size 200 --batch-size 50 --validation-size 100 --precision fp32 --compile off "
    "--threads 1 --method rmix --checkpoint-seconds 0"
).split()
PER_BATCH = (
    "--dataset digits --train-size 60 --batch-size 20 --validation-size 100 --device cpu --precision fp32 "
    "--compile off --threads 1 --checkpoint-seconds 0 --ppo.n-steps 12 --ppo.batch-size 4 --ppo.epochs 1"
)


def taken(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def told(out: str, run: Path) -> float:
    """Bytes, as the command told."""
    (megabytes,) = re.findall(rf"^disk: at most ([\d,]+) MB in {re.escape(str(run))}$", out, re.MULTILINE)
    return 1e6 * float(megabytes.replace(",", ""))


def scalars(run: Path) -> int:
    """Bytes of TensorBoard's events without pictures."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

    records = [record for path in run.rglob("events.*") for record in RawEventFileLoader(str(path)).Load()]
    return sum(len(record) + 16 for record in records if len(record) < 4000)


def test_a_search_takes_no_more_than_it_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "ProcessVecEnv", workers_here)
    sizes, bounds = [], []
    for episodes in (8, 160):
        run = tmp_path / str(episodes)
        train_agent.main([*OPTIONS, "--reward", "change", "--episodes", str(episodes), "--out", str(run)])
        sizes.append(taken(run))
        bounds.append(told(capsys.readouterr().out, run))
        lines = (run / "episodes.jsonl").read_text().splitlines()
        assert len(lines) == episodes and max(map(len, lines)) < 300 + 120 * 4
        assert scalars(run) < disk.FIXED / 4 + episodes / 4 * (20 + 18) * SCALAR
        assert sizes[-1] < bounds[-1] < 12 * sizes[-1]
    assert sizes[1] - sizes[0] < bounds[1] - bounds[0] < 12 * (sizes[1] - sizes[0])


@pytest.mark.parametrize("updates", [20, 2000])
def test_a_training_takes_no_more_than_it_tells(
    updates: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train_classifier.main([*FINAL, "--updates", str(updates), "--out", str(run)])
    bound = told(capsys.readouterr().out, run)
    assert taken(run) < bound < 12 * taken(run)
    # Three at a time: two that are kept, and the one that is being written.
    largest = max(checkpoint.stat().st_size for checkpoint in (run / "checkpoints").iterdir())
    assert 3 * largest < bound - disk.FIXED / 2


@pytest.mark.parametrize(("thresholds", "updates"), [("learned", 24), ("random", 24), ("random", 240)])
def test_a_per_batch_training_takes_no_more_than_it_tells(
    thresholds: str, updates: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = f"{PER_BATCH} --thresholds {thresholds} --updates {updates} --out {run}"
    train_agent.main(options.split())
    bound = told(capsys.readouterr().out, run)
    assert taken(run) < bound < 12 * taken(run)


def test_a_full_disk_is_told_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def usage(_: Any) -> SimpleNamespace:
        return SimpleNamespace(free=30_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    tell_disk(tmp_path, 30_000_000)
    out, err = capsys.readouterr()
    assert told(out, tmp_path) == 30_000_000 and not err
    tell_disk(tmp_path, 31_000_000)
    assert "may come to need 31 MB more, and 30 MB are free there" in capsys.readouterr().err
    (tmp_path / "of an earlier start").write_bytes(bytes(1_000_000))
    tell_disk(tmp_path, 31_000_000)
    assert not capsys.readouterr().err
