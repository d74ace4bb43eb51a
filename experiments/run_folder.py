"""A run's folder: its configuration, its lock, its checkpoints and its results."""

import fcntl
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch

from classifier.data import DataError
from classifier.files import DamagedFileError, load_state, save_state, write_atomic
from classifier.mixing import PolicyError

VERSION = 1
KEPT_CHECKPOINTS = 2
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
PACKAGES = ("torch", "torchvision", "gymnasium", "stable-baselines3", "numpy")


Config = TypeVar("Config")


class RunError(ValueError):
    """A run that cannot start or go on; the message says what was expected, what came, and what to do."""


USER_ERRORS = (RunError, PolicyError, DataError, DamagedFileError)  # what a user can mend, and another try cannot


class RunFolder:
    """A folder that one process at a time owns.

    Args:
        path: of the folder; made if it is not there.

    Raises:
        RunError: another process owns it, or it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # The system lets go of this lock when the process ends, however it ends.
            self._lock = open(path / "lock", "a+")
        except OSError as error:
            raise RunError(f"{path}: a run folder cannot be written there ({error.strerror}); choose another") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            raise RunError(f"{path}: process {owner} is running there; wait for it, stop it, or use another") from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()

    @classmethod
    def create(cls, out: str | None, kind: str) -> "RunFolder":
        """A new folder: `out`, or `runs/KIND-DATE-TIME`.

        Raises:
            RunError: `out` holds a run already.
        """
        if out is None:
            stem = Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
            path = next(
                candidate
                for candidate in (stem, *(stem.with_name(f"{stem.name}-{number}") for number in range(2, 1000)))
                if not candidate.exists()
            )
        else:
            path = Path(out)
            if (path / "config.json").exists():
                raise RunError(f"{path}: a run is there already; go on with --resume {path}, or choose another --out")
        return cls(path)

    @classmethod
    def open(cls, path: str, kind: str) -> tuple["RunFolder", dict[str, Any]]:
        """The folder of an earlier run of the same kind, and its configuration.

        Raises:
            RunError: there is none, or it is of another kind or version.
        """
        _, config = read_config(path, (kind,))
        return cls(Path(path)), config

    def release(self) -> None:
        """Let another process own the folder."""
        self._lock.close()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """Folder of TensorBoard's events."""
        return self.path / "tensorboard"

    def write_config(self, kind: str, config: dict[str, Any]) -> None:
        """Write `config.json`: what was asked for and on what it runs."""
        value = {"kind": kind, "version": VERSION, "config": config, "machine": machine(), "command": sys.argv}
        self.write_json("config.json", value)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file into the folder, whole or not at all."""
        write_atomic(self.path / name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Read a JSON file that `write_json` wrote.

        Raises:
            RunError: it cannot be read.
        """
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{self.path / name}: cannot be read ({error}); delete it to have it made again") from None

    def save_checkpoint(self, number: int, state: dict[str, Any]) -> None:
        """Write checkpoint `number` and delete all but the newest ones."""
        save_state(self.checkpoints / f"{number:010d}.safetensors", state)
        for old in sorted(self.checkpoints.glob("*.safetensors"))[:-KEPT_CHECKPOINTS]:
            old.unlink()

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or none; says so where it has to fall back."""
        for path in sorted(self.checkpoints.glob("*.safetensors"), reverse=True):
            try:
                return load_state(path)
            except DamagedFileError as error:
                print(f"{error}; going back to the checkpoint before", file=sys.stderr)
                path.rename(path.with_suffix(".damaged"))
        return None


def stop_file(run: Path) -> Path:
    """A run folder's file that asks a training in other processes to save and stop."""
    return run / "stop"


def read_config(path: str, kinds: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The kind of a run, one of `kinds`, and its configuration.

    Raises:
        RunError: there is no run, or it is of another kind or version.
    """
    try:
        value = json.loads((Path(path) / "config.json").read_bytes())
        kind, found, config = value["kind"], value["version"], value["config"]
        if not isinstance(config, dict):
            raise TypeError
    except OSError:
        raise RunError(f"{path}: no run is there (config.json is missing); give a run's folder") from None
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path}/config.json: not a run's configuration; the file is damaged") from None
    if kind not in kinds or found != VERSION:
        raise RunError(f"{path}: a run of {kind}, version {found}; expected {' or '.join(kinds)}, version {VERSION}")
    return kind, config


class LineLog:
    """Results that are appended one JSON object a line; a torn last line is dropped when it is read.

    Args:
        path: of the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Every whole line so far."""
        entries = []
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                entries.append(json.loads(line))
            except ValueError:
                break
        return entries

    def keep(self, count: int) -> None:
        """Forget all lines after the first `count`: the search goes on from before they were written."""
        entries = self.read()[:count]
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())

    def append(self, entry: dict[str, Any]) -> None:
        """Write one more line and flush it to the disk."""
        with open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def user_errors(resume_hint: str | None = None) -> Iterator[None]:
    """Turn what a user can mend into one line on standard error and exit status 2, and an interrupt into status 130.

    Args:
        resume_hint: how to go on after an interrupt; none = nothing to go on with.
    """
    try:
        yield
    except USER_ERRORS as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped{'' if resume_hint is None else '; go on with: ' + resume_hint}", file=sys.stderr)
        sys.exit(130)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def stored_config(kind: type[Config], stored: dict[str, Any]) -> Config:
    """The configuration of a run's `config.json`, as a dataclass that may hold another one.

    Args:
        kind: a dataclass whose fields are numbers, texts, tuples, or a dataclass made by its default factory.
        stored: what `asdict` made of it.

    Raises:
        RunError: it does not fit this version.
    """
    try:
        names = {entry.name: entry for entry in fields(kind)}  # type: ignore[arg-type]
        values = {name: _tuples(value) for name, value in stored.items()}
        for name, value in stored.items():
            if isinstance(value, dict):
                values[name] = stored_config(names[name].default_factory, value)  # type: ignore[arg-type]
        return kind(**values)
    except (TypeError, KeyError, ValueError) as error:
        raise RunError(f"config.json does not fit this version of RL-Mix ({error}); start a new run") from None


class StopSignal:
    """Ctrl-C and SIGTERM as a question that a loop asks when it can stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off while processes are started; Ctrl-C never reaches these, whatever they are doing."""
    resource_tracker.ensure_running()  # starting it, as the first spawned process does, would let Ctrl-C through again
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        except (EOFError, ConnectionError):
            if not stop.asked:  # else a SIGTERM to all ended what was started
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if stop.asked:
        raise KeyboardInterrupt


def interrupt_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def machine() -> dict[str, Any]:
    """What a run is made on: processor, its number formats, cores, threads, GPU, versions and the load before."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    processor = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = processor.get("flags", "").split()
    return {
        "processor": processor.get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "load_average": os.getloadavg(),
    }
