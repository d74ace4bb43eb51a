"""Writes: runs whose disk fails, is full, or lies, at every place where they use it.

Each run is made in this process, with its disk watched: a fault stops the program at one of its writes, flushes,
renames and deletions, as SIGKILL would (a write is then half done, and nothing is cleaned up), or lets it fail with an
error of the system. What follows is to be one line that names the file, a checkpoint that is still whole, and, once the
disk is well, the result of a run that nobody disturbed.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import gc
import io
import os
import random
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from tqdm import tqdm

from rlmix.agent.vec_env import Make
from rlmix.agent.workers import EpisodeCursor
from rlmix.classifier import files
from rlmix.classifier.files import PART, LineLog, load_state
from rlmix.experiments import train_agent, train_classifier
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.search import search
from tests.soak.kills import LEARNED, TRAINED, lasting

INTERRUPTED = 130  # exit status
ERRORS = ("ENOSPC", "EIO", "EACCES", "EDQUOT", "EROFS")
LAST = 10**9  # an operation that no run comes to
DAY = 86400.0
DATA = "--dataset digits --train-size 100 --validation-size 100 --device cpu --precision fp32 --compile off"


@dataclass(frozen=True)
class Program:
    """A command that uses a disk.

    Attributes:
        main: the command.
        options: of its first start, without `--out`.
        outcome: files of the run folder that are to be equal.
    """

    main: Callable[[Sequence[str]], None]
    options: str
    outcome: tuple[str, ...]


PROGRAMS = {
    "train_classifier.py": Program(
        train_classifier.main,
        f"{DATA} --batch-size 50 --updates 60 --evaluations 3 --threads 1 --checkpoint-seconds 0 --method rmix",
        TRAINED,
    ),
    "train_agent.py": Program(
        train_agent.main,
        f"{DATA.replace('100', '100 120', 1)} --updates 8 10 --tasks 2 --reference-seeds 2 --episodes 8 "
        "--ppo.episodes-per-update 4 --ppo.learning-rate 0.03 --candidate-seeds 2 --contest-seeds 2 --workers 2",
        LEARNED,
    ),
}


class Stopped(BaseException):
    """Stands for SIGKILL in this process."""


class Failed(Exception):
    """A run did not end as it should; the message tells what happened."""


class Disk:
    """Watches what a program does to files below a folder, and lets one operation fail or be the last.

    TensorBoard's events are written by a thread, at moments that differ from run to run: they are not counted.

    Args:
        folder: that is watched.
        fail_at: number of the operation that fails; `LAST` = none.
        error: name of the system's error; none = the program is stopped there.
        events: whether every write of an event fails with `error` instead.
    """

    def __init__(self, folder: Path, fail_at: int = LAST, error: str | None = None, *, events: bool = False) -> None:
        self._folder, self._fail_at, self._error, self._events = folder.resolve(), fail_at, error, events
        self.operations: list[str] = []
        self.failed = self._stopped = False
        self.saved: Path | None = None  # the newest checkpoint that has its name

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch while the block runs."""
        self._real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
        opened = partial(self._open, builtins.open)
        with ExitStack() as patches:
            for module in (builtins, io):
                patches.enter_context(mock.patch.object(module, "open", opened))
            patches.enter_context(mock.patch.object(os, "fsync", self._fsync))
            patches.enter_context(mock.patch.object(os, "replace", self._replace))
            patches.enter_context(mock.patch.object(os, "unlink", self._unlink))
            yield

    def use(self, what: str, path: object, torn: Callable[[], object] = lambda: None) -> None:
        """Count an operation on a file, or fail.

        Args:
            what: is done.
            path: of the file.
            torn: leaves behind what an operation leaves that was not finished.
        """
        if self._stopped:
            raise Stopped
        if self._is_event(path):
            if self._events:
                self.failed = True
                self._fail()
            return
        name = Path(os.fsdecode(path)).name.replace(f".{os.getpid()}{PART}", PART)  # type: ignore[arg-type]
        self.operations.append(f"{what} {name}")
        if len(self.operations) - 1 == self._fail_at and not self._events:
            self.failed = True
            torn()
            self._fail()

    def _fail(self) -> None:
        if self._error is None:
            self._stopped = True
            raise Stopped
        number = getattr(errno, self._error)
        raise OSError(number, os.strerror(number))

    def _below(self, path: object) -> bool:
        if not isinstance(path, str | bytes | os.PathLike):  # a handle
            return False
        return Path(os.fsdecode(path)).resolve().is_relative_to(self._folder)

    @staticmethod
    def _is_event(path: object) -> bool:
        return "tensorboard" in Path(os.fsdecode(path)).parts  # type: ignore[arg-type]

    def _open(self, real: Callable[..., Any], path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if set(mode).isdisjoint("wax+") or not self._below(path):
            return real(path, mode, *rest, **options)
        if self._stopped:
            raise Stopped
        return _File(real(path, mode, *rest, **options), self, path)

    def _fsync(self, handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if self._below(path):
            self.use("flush", path)
        self._real["fsync"](handle)

    def _replace(self, old: Any, new: Any) -> None:
        if self._below(new):
            self.use("rename", new)
        self._real["replace"](old, new)
        if self._below(new) and Path(new).parent.name == "checkpoints":
            self.saved = Path(new)

    def _unlink(self, path: Any, **options: Any) -> None:
        if self._below(path) and os.path.lexists(path):
            self.use("delete", path)
        self._real["unlink"](path, **options)


class _File:
    """A file that is being written, on a disk that is watched."""

    def __init__(self, file: Any, disk: Disk, path: Any) -> None:
        self._file, self._disk, self._path = file, disk, path

    def write(self, content: Any) -> int:
        def half() -> None:
            self._file.write(content[: len(content) // 2])
            self._file.flush()

        self._disk.use("write", self._path, half)
        written: int = self._file.write(content)
        return written

    def writelines(self, lines: Iterable[Any]) -> None:
        self.write("".join(lines))

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        status: its exit status; none = it was stopped.
        err: its standard error.
    """

    status: int | None
    err: str


def workers_here(make: Make, positions: Sequence[EpisodeCursor], *, processes: int) -> VecEnv:
    """A search's workers in this process, one after the other, where its disk is watched."""
    return DummyVecEnv([partial(make, index, position) for index, position in enumerate(positions)])


def start(program: Program, run: Path) -> Ended:
    """Start a program, or let it go on with what is there; its folder is free again afterwards."""
    options = (
        ["--resume", str(run)] if (run / "config.json").exists() else [*program.options.split(), "--out", str(run)]
    )
    status: int | None = 0
    err = io.StringIO()
    with (
        mock.patch.object(search, "ProcessVecEnv", workers_here),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(err),
    ):
        try:
            program.main(options)
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else 1
        except Stopped:
            status = None
        except Exception as error:  # what a user would see as a traceback
            raise Failed(f"not told in a line: {type(error).__name__}: {error}") from error
    if status == INTERRUPTED:  # by a signal, which was meant for the soak
        raise KeyboardInterrupt
    gc.collect()  # the lock goes with the folder's last reference
    return Ended(status, err.getvalue())


def outcome(program: Program, run: Path) -> dict[str, bytes]:
    """Everything that must not depend on faults."""
    return {name: lasting(run / name) for name in program.outcome if (run / name).exists()}


def require_line(ended: Ended, *words: str) -> None:
    """Whether a run was refused or stopped in one line that holds all of these words.

    Raises:
        Failed: it was not.
    """
    said = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.status != 2 or len(said) != 1 or "Traceback" in ended.err:
        raise Failed(f"expected status 2 and one line, got {ended.status}: {ended.err[-2000:]}")
    for word in words:
        if word not in said[0]:
            raise Failed(f"expected {word!r} in {said[0]!r}")


def require_same(program: Program, run: Path, whole: Mapping[str, Any]) -> None:
    """Let a run go on, and compare.

    Raises:
        Failed: it does not end well, ends otherwise than the undisturbed one, or leaves half a file.
    """
    ended = start(program, run)
    if ended.status != 0:
        raise Failed(f"did not go on: status {ended.status}: {ended.err[-2000:]}")
    found = outcome(program, run)
    different = [name for name in whole if found.get(name) != whole[name]]
    if different:
        raise Failed(f"differ from the undisturbed run's: {', '.join(different)}")
    if torn := list(run.rglob(f"*{PART}")):
        raise Failed(f"half a file is left: {torn[0].name}")


@dataclass(frozen=True)
class Case:
    """One fault.

    Attributes:
        kind: for the table.
        name: tells it from others of its kind.
        play: does it to a run in an empty folder; raises Failed.
    """

    kind: str
    name: str
    play: Callable[[Path], None]


class Cases:
    """All faults of a program.

    Args:
        program: that is run.
        folder: an empty one; an undisturbed run is made in it.

    Raises:
        RunError: it fails undisturbed.
    """

    def __init__(self, program: Program, folder: Path) -> None:
        self._program, run = program, folder / "undisturbed"
        disk = Disk(run)
        with disk.watched():
            ended = start(program, run)
        if ended.status != 0:
            raise RunError(f"the run fails undisturbed: {ended.err[-2000:]}")
        self.operations, self._whole = disk.operations, outcome(program, run)
        self._size = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
        self._checkpoint = max(path.stat().st_size for path in (run / "checkpoints").iterdir())
        self._unfinished = folder / "unfinished"  # the run as a stop left it that came late in its checkpoints
        renames = [
            number for number, told in enumerate(self.operations) if told.startswith("rename 0") and "safetens" in told
        ]
        with Disk(self._unfinished, renames[-1] + 1).watched():
            start(program, self._unfinished)

    def all(self, every: int) -> list[Case]:
        """The faults.

        Args:
            every: how many operations from one that is stopped or fails to the next.
        """
        cases = [
            Case(kind, f"{number}, {self.operations[number]}", partial(self._operation, number, error))
            for number in range(0, len(self.operations), every)
            for kind, error in (("stop", None), *((f"error {name}", name) for name in ERRORS))
        ]
        cases += [Case("TensorBoard's disk fails", name, partial(self._events, name)) for name in ERRORS]
        cases += [
            Case("full disk, then read-only", f"{share}", partial(self._full, share))
            for share in (0.3, 0.6, 0.9)
            if os.geteuid() == 0  # who may mount one
        ]
        cases += [Case("file size limit", f"{share}", partial(self._limit, share)) for share in (0.1, 0.5, 0.9)]
        cases += [Case("newest checkpoint cut", f"{n} tenths", partial(self._damage, self._cut(n))) for n in range(10)]
        cases += [Case("newest checkpoint, a bit", f"{n}", partial(self._damage, self._flip(n))) for n in range(10)]
        cases += [Case("newest checkpoint unreadable", "EIO", self._unreadable)]
        cases += [Case("clock jumps by days", f"{seed}", partial(self._clock, seed)) for seed in range(3)]
        return cases

    def _operation(self, number: int, error: str | None, folder: Path) -> None:
        run = folder / "run"
        disk = Disk(run, number, error)
        with disk.watched():
            ended = start(self._program, run)
        if not disk.failed:
            raise Failed("the operation was not come to")
        if error is None and ended.status is not None:
            raise Failed(f"went on after it was stopped: {ended.status}, {ended.err[-2000:]}")
        if error is not None and ended.status != 0:  # what can be done without is done without, as a reference's cache
            require_line(ended, str(run), os.strerror(getattr(errno, error)))
        if disk.saved is not None:
            load_state(disk.saved)
        require_same(self._program, run, self._whole)

    def _events(self, error: str, folder: Path) -> None:
        run = folder / "run"
        with Disk(run, error=error, events=True).watched():
            require_line(start(self._program, run), os.strerror(getattr(errno, error)), "--resume")
        require_same(self._program, run, self._whole)

    def _full(self, share: float, folder: Path) -> None:
        disk = folder / "disk"
        disk.mkdir()

        def mount(*options: str) -> None:
            subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(disk)], check=True, capture_output=True)

        mount("-o", f"size={int(share * self._size) // 4096 * 4096}")
        try:
            ended = start(self._program, disk / "run")
            require_line(ended, os.strerror(errno.ENOSPC))
            mount("-o", "remount,ro")
            require_line(start(self._program, disk / "run"), os.strerror(errno.EROFS))
            mount("-o", f"remount,rw,size={10 * self._size}")
            require_same(self._program, disk / "run", self._whole)
        finally:
            gc.collect()
            subprocess.run(["umount", "--lazy", str(disk)], check=True)

    def _limit(self, share: float, folder: Path) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * self._checkpoint), before[1]))
        try:
            ended = start(self._program, folder / "run")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        require_line(ended, os.strerror(errno.EFBIG))
        require_same(self._program, folder / "run", self._whole)

    @staticmethod
    def _cut(tenths: int) -> Callable[[bytes], bytes]:
        return lambda content: content[: len(content) * tenths // 10]

    @staticmethod
    def _flip(seed: int) -> Callable[[bytes], bytes]:
        def flip(content: bytes) -> bytes:
            place = random.Random(seed).randrange(8 * len(content))
            changed = bytearray(content)
            changed[place // 8] ^= 1 << place % 8
            return bytes(changed)

        return flip

    def _damage(self, change: Callable[[bytes], bytes], folder: Path) -> None:
        run = Path(shutil.copytree(self._unfinished, folder / "run"))
        newest = max((run / "checkpoints").glob("*.safetensors"))
        newest.write_bytes(change(newest.read_bytes()))
        self._falls_back(run, newest)

    def _unreadable(self, folder: Path) -> None:
        run, real = Path(shutil.copytree(self._unfinished, folder / "run")), files.safe_open
        newest = max((run / "checkpoints").glob("*.safetensors"))

        def refuse(path: Any, **options: Any) -> Any:
            if Path(path) == newest:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return real(path, **options)

        with mock.patch.object(files, "safe_open", refuse):
            self._falls_back(run, newest)

    def _falls_back(self, run: Path, newest: Path) -> None:
        ended = start(self._program, run)
        if f"{newest.name}" not in ended.err or "going back to the checkpoint before" not in ended.err:
            raise Failed(f"does not say that {newest.name} is damaged: {ended.err[-2000:]}")
        if ended.status != 0 or outcome(self._program, run) != self._whole:
            raise Failed(f"another result: status {ended.status}: {ended.err[-2000:]}")

    def _clock(self, seed: int, folder: Path) -> None:
        draw, real = random.Random(seed), time.time
        run = Path(shutil.copytree(self._unfinished, folder / "run"))
        with mock.patch.object(time, "time", lambda: real() + draw.uniform(-3, 3) * DAY):
            require_same(self._program, run, self._whole)


@dataclass(frozen=True)
class WritesSoak:
    """Let disks fail at every write, flush, rename and deletion of a run."""

    programs: tuple[str, ...] = tuple(PROGRAMS)
    """Which programs; all of them by default."""
    every: int = 1
    """Operations from one that is stopped or fails to the next."""
    out: str | None = None
    """Folder of the result, and of writes.jsonl, the faults so far: the same command goes on."""

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Try every fault; gives the result and what failed.

        Raises:
            RunError: an option is out of range, or a program fails undisturbed.
        """
        for name in self.programs:
            if name not in PROGRAMS:
                raise RunError(f"--programs must be among {', '.join(PROGRAMS)}, got {name!r}")
        if self.every < 1:
            raise RunError(f"--every must be at least 1, got {self.every}")
        torch.set_num_threads(1)
        log = None if self.out is None else LineLog(Path(self.out) / "writes.jsonl")
        lines = [] if log is None else log.read()
        if log is not None:
            log.keep(len(lines))
        told = {(line["program"], line["kind"], line["name"]): line["failed"] for line in lines}
        result: dict[str, Any] = {}
        failed: list[str] = []
        with tempfile.TemporaryDirectory(prefix="rlmix-writes-") as folder:
            for name in self.programs:
                cases = Cases(PROGRAMS[name], Path(folder) / name)
                table: dict[str, dict[str, int]] = {}
                for case in tqdm(cases.all(self.every), desc=name, unit="fault", mininterval=20):
                    row = table.setdefault(case.kind, {"tried": 0, "survived": 0})
                    key = (name, case.kind, case.name)
                    if key not in told:
                        told[key] = _wrong(case, folder)
                        if log is not None:
                            log.append({"program": name, "kind": case.kind, "name": case.name, "failed": told[key]})
                    row["tried"] += 1
                    row["survived"] += told[key] is None
                    if told[key] is not None:
                        failed.append(f"{name}, {case.kind}, {case.name}: {told[key]}")
                result[name] = {"operations": len(cases.operations), "faults": table}
        rows = [row for entry in result.values() for row in entry["faults"].values()]
        total = {key: sum(row[key] for row in rows) for key in ("tried", "survived")}
        return {"total": total, "programs": result}, failed


def _wrong(case: Case, folder: str) -> str | None:
    """What went wrong when a fault was played in a folder of its own; none = nothing."""
    try:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            case.play(Path(place))
    except Failed as error:
        return str(error)
    return None
