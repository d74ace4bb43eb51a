"""Train a classifier under a learned policy: a schedule from a file, or an agent that is asked at every segment.

python experiments/replay_policy.py --agent shipped
python experiments/replay_policy.py --policy runs/agent-20260101-120000/policy.json
python experiments/replay_policy.py --agent runs/agent-20260101-120000 --model preact_resnet18 --updates 20000
python experiments/replay_policy.py --policy runs/agent-20260101-120000/policy.json --num-workers 4 --address auto
python experiments/replay_policy.py --resume runs/replay-20260101-130000

With `--num-workers` Ray Train runs the training in several processes (gloo on CPUs, NCCL on GPUs, one each). The batch
stays the one of `--batch-size` and is parted evenly; gradients are averaged. Each process mixes within its own part,
and batch normalisation sees its own part, so that results are those of one process only as far as these do not matter.
A process that is lost restarts all of them from the last checkpoint; Ctrl-C and SIGTERM let them save first. The run
folder must be one that the first process sees: on several machines, on storage that they share.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict

import tyro

from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import user_errors
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.signals import interrupt_on_sigterm
from rlmix.experiments.search.cluster import connected, train_together
from rlmix.experiments.training.config import REPLAY, ReplayConfig
from rlmix.experiments.training.final_training import train_to_the_end
from rlmix.experiments.training.replay import chooser, keep_policy, one_of_several, parted, policies, together_share
from rlmix.experiments.training.resolve import load_data, resolve


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    interrupt_on_sigterm()
    with user_errors():
        asked = tyro.cli(ReplayConfig, args=sys.argv[1:] if arguments is None else arguments, description=__doc__)
        config = asked
        if config.resume is not None:
            run, stored = RunFolder.open(config.resume, REPLAY, trust=config.trust)
            config = stored_config(ReplayConfig, stored)
            choose, segments, name = chooser(config, run.path)
            data = load_data(config)
        else:
            choose, segments, name = chooser(config, None)
            data = load_data(config)
            config = resolve(parted(config), data, policies(config))
            run = RunFolder.create(config.out, REPLAY)
            keep_policy(config, run)
            run.write_config(REPLAY, asdict(config))
    with user_errors(f"python experiments/replay_policy.py {run.go_on}"):
        print(f"run folder: {run.path}", flush=True)
        if config.num_workers > 1:
            with connected(asked.address or config.address):
                run.release()  # the first process owns it
                train_together(one_of_several, run.path, config.num_workers, together_share(config))
        else:
            train_to_the_end(config, run, data, choose, segments, name)


if __name__ == "__main__":
    main()
