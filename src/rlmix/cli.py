"""The console script `rlmix`: the everyday commands of experiments/, as `rlmix COMMAND`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "train-agent": "search a mixing policy with PPO",
    "tune-agent": "search many times on a Ray cluster",
    "replay-policy": "train a classifier under a learned policy or an agent",
    "train-classifier": "train a classifier under one fixed mixing policy",
    "train-rl-mix": "train a classifier with the per-batch agent of RL-Mix",
    "compare": "compare ways to train over paired seeds",
    "evaluate": "measure a trained network",
    "report": "write the HTML report of a run again",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names, with the arguments after it.

    Raises:
        SystemExit: there is no such command, or it ended with an error.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    name = arguments[0] if arguments else None
    if name in (None, "-h", "--help"):
        print(usage())
    elif name in COMMANDS:
        importlib.import_module(f"rlmix.experiments.{name.replace('-', '_')}").main(arguments[1:])
    else:
        print(f"error: expected one of {', '.join(COMMANDS)}, got {name!r}", file=sys.stderr)
        sys.exit(2)


def usage() -> str:
    """Return the commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {does}" for name, does in COMMANDS.items()]
    return "\n".join(["usage: rlmix COMMAND [OPTIONS]", "", *lines, "", "rlmix COMMAND --help explains its options."])
