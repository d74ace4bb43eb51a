"""A run's folder: its configuration, its lock, its checkpoints and its results."""

import errno
import fcntl
import json
import os
import platform
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from importlib.metadata import version
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO, TypeVar, get_type_hints

import torch
from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from classifier.data import DataError
from classifier.files import PART, DamagedFileError, load_state, naming, save_state, write_atomic
from classifier.mixing import PolicyError
from classifier.models import LIBRARIES

VERSION = 1
TUNE = "tune"  # the kind of run that is many searches
KEPT_CHECKPOINTS = 2
ENDING_SECONDS = 5.0  # that a process which was stopped or killed may still hold its folder, having ended for others
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
PACKAGES = ("torch", "torchvision", "gymnasium", "stable-baselines3", "numpy")


Config = TypeVar("Config")


class RunError(ValueError):
    """A run that cannot start or go on; the message says what was expected, what came, and what to do."""


USER_ERRORS = (RunError, PolicyError, DataError, DamagedFileError)  # what a user can mend, and another try cannot
STORAGE = {  # what is wrong with a disk, not with the program
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}


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
            lock = open(path / "lock", "a+")
        except OSError as error:
            raise RunError(f"{path}: a run folder cannot be written there ({error.strerror}); choose another") from None
        self._unlock = weakref.finalize(self, lock.close)
        self._unlock.atexit = False  # not before the process's very end
        end = time.monotonic() + ENDING_SECONDS
        while not _locked(lock):
            if time.monotonic() > end:
                lock.seek(0)
                owner = lock.read().strip() or "unknown"
                raise RunError(f"{path}: process {owner} is running there; wait for it, stop it, or use another")
            time.sleep(0.1)
        with naming(path / "lock"):
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        # What a kill left half written; nobody else writes here now.
        for folder in (path, self.checkpoints, path / "references"):
            for torn in folder.glob(f".*{PART}"):
                torn.unlink(missing_ok=True)

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
            if os.path.exists(path / "config.json"):
                raise RunError(f"{path}: a run is there already; go on with --resume {path}, or choose another --out")
        return cls(path)

    @classmethod
    def open(cls, path: str, kind: str, *, trust: bool) -> tuple["RunFolder", dict[str, Any]]:
        """The folder of an earlier run of the same kind, and its configuration.

        Args:
            path: of the folder.
            kind: of the run.
            trust: whether the folder is the user's own, and code that it names or holds may run.

        Raises:
            RunError: there is none, it is of another kind or version, or it would run code and is not trusted.
        """
        _, config = read_config(path, (kind,), trust=trust)
        return cls(Path(path)), config

    @property
    def go_on(self) -> str:
        """Options by which a command goes on with this run."""
        kind, config = read_config(str(self.path), None, trust=True)
        return f"--resume {self.path}{' --trust' if code_of(kind, config) else ''}"

    def release(self) -> None:
        """Let another process own the folder."""
        self._unlock()

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
        except (OSError, ValueError, RecursionError) as error:
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
                for old in sorted(self.checkpoints.glob("*.damaged"))[:-KEPT_CHECKPOINTS]:
                    old.unlink()
        return None


def stop_file(run: Path) -> Path:
    """A run folder's file that asks a training in other processes to save and stop."""
    return run / "stop"


def read_config(path: str, kinds: Sequence[str] | None, *, trust: bool) -> tuple[str, dict[str, Any]]:
    """The kind of a run, one of `kinds`, and its configuration.

    Args:
        path: of the run's folder.
        kinds: that are expected; none = any.
        trust: whether the folder is the user's own, and code that it names or holds may run.

    Raises:
        RunError: there is no run, it is of another kind or version, or it would run code and is not trusted.
    """
    try:
        value = json.loads((Path(path) / "config.json").read_bytes())
        kind, found, config = value["kind"], value["version"], value["config"]
        if not isinstance(kind, str) or not isinstance(config, dict):
            raise TypeError
    except OSError:
        raise RunError(f"{path}: no run is there (config.json is missing); give a run's folder") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(f"{path}/config.json: not a run's configuration; the file is damaged") from None
    if (kinds is not None and kind not in kinds) or found != VERSION:
        expected = "" if kinds is None else f"{' or '.join(kinds)}, "
        raise RunError(
            f"{path}: a run of {kind:.80}, version {found!r:.80}; expected {expected}version {VERSION}, "
            "as this RL-Mix writes it"
        )
    if not trust:
        require_no_code(path, code_of(kind, config))
    return kind, config


def code_of(kind: str, config: Mapping[str, Any]) -> list[str]:
    """What would run as code if a run went on or were looked at: names of a user's functions, and Ray's files."""
    code = ["files of Ray in it"] if kind == TUNE else []
    for part in (config, config.get("agent")):
        for name in ("dataset", "model") if isinstance(part, dict) else ():
            value = part.get(name)
            if isinstance(value, str) and ":" in value:
                # What load_dataset and build_model do not import: the path of a folder, and a library's network.
                path, library = name == "dataset" and os.sep in value, value.partition("/")[0] in LIBRARIES
                if not (path or (name == "model" and library)):
                    code.append(f"{name} {value}")
    return code


