"""Try for hours what the tests try for minutes.

python -m tests.soak inputs --out experiments/results/soak
python -m tests.soak kills --out experiments/results/soak
python -m tests.soak writes --out experiments/results/soak
python -m tests.soak memory --out experiments/results/soak
python -m tests.soak table --results experiments/results/soak

inputs: files of every kind that the program reads, and command lines, made wrong by chance; none may end in an error
that is not the program's own, take 10 seconds, or ask for 1 GiB.
kills: searches and trainings killed at random moments by SIGKILL, SIGTERM and Ctrl-C, several times each; every one
must go on to the result of a run that nobody stopped, and leave no process behind.
writes: runs whose disk fails, is full or lies at every place where they use it; each must say so in one line that names
the file, keep a whole checkpoint, and go on to the same result when the disk is well.
memory: a worker that plays hundreds of episodes; its resident memory must be flat.
table: the results of all four as one table.

What fails is told in full, with the command that tries it alone; the exit status is then 1.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import tyro

from rlmix.classifier.files import write_atomic
from rlmix.experiments.runs.errors import exit_on_user_error
from rlmix.experiments.runs.machine import machine
from rlmix.experiments.runs.signals import interrupt_on_sigterm
from tests.soak.inputs import InputsSoak
from tests.soak.kills import KillsSoak
from tests.soak.memory import MemorySoak
from tests.soak.table import TableSoak, table
from tests.soak.writes import WritesSoak

COMMAND = "python -m tests.soak"
SOAKS: dict[str, type] = {"inputs": InputsSoak, "kills": KillsSoak, "writes": WritesSoak, "memory": MemorySoak}
Command = (
    Annotated[InputsSoak, tyro.conf.subcommand("inputs")]
    | Annotated[KillsSoak, tyro.conf.subcommand("kills")]
    | Annotated[WritesSoak, tyro.conf.subcommand("writes")]
    | Annotated[MemorySoak, tyro.conf.subcommand("memory")]
    | Annotated[TableSoak, tyro.conf.subcommand("table")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    interrupt_on_sigterm()
    command = shlex.join([*COMMAND.split(), *arguments])
    with exit_on_user_error(lambda: command):
        soak = tyro.cli(Command, args=arguments, description=__doc__)  # type: ignore[arg-type]
        if isinstance(soak, TableSoak):
            print(table(Path(soak.results)), end="")
            return
        if soak.out is not None:
            Path(soak.out).mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        result, failed = soak.run()
        report = {
            "command": command,
            "config": asdict(soak),
            "seconds_this_time": round(time.monotonic() - started, 1),
            "machine": machine(),
            **result,
            "failed": len(failed),
        }
        text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
        if soak.out is not None:
            name = next(name for name, kind in SOAKS.items() if isinstance(soak, kind))
            write_atomic(Path(soak.out) / f"{name}.json", text.encode())
    print(text)
    if failed:
        print("\n\n".join(failed), file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
