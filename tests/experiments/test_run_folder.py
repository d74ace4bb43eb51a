"""A run's folder: one owner, files that are whole, and what is read back after a crash."""

import errno
import fcntl
import gc
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from rlmix.classifier.data import DataError
from rlmix.classifier.files import DamagedFileError, LineLog, save_state
from rlmix.classifier.mixing import PolicyError
from rlmix.experiments.runs import folder
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError, exit_on_user_error
from rlmix.experiments.runs.folder import KEPT_CHECKPOINTS, RunFolder
from rlmix.experiments.runs.signals import StopSignal, interrupt_later


@dataclass(frozen=True)
class Inner:
    rate: float = 0.1


@dataclass(frozen=True)
class Outer:
    size: tuple[int, int] = (1, 2)
    name: str | None = None
    inner: Inner = field(default_factory=Inner)


# The folder


def test_new_folders_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [RunFolder.create(None, "agent").path for _ in range(4)]
    assert len(set(folders)) == 4
    assert all(folder.is_relative_to("runs") and folder.name.startswith("agent-") for folder in folders)


def test_configuration_comes_back(tmp_path: Path) -> None:
    config = Outer((3, 4), None, Inner(0.5))
    run = RunFolder.create(str(tmp_path / "run"), "agent")
    run.write_config("agent", asdict(config))
    written = json.loads((run.path / "config.json").read_text())
    assert torch.__version__.startswith(written["machine"]["torch"])
    assert written["machine"]["threads"] == torch.get_num_threads()
    del run
    _, stored = RunFolder.open(str(tmp_path / "run"), "agent", trust=False)
    assert stored_config(Outer, stored) == config


def test_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "agent")
    run.write_config("agent", {})
    del run
    with pytest.raises(RunError, match=f"--resume {tmp_path}"):
        RunFolder.create(str(tmp_path), "agent")


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        RunFolder.create(str(tmp_path / "file"), "agent")


def test_second_owner_is_refused_and_told_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "ENDING_SECONDS", 0.2)
    run = RunFolder.create(str(tmp_path), "agent")
    run.write_config("agent", {})
    for _ in range(2):  # being refused leaves the owner's name where it stands
        with pytest.raises(RunError, match=f"process {os.getpid()} is running"):
            RunFolder.open(str(tmp_path), "agent", trust=False)


def test_owner_that_is_ending_is_waited_for(tmp_path: Path) -> None:
    first = RunFolder(tmp_path)
    ending = threading.Timer(0.3, first.release)
    ending.start()
    RunFolder(tmp_path)
    ending.join()


def test_folder_that_nobody_holds_any_more_is_let_go_of_in_silence(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run = RunFolder(tmp_path)
        run.itself = run  # type: ignore[attr-defined]  # found by the garbage collector alone
        del run
        gc.collect()
        RunFolder(tmp_path)
    assert not told


def test_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_handle: Any, _operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(RunError, match=f"{tmp_path}/lock: cannot be locked .No locks available.; choose a folder on"):
        RunFolder(tmp_path)


def test_lock_goes_with_its_process(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from rlmix.experiments.runs.folder import RunFolder\n"
        "run = RunFolder(Path(sys.argv[1])); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "lock").read_text().strip() not in ("", str(os.getpid()))
    RunFolder(tmp_path)
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'"agent"',
        b'{"kind": "agent", "version": 1}',
        b'{"kind": "agent", "version": 1, "config": null}',
        b'{"kind": "agent", "version": 1, "config": []}',
        b'{"kind": "agent", "version": 2, "config": {}}',
        b'{"kind": "replay", "version": 1, "config": {}}',
    ],
)
def test_configuration_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=str(tmp_path)):
        RunFolder.open(str(tmp_path), "agent", trust=False)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("folder", ["", "missing"])
