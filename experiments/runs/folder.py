"""A run's folder: its configuration, its lock, its checkpoints and its results."""

import fcntl
import json
import os
import shlex
import shutil
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rlmix.classifier.files import PART, DamagedFileError, load_state, save_state, with_filename, write_atomic
from rlmix.classifier.models import LIBRARIES
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.options import TUNE, flatten

VERSION = 1
KEPT_CHECKPOINTS = 2
COMMANDS = {  # that write runs of each kind
    "agent": "train_agent.py",
    "replay": "replay_policy.py",
    "classifier": "train_classifier.py",
    "rl-mix": "train_rl_mix.py",
    "tune": "tune_agent.py",
}
LITTLE_SPACE = 1e9  # bytes free on the disk below which a new run warns
ENDING_SECONDS = 5.0  # that a process which was stopped or killed may still hold its folder, having ended for others


class RunFolder:
    """A folder that one process at a time owns.

    Args:
        path: path of the folder, which is made if it does not exist.

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
        with with_filename(path / "lock"):
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
        # What a kill left half written; nobody else writes here now.
        for folder in (path, self.checkpoints, path / "references", path / "candidates"):
            for torn in folder.glob(f".*{PART}"):
                torn.unlink(missing_ok=True)

    @classmethod
    def create(cls, out: str | None, kind: str) -> "RunFolder":
        """Create a new run folder: `out`, or `runs/KIND-DATE-TIME`.

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
                raise RunError(f"{path}: a run is there already; resume with --resume {path}, or choose another --out")
        run = cls(path)
        free = shutil.disk_usage(run.path).free
        if free < LITTLE_SPACE:
            print(f"warning: only {free / 1e6:,.0f} MB are free in {run.path}", file=sys.stderr, flush=True)
        return run

    @classmethod
    def open(cls, path: str, kind: str, *, trust: bool) -> tuple["RunFolder", dict[str, Any]]:
        """Return the folder of an earlier run, and its configuration.

        Args:
            path: path of the folder.
            kind: expected kind of the run.
            trust: whether the folder is the user's own, and code that it names or holds may run.

        Raises:
            RunError: there is none, it is of another kind or version, or it would run code and is not trusted.
        """
        _, config = read_config(path, (kind,), trust=trust)
        return cls(Path(path)), config

    @property
    def resume_options(self) -> str:
        """Options by which a command resumes this run."""
        kind, config = read_config(str(self.path), None, trust=True)
        return f"--resume {shlex.quote(str(self.path))}{' --trust' if code_of(kind, config) else ''}"

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
    """Return the kind of a run, one of `kinds`, and its configuration.

    Args:
        path: path of the run's folder.
        kinds: expected kinds; None for any.
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
        raise RunError(f"{path}: expected a run folder, got none (there is no config.json); check the path") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise RunError(
            f"{path}/config.json: expected a run's configuration, got a damaged or other file; restore it"
        ) from None
    if kinds is not None and kind not in kinds and {kind, *kinds} <= set(COMMANDS):
        expected = " or ".join(COMMANDS[one] for one in kinds)
        raise RunError(f"{path}: expected a run of {expected}, got one of {COMMANDS[kind]}")
    if (kinds is not None and kind not in kinds) or found != VERSION:
        expected = "" if kinds is None else f"{' or '.join(kinds)}, "
        raise RunError(
            f"{path}: expected a run of {expected}version {VERSION}, as this RL-Mix writes it, "
            f"got {kind:.80}, version {found!r:.80}"
        )
    if not trust:
        require_no_code(path, code_of(kind, config))
    return kind, config


def code_of(kind: str, config: Mapping[str, Any]) -> list[str]:
    """Return what would run as code if a run were resumed or reported: names of a user's functions, and Ray's files."""
    code = ["files of Ray in it"] if kind == TUNE else []
    for part in (config, config.get("agent")):
        options = flatten(part) if isinstance(part, dict) else {}
        for name in ("dataset", "model"):
            value = options.get(name)
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


def _locked(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RunError(f"{lock.name}: cannot be locked ({error.strerror}); choose a folder on another disk") from None
    return True
