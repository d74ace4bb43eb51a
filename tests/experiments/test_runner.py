"""Trainings in parallel: each runs once, its result is kept in the log, and what was interrupted resumes."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlmix.experiments.comparison import runner
from rlmix.experiments.comparison.held_out import TEST_READS, record_test_read
from rlmix.experiments.comparison.runner import TrainingLog
from rlmix.experiments.runs.errors import RunError
from tests.experiments.inline import run_inline


def training(name: str) -> dict[str, Any]:
    return {"name": name, "length": len(name)}


def dying(_: str) -> dict[str, Any]:
    os._exit(9)


def by_name(lines: Any) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in lines}


def jobs(*names: str) -> dict[str, Any]:
    return {name: functools.partial(training, name) for name in names}


def test_only_what_is_missing_runs_and_a_torn_line_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran, path = run_inline(monkeypatch), tmp_path / "runs.jsonl"
    first = TrainingLog(path, by_name)
    first.run(jobs("b", "aa"), processes=1, describe=lambda line: f"training {line['name']}")
    assert ran == ["b", "aa"] and path.read_bytes() == b'{"name": "b", "length": 1}\n{"name": "aa", "length": 2}\n'
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "2 trainings, 0 of them finished before"
    assert out[1].startswith("    1 of 2 ") and out[1].endswith("training b") and out[2].startswith("    2 of 2 ")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    log = TrainingLog(path, by_name)
    assert list(log.finished) == ["b"] and path.read_bytes() == whole[: whole.index(b"\n") + 1]
    assert log.missing(jobs("ccc", "b", "aa")) == ["ccc", "aa"]
    ran.clear()
    log.run(jobs("aa", "b"), processes=1, describe=str)
    assert ran == ["aa"] and path.read_bytes() == whole and log.finished["aa"]["length"] == 2
    assert capsys.readouterr().out.startswith("2 trainings, 1 of them finished before\n    2 of 2 ")


def test_each_line_is_kept_before_the_next_training_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_inline(monkeypatch)
    path = tmp_path / "runs.jsonl"

    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TrainingLog(path, by_name).run({**jobs("a"), "b": interrupted}, processes=1, describe=str)
    assert list(TrainingLog(path, by_name).finished) == ["a"]


def test_a_log_of_something_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    path.write_text('{"title": "x"}\n{"ti')
    with pytest.raises(RunError, match=r"runs\.jsonl"):
        TrainingLog(path, by_name)
    assert path.read_text() == '{"title": "x"}\n{"ti'


def test_results_of_other_processes_come_with_their_keys() -> None:
    """Keys need not be in the results."""
    named = {f"key {name}": job for name, job in jobs("a", "bb", "ccc").items()}
    found = dict(runner.run_all(named, 2))
    assert found == {f"key {name}": {"name": name, "length": len(name)} for name in ("a", "bb", "ccc")}


def test_a_process_that_dies_is_an_error_with_advice() -> None:
    with pytest.raises(RunError, match="fewer --processes"):
        list(runner.run_all({"a": functools.partial(dying, "a")}, 1))


SLEEPERS = """
import functools, os, sys, time
from pathlib import Path
from rlmix.experiments.comparison.runner import training_processes

def sleep(folder, name):
    (Path(folder) / f"{name}.{os.getpid()}").touch()
    time.sleep(600)

if __name__ == "__main__":
    with training_processes(2) as run:
        list(run({name: functools.partial(sleep, sys.argv[1], name) for name in "ab"}))
"""


def test_processes_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "sleepers.py").write_text(SLEEPERS)
    folder = tmp_path / "began"
    folder.mkdir()
    parent = subprocess.Popen([sys.executable, tmp_path / "sleepers.py", folder])

    def running() -> list[str]:
        numbers = [file.suffix[1:] for file in folder.iterdir()]
        return [number for number in numbers if Path(f"/proc/{number}").exists()]

    wait_until(lambda: len(running()) == 2)
    parent.kill()
    parent.wait()
    wait_until(lambda: not running())


def wait_until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_readings_of_the_test_set_are_recorded(tmp_path: Path) -> None:
    for count in (10, 20):
        record_test_read(tmp_path, "python evaluate.py", images=count)
    lines = [json.loads(line) for line in (tmp_path / TEST_READS).read_text().splitlines()]
    assert [line["images"] for line in lines] == [10, 20]
    assert all(line["command"] == "python evaluate.py" and line["at"][:2] == "20" for line in lines)