def test_folder_that_is_no_run(folder: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a run folder, got none"):
        RunFolder.open(str(tmp_path / folder), "agent", trust=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stored", [{"size": [1, 2], "unknown": 1}, {"inner": {"unknown": 1}}, {"name": {}}])
def test_configuration_of_another_version(stored: dict[str, Any]) -> None:
    with pytest.raises(RunError, match="does not fit this version"):
        stored_config(Outer, stored)


# Checkpoints


def state(number: int) -> dict[str, Any]:
    return {"number": number, "weights": torch.full((3, 5), float(number)), "nested": [{"a": torch.arange(number)}]}


def test_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in (5, 9, 10, 100):
        run.save_checkpoint(number, state(number))
    assert len(list(run.checkpoints.iterdir())) == KEPT_CHECKPOINTS
    newest = run.load_checkpoint()
    assert newest is not None and newest["number"] == 100
    assert torch.equal(newest["weights"], state(100)["weights"])


def test_no_checkpoint_yet(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).load_checkpoint() is None


def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    run.save_checkpoint(1, state(1))
    newest = run.checkpoints / "0000000002.safetensors"
    save_state(newest, state(2))
    whole = newest.read_bytes()
    damages = [whole[:length] for length in (0, 1, 8, len(whole) // 2, len(whole) - 1)]
    for place in range(0, len(whole), 3):
        damages += [bytes([*whole[:place], whole[place] ^ bit, *whole[place + 1 :]]) for bit in (1, 128)]
    for damaged in damages:
        newest.write_bytes(damaged)
        found = run.load_checkpoint()
        assert found is not None
        err = capsys.readouterr().err
        if found["number"] == 2:  # a byte that says nothing, as padding in the header
            assert torch.equal(found["weights"], state(2)["weights"])
        else:
            assert str(newest) in err and "going back to the checkpoint before" in err and err.count("\n") == 1
            assert not newest.exists()  # out of the way, so that it is not met again


def test_all_checkpoints_damaged(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number in (1, 2):
        (run.checkpoints / f"{number:010d}.safetensors").write_bytes(b"damaged")
    assert run.load_checkpoint() is None
    run.save_checkpoint(1, state(1))
    assert run.load_checkpoint() is not None


# Logs


def test_log_reads_what_was_appended(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.jsonl")
    assert log.read() == []
    entries = [{"number": number, "name": "λ\n"} for number in range(3)]
    for entry in entries:
        log.append(entry)
    assert log.read() == entries


def test_torn_line_is_dropped_and_written_over(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.jsonl")
    for number in range(3):
        log.append({"number": number})
    whole = log.path.read_bytes()
    for length in range(len(whole)):
        log.path.write_bytes(whole[:length])
        left = log.read()
        assert left == [{"number": number} for number in range(len(left))]
        assert len(left) >= whole[:length].count(b"\n")
        log.keep(len(left))
        for number in range(len(left), 3):
            log.append({"number": number})
        assert log.path.read_bytes() == whole


def test_keep_forgets_what_comes_after(tmp_path: Path) -> None:
    log = LineLog(tmp_path / "log.jsonl")
    for number in range(3):
        log.append({"number": number})
    log.keep(1)
    assert log.read() == [{"number": 0}]


# What the user is told


@pytest.mark.parametrize("error", [RunError, PolicyError, DataError, DamagedFileError])
def test_errors_are_one_line_and_status_2(error: type[Exception], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, exit_on_user_error():
        raise error("first\n  second")
    assert stopped.value.code == 2
    assert capsys.readouterr() == ("", "error: first second\n")


def test_interrupt_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped, exit_on_user_error(lambda: "do that"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130
    assert capsys.readouterr() == ("", "\ninterrupted; resume with: do that\n")


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_user_error():
        _ = 1 / 0
    with pytest.raises(ConnectionResetError), exit_on_user_error():
        raise ConnectionResetError(errno.ECONNRESET, "reset")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_disk_that_fails_is_told_in_one_line_with_the_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")

    def fail(_handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    log, path = LineLog(run.path / "log"), run.checkpoints / f"{1:010d}.safetensors"
    for file, write in ((path, lambda: run.save_checkpoint(1, {})), (log.path, lambda: log.append({}))):
        with pytest.raises(SystemExit) as stopped, exit_on_user_error(lambda: "go"):
            write()
        assert stopped.value.code == 2
        advice = "make room there or give permission, then resume with: go"
        assert capsys.readouterr() == ("", f"error: {file}: {os.strerror(number)}; {advice}\n")


def test_a_disk_that_fails_in_a_thread_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def run(error: Exception) -> str:
        def fail() -> None:
            raise error

        with exit_on_user_error():
            thread = threading.Thread(target=fail)
            thread.start()
            thread.join()
        return capsys.readouterr().err

    told = "warning: TensorBoard's events cannot be written: [Errno 28] full\n"
    assert run(OSError(errno.ENOSPC, "full")) == told
    assert "ZeroDivisionError" in run(ZeroDivisionError())


def test_what_a_killed_process_was_writing_is_deleted_by_the_next(tmp_path: Path) -> None:
    first = RunFolder(tmp_path / "run")
    first.save_checkpoint(1, {"a": 1})
    first.release()
    for torn in (first.path / ".config.json.123.part", first.checkpoints / ".0000000002.safetensors.123.part"):
        torn.write_bytes(b"half")
    RunFolder(tmp_path / "run")
    assert sorted(path.name for path in first.path.rglob("*")) == ["0000000001.safetensors", "checkpoints", "lock"]


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_and_second_interrupts(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.asked
        os.kill(os.getpid(), number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_waits_for_processes_to_start(number: int) -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        os.kill(os.getpid(), number)
        child = subprocess.Popen(["sleep", "0.2"])
        child.send_signal(signal.SIGINT)
        reached = child.wait() == 0  # Ctrl-C goes to the whole terminal: the child is to be deaf to it
    assert reached
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_processes_that_a_sigterm_ended_are_no_error_of_their_own() -> None:
    with pytest.raises(KeyboardInterrupt), interrupt_later():
        os.kill(os.getpid(), signal.SIGTERM)
        raise EOFError
    with pytest.raises(EOFError), interrupt_later():
        raise EOFError


def test_the_command_that_resumes_can_be_pasted(tmp_path: Path) -> None:
    """A path may hold blanks (SWivid/F5-TTS#1063)."""
    run = RunFolder.create(str(tmp_path / "my first run"), "agent")
    run.write_config("agent", {})
    assert shlex.split(run.resume_options) == ["--resume", str(run.path)]


def test_what_kills_and_damage_leave_behind_does_not_pile_up(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for number in range(1, 6):
        run.save_checkpoint(number, {"number": number})
        (run.checkpoints / f"{number:010d}.safetensors").write_bytes(b"torn")
        run.load_checkpoint()
        for name in (".config.json.1.part", f"checkpoints/.{number}.safetensors.1.part"):
            (run.path / name).write_bytes(b"half")
    assert sorted(path.name for path in run.checkpoints.glob("*.damaged")) == [
        "0000000004.damaged",
        "0000000005.damaged",
    ]
    run.release()
    again = RunFolder(tmp_path / "run")
    assert not list(again.path.rglob("*.part")) and len(list(again.checkpoints.iterdir())) == 2


@pytest.mark.parametrize(("free", "warned"), [(999_999_999, True), (1_000_000_000, False)])
def test_a_new_run_warns_of_little_disk_space(
    free: int, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    RunFolder.create(str(tmp_path / "run"), "agent").release()
    assert capsys.readouterr().err == (f"warning: only 1,000 MB are free in {tmp_path}/run\n" if warned else "")
