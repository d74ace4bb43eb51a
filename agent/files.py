"""Files of an agent: a `.json` describes it, a `.safetensors` holds its weights; reading them runs no code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.optim import Optimizer

from rlmix.classifier.errors import near_matches
from rlmix.classifier.files import DamagedFileError, write_atomic
from rlmix.classifier.mixing.policy import require_fields

SHIPPED, SURROGATE, RULE = "shipped", "surrogate", "rule"  # agents that come with the program
NAMED = {name: Path(__file__).parents[1] / "experiments" / "policies" / name for name in (SHIPPED, SURROGATE, RULE)}
RULE_FILE = "rule.json"  # in the folder of a rule, which has no network

Loaded = TypeVar("Loaded")


def place_of(name: str | Path) -> Path:
    """Return where an agent lies: a text may be the name of one that comes with the program, a `Path` is a place."""
    return NAMED.get(name, Path(name)) if isinstance(name, str) else name


@dataclass(frozen=True)
class AgentFormat:
    """Format of one kind of agent.

    Attributes:
        name: name of the format in `agent.json`.
        version: version of the format.
        title: name of the kind of agent in messages.
        command: name of the command that writes such agents.
        fields: names of the description's fields, in order; all are required, and no other but `optional` is allowed.
        stem: name of both files, without their endings.
        optional: names of fields that came later, which older files lack.
    """

    name: str
    version: int
    title: str
    command: str
    fields: tuple[str, ...]
    stem: str = "agent"
    optional: tuple[str, ...] = ()

    @property
    def files(self) -> tuple[str, str]:
        """Names of the files: description and weights."""
        return f"{self.stem}.json", f"{self.stem}.safetensors"

    def to_files(self, description: Mapping[str, Any], weights: dict[str, Tensor]) -> dict[str, bytes]:
        """Return the contents of an agent's files by name.

        Args:
            description: value of each of the fields.
            weights: contiguous tensors on the CPU, no two in one memory.
        """
        header = {"format": self.name, "version": self.version}
        text = (
            json.dumps({**header, **{name: description[name] for name in (*self.fields, *self.optional)}}, indent=2)
            + "\n"
        )
        described, weighted = self.files
        return {weighted: save(weights), described: text.encode()}

    def from_files(
        self, files: Mapping[str, bytes], build: Callable[[dict[str, Any], dict[str, Tensor]], Loaded]
    ) -> Loaded:
        """Build an agent from the contents of its files.

        Args:
            files: contents by name.
            build: function from description and weights to the agent; may raise any usual error of a value.

        Raises:
            ValueError: the files are damaged, of another format or version, or do not fit each other.
        """
        try:
            described, weighted = self.files
            value = json.loads(files[described])
            if not isinstance(value, dict) or (value.get("format"), value.get("version")) != (self.name, self.version):
                raise ValueError(f"not an {self.title} of version {self.version}")
            require_fields("agent", value, ["format", "version", *self.fields], optional=self.optional)
            if not isinstance(value["provenance"], dict):
                raise ValueError("provenance must be an object")
            return build(value, load(files[weighted]))
        # ArithmeticError: JSON knows numbers that are infinite.
        except (ValueError, TypeError, KeyError, ArithmeticError, RuntimeError, SafetensorError) as error:
            raise ValueError(error) from None

    def load(self, folder: Path, build: Callable[[dict[str, Any], dict[str, Tensor]], Loaded]) -> Loaded:
        """Build the agent of a folder; see `from_files`.

        Raises:
            DamagedFileError: a file is missing, damaged, of another format or version, or does not fit the other.
        """
        try:
            return self.from_files({name: (folder / name).read_bytes() for name in self.files}, build)
        except (OSError, ValueError) as error:
            near = near_matches(str(folder), NAMED)
            reason = error if not isinstance(error, OSError) else f"{error.strerror}: {error.filename}"
            if not folder.is_dir():
                reason = f"there is no such folder{near}"
            elif (folder / RULE_FILE).is_file():
                raise DamagedFileError(
                    f"{folder}: expected an {self.title} with a network, which {self.command} writes, got a rule"
                ) from None
            raise DamagedFileError(
                f"{folder}: no usable {self.title} there ({reason}); expected {' and '.join(self.files)} as "
                f"{self.command} writes them"
            ) from None


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of an agent into a folder."""
    for name, content in files.items():
        write_atomic(folder / name, content)


def files_checksum(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of an agent's two files, description first, as hexadecimal digits."""
    return hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()


class NoOptimizer(Optimizer):
    """Placeholder for the optimiser of a policy that only chooses.

    A real one would import torch's compiler, which takes seconds.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        pass
