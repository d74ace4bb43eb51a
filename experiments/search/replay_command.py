"""The command that trains under a learned policy on the task that it was searched on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlmix.experiments.runs.command import spelling
from rlmix.experiments.runs.options import flatten
from rlmix.experiments.search.config import SearchConfig
from rlmix.experiments.training.config import ReplayConfig

MACHINE = {"device", "precision", "compile", "readers"}  # options of a training that say nothing about its task


def replay_command(policy: Path, config: SearchConfig) -> str:
    """Return the command line, with those options that differ from its defaults, and below it what they are.

    Args:
        policy: the policy's file.
        config: options of the search; of a range, the upper end is given.
    """
    ranges = {"train_size": config.train_size, "updates": config.updates, "label_noise": config.label_noise}
    searched = {
        **asdict(config.data),
        **{name: value for name, value in asdict(config.train).items() if name not in MACHINE},
        **{name: high for name, (_, high) in ranges.items()},
        "lr": config.train.lr * config.lr_scale[1],
    }
    defaults = flatten(asdict(ReplayConfig()))
    options = [text for name, value in searched.items() if value != defaults[name] for text in _spelled(name, value)]
    one = all(low == high for low, high in (*ranges.values(), config.lr_scale))
    task = "the task that was searched" if one else "the largest task that was searched, with the most wrong labels"
    line = f"{spelling('replay_policy')} {shlex.join(['--policy', str(policy), *options])}"
    return f"{line}\n    (trains on {task}; without these options on another one)" if options else line


def _spelled(name: str, value: Any) -> list[str]:
    """Return an option as it stands on the command line."""
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{'' if value else 'no-'}{option}"]
    return [f"--{option}", *_values(value)]


def _values(value: Any) -> Iterator[str]:
    if isinstance(value, tuple | list):
        for entry in value:
            yield from _values(entry)
    else:
        yield f"{value:g}" if isinstance(value, float) else str(value)