def require_no_code(path: str, code: Sequence[str]) -> None:
    """Refuse a folder that would run code.

    Raises:
        RunError: there is some.
    """
    if code:
        raise RunError(
            f"{path}: would run code ({', '.join(code):.200}); add --trust if the folder is your own, "
            "and nobody else could change it"
        )


class LineLog:
    """Results that are appended one JSON object a line; a torn last line is dropped when it is read.

    A line is on the disk before the next one is written, so a stop can tear the last one only.

    Args:
        path: of the file; made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Every whole line so far.

        Raises:
            RunError: a line before the last one is damaged, which no stop of a program does.
        """
        lines = self.path.read_bytes().removesuffix(b"\n").split(b"\n") if self.path.exists() else []
        entries = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                if not isinstance(entry, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                if number == len(lines):
                    break
                raise RunError(
                    f"{self.path}: expected a JSON object in line {number}, got {type(error).__name__}: {error!s:.80}; "
                    "restore the file, or delete it from this line on to have the rest made again"
                ) from None
            entries.append(entry)
        return entries

    def keep(self, count: int) -> None:
        """Forget all lines after the first `count`: the search goes on from before they were written.

        Raises:
            RunError: there are fewer, or one of them is damaged.
        """
        entries = self.read()[:count]
        if len(entries) < count:
            raise RunError(
                f"{self.path}: expected {count} lines, as many as the checkpoint has counted, got {len(entries)}; "
                "restore the file, or start a new run"
            )
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())

    def append(self, entry: dict[str, Any]) -> None:
        """Write one more line and flush it to the disk."""
        with naming(self.path), open(self.path, "a") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(f"{lock.name}: cannot be locked ({error.strerror}); choose a folder on another disk") from None
    return True


@contextmanager
def user_errors(resume_hint: str | None = None) -> Iterator[None]:
    """Turn what a user can mend into one line on standard error and exit status 2, and an interrupt into status 130.

    Args:
        resume_hint: how to go on after an interrupt or a full disk; none = nothing to go on with.
    """
    hook, threading.excepthook = threading.excepthook, _thread_error
    try:
        yield
    except USER_ERRORS as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped{'' if resume_hint is None else '; go on with: ' + resume_hint}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        print(
            f"error: {error.filename or 'a file of this run'}: {error.strerror}; make room there or give permission, "
            f"then {'start again' if resume_hint is None else 'go on with: ' + resume_hint}",
            file=sys.stderr,
        )
        sys.exit(2)
    finally:
        threading.excepthook = hook


def _thread_error(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread; a disk that fails there is told in one line, as elsewhere."""
    if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in STORAGE:
        print(f"warning: TensorBoard's events cannot be written: {failed.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


@contextmanager
def fitting(what: object) -> Iterator[None]:
    """Turn what goes wrong while a program takes over something that it has stored into one line.

    Args:
        what: the file or folder that it was read from.

    Raises:
        RunError: what was stored is whole, but not what this run would have stored.
    """
    try:
        yield
    except USER_ERRORS:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise RunError(
            f"{what}: does not fit this run ({reason}); it was changed, or is another run's: restore or delete it"
        ) from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _require_numbers(value: Any, hint: Any) -> None:
    """Refuse what Python takes for numbers and a configuration does not: truth values, and integers beyond 64 bits.

    Raises:
        TypeError: there is one.
    """
    if isinstance(value, tuple):
        for entry in value:
            _require_numbers(entry, hint)
    elif isinstance(value, bool) and hint is not bool:
        raise TypeError(f"expected no truth value, got {value}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TypeError(f"expected an integer of 64 bits, got one of {value.bit_length()}")


def stored_config(kind: type[Config], stored: dict[str, Any]) -> Config:
    """The configuration of a run's `config.json`, as a dataclass that may hold another one.

    Args:
        kind: a dataclass whose fields are numbers, texts, tuples, or a dataclass made by its default factory.
        stored: what `asdict` made of it.

    Raises:
        RunError: it does not fit this version.
    """
    types, values = get_type_hints(kind), {}
    try:
        for name, value in stored.items():
            if name not in types:
                raise TypeError(f"{name} is not known")
            if is_dataclass(types[name]) and isinstance(value, dict):
                values[name] = stored_config(types[name], value)
                continue
            try:
                every = CollectionCheckStrategy.ALL_ITEMS
                values[name] = check_type(_tuples(value), types[name], collection_check_strategy=every)
                _require_numbers(values[name], types[name])
            except (TypeCheckError, TypeError) as error:
                raise TypeError(f"{name}: {error}") from None
        return kind(**values)
    except RunError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"config.json does not fit this version of RL-Mix ({error!s:.300}); start a new run") from None


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
