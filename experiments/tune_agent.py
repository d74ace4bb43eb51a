"""Many searches on a Ray cluster: agents over their hyperparameters, or, at equal images, PBT or random schedules.

`--search asha` trains agents that differ in PPO's and the environment's hyperparameters, and stops early those that do
worse than others did at the same number of episodes. `--search pbt` is the agent's rival: Population Based Training
over the same policies, `--search random` draws a schedule for each training. Both spend `--trainings` classifier
trainings, as an agent with as many `--agent.episodes` does. The best policy of each is exported like train_agent.py's.

    python experiments/tune_agent.py --trials 16
    python experiments/tune_agent.py --search pbt --trainings 120
    python experiments/tune_agent.py --preset fashion --address auto --trials 32
    python experiments/tune_agent.py --resume runs/tune-20260101-120000

A trial with one configuration and seed gives one result. Which trials ASHA stops, and which members PBT replaces,
depends on the order in which they report where several run at once, so on timing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch
import tyro

from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError, user_errors
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.signals import interrupt_on_sigterm
from rlmix.experiments.search.cluster import connected, require_places
from rlmix.experiments.search.config import PRESETS, named
from rlmix.experiments.search.plan import Search
from rlmix.experiments.search.selection import report

if TYPE_CHECKING:
    pass
from rlmix.experiments.search.tuning import KIND, TuneConfig, agents, check, finish, go_on, population, settle


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    torch.set_num_threads(1)
    interrupt_on_sigterm()
    with user_errors():
        asked = parse(sys.argv[1:] if arguments is None else arguments)
        config = asked
        if asked.resume is not None:
            run, stored = RunFolder.open(asked.resume, KIND, trust=asked.trust)
            config = stored_config(TuneConfig, stored)
        check(config)
    address = asked.address or config.address
    with user_errors(), connected(address):
        share = Search.of(config.agent).share
        if asked.resume is None:
            config = replace(config, agent=settle(config))
            run = RunFolder.create(config.out, KIND)
            run.write_config(KIND, asdict(config))
        require_places(config.agent.workers if config.search == "asha" else 1, share)
        with user_errors(go_on(run)):
            print(f"run folder: {run.path}\nwatch: tensorboard --logdir {run.path}", flush=True)
            results = agents(config, run) if config.search == "asha" else population(config, run)
    # Some of Tune's actors outlive its trials, on CPUs that the comparison needs; they do not outlive the connection.
    with user_errors(go_on(run)), connected(address):
        finish(config, run, results)
        report(Search.of(config.agent), run)
        print(
            f"\nwritten: {run.path}/policy.json, summary.json\nnext:\n"
            f"  python experiments/replay_policy.py --policy {run.path}/policy.json"
        )


def parse(arguments: Sequence[str]) -> TuneConfig:
    """The command line, on top of the preset that it names.

    Raises:
        RunError: the preset is not known.
    """
    name = named(arguments, "--preset") or "default"
    if name not in PRESETS:
        raise RunError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    one_each = replace(PRESETS[name], backend="ray", environments=0)  # each of Ray's workers holds one environment
    default = TuneConfig(preset=name, agent=one_each)
    return tyro.cli(TuneConfig, default=default, args=arguments, description=__doc__)


if __name__ == "__main__":
    main()
