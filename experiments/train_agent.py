"""Search a mixing policy with PPO, then say honestly how good it is.

The default preset searches on 500 Fashion-MNIST images with a network of 78 thousand parameters: 120 trainings of 250
updates in about 5 minutes on 2 cores, then the learned schedule against plain training, CutMix on half the updates and
a random policy, each over fresh seeds and images.

    python experiments/train_agent.py
    python experiments/train_agent.py --preset fashion
    python experiments/train_agent.py --resume runs/agent-20260101-120000
    python experiments/train_agent.py --backend ray --workers 8 --gpus-per-worker 0.25 --address auto

The per-batch agent of RL-Mix as published has a command of its own, train_rl_mix.py.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import torch
import tyro

from rlmix.experiments.reports.pages import NAME
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError, user_errors
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.signals import interrupt_on_sigterm
from rlmix.experiments.search.cluster import connected, places, require_places, run_trial
from rlmix.experiments.search.config import PRESETS, SearchConfig, named
from rlmix.experiments.search.plan import KIND, Search, print_data, resolve, resolve_with_gpus
from rlmix.experiments.search.search import execute, search_trial
from rlmix.experiments.search.selection import report


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    torch.set_num_threads(1)  # the cores are the workers'
    interrupt_on_sigterm()
    with ExitStack() as ray:
        with user_errors():
            if named(arguments, "--env") == "rl-mix":
                raise RunError("--env rl-mix is a command of its own now: python experiments/train_rl_mix.py")
            asked = parse(arguments)
            if asked.resume is not None:
                run, stored = RunFolder.open(asked.resume, KIND, trust=asked.trust)
                search = Search.of(stored_config(SearchConfig, stored))
                if search.config.backend == "ray":
                    ray.enter_context(connected(asked.address or search.config.address))
                    require_places(search.config.workers, search.share)
            else:
                if asked.backend == "ray":
                    share = Search.of(asked).share
                    ray.enter_context(connected(asked.address))
                    if not asked.workers:
                        asked = replace(asked, workers=asked.most_workers(max(places(share), 1)))
                    require_places(asked.workers, share)
                search, data = resolve_with_gpus(asked) if asked.gpus_per_worker else resolve(asked)
                run = RunFolder.create(asked.out, KIND)
                run.write_config(KIND, asdict(search.config))
                print_data(data, search)
        with user_errors(f"python experiments/train_agent.py {run.go_on}"):
            print(f"run folder: {run.path}\nwatch: tensorboard --logdir {run.events}", flush=True)
            if search.config.backend == "ray":
                run.release()  # the trial's process owns it
                run_trial(search_trial, run.path, search.config.workers, search.share)
            else:
                execute(search, run)
            report(search, run)
            print(
                f"\nwritten: {run.path}/policy.json, agent.safetensors, summary.json, episodes.jsonl, {NAME}\n"
                "next:\n"
                f"  tensorboard --logdir {run.events}\n"
                f"  python experiments/replay_policy.py --policy {run.path}/policy.json"
            )


def parse(arguments: Sequence[str]) -> SearchConfig:
    """The command line, on top of the preset that it names.

    Raises:
        RunError: the preset is not known.
    """
    name = named(arguments, "--preset") or "default"
    if name not in PRESETS:
        raise RunError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    asked = tyro.cli(SearchConfig, default=PRESETS[name], args=arguments, description=__doc__)
    return asked if asked.start is None else replace(asked, start=str(Path(asked.start).resolve()))


if __name__ == "__main__":
    main()
