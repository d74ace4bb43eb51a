"""Files that appear whole or not at all, and tensors in files that run no code."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from rlmix.classifier.errors import InputError

STATE_VERSION = 1
PART = ".part"  # ending of files that are being written


class DamagedFileError(InputError):
    """A file is torn, altered, or of another version; the message names it."""


@contextmanager
def with_filename(path: Path) -> Iterator[None]:
    """Name the file in an OSError raised inside; those of a write and a flush do not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: into a file beside `path`, which is flushed and then renamed.

    Raises:
        OSError: the file cannot be written; the message names `path`.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    with with_filename(path):
        try:
            with open(beside, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save nested dictionaries, lists, numbers, texts and tensors as one safetensors file with a checksum.

    Args:
        path: path of the file, written atomically.
        state: the state; dictionaries may have text or integer keys, and tuples are read back as lists.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_tensors(state, tensors), allow_nan=True)
    metadata = {"version": str(STATE_VERSION), "state": structure, "sha256": _checksum(structure, tensors)}
    write_atomic(path, serialise(tensors, metadata=metadata))


def load_state(path: Path) -> dict[str, Any]:
    """Return the state that `save_state` wrote, with tensors on the CPU.

    Raises:
        DamagedFileError: the file is missing, torn, altered or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies: a checkpoint that is being replaced must not stay mapped underneath the training.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise DamagedFileError(f"{path}: not a whole checkpoint ({error})") from None
    if metadata.get("version") != str(STATE_VERSION):
        raise DamagedFileError(f"{path}: expected checkpoint version {STATE_VERSION}, got {metadata.get('version')}")
    if metadata.get("sha256") != _checksum(metadata.get("state", ""), tensors):
        raise DamagedFileError(f"{path}: the checksum does not fit the content; the file was altered or damaged")
    try:
        state = _put_tensors(json.loads(metadata["state"]), tensors)
        if not isinstance(state, dict):
            raise TypeError(f"expected a state as a dictionary, got a {type(state).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFileError(f"{path}: not a state that this program wrote ({error!s:.120})") from None
    return state


def _checksum(structure: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(dtype=torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def _take_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Replace every tensor by `{"tensor": name}` and put it into `tensors`; dictionaries become lists of pairs."""
    if isinstance(value, Tensor):
        name = f"tensor{len(tensors)}"
        # A copy, because safetensors refuses two tensors in one memory, as tied weights are.
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"pairs": [[key, _take_tensors(entry, tensors)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return [_take_tensors(entry, tensors) for entry in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a state must be of dictionaries, lists, numbers, texts and tensors, got a {type(value).__name__}")


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _put_tensors(entry, tensors) for key, entry in value["pairs"]}
    if isinstance(value, list):
        return [_put_tensors(entry, tensors) for entry in value]
    return value


class LineLog:
    """Log with a JSON object on each line; a torn last line is ignored.

    Lines are on the disk before the next call of `append`, so that an interruption can tear the last one only.

    Args:
        path: path of the file, which is made when the first line is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Return every whole line so far.

        Raises:
            DamagedFileError: a line before the last one is damaged, which no interruption does.
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
                raise DamagedFileError(
                    f"{self.path}: expected a JSON object in line {number}, got {type(error).__name__}: {error!s:.80}; "
                    "restore the file, or delete it from this line on to have the rest made again"
                ) from None
            entries.append(entry)
        return entries

    def keep(self, count: int) -> None:
        """Remove all lines after the first `count`, to resume from before they were written.

        Raises:
            DamagedFileError: there are fewer, or one of them is damaged.
        """
        entries = self.read()[:count]
        if len(entries) < count:
            raise DamagedFileError(
                f"{self.path}: expected {count} lines, as many as the checkpoint has counted, got {len(entries)}; "
                "restore the file, or start a new run"
            )
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in entries).encode())

    def append(self, *entries: dict[str, Any]) -> None:
        """Append a line for each entry and flush them to the disk together."""
        with with_filename(self.path), open(self.path, "a") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
            file.flush()
            os.fsync(file.fileno())
