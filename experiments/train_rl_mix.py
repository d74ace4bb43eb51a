"""Train one classifier while RL-Mix's per-batch agent chooses R-Mix's thresholds and learns (arXiv 2212.04875).

The defaults train the search network on 1,000 Fashion-MNIST images for 3,000 updates. The agent is the published one;
`--thresholds random` is its control, the same program with thresholds drawn as R-Mix draws them, and
`--thresholds frozen --agent RUN` lets an agent that an earlier run has learned choose without learning on.

    python experiments/train_rl_mix.py
    python experiments/train_rl_mix.py --thresholds random
    python experiments/train_rl_mix.py --ppo.extractor image --grid mixing
    python experiments/train_rl_mix.py --thresholds frozen --agent runs/rl-mix-20260101-120000
    python experiments/train_rl_mix.py --resume runs/rl-mix-20260101-120000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import tyro

from rlmix.agent.rl_mix import ThresholdAgent
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import user_errors
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.signals import interrupt_on_sigterm
from rlmix.experiments.training.rl_mix import COMMAND, KIND, RLMixConfig, load_data, resolve, train


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    interrupt_on_sigterm()
    with user_errors():
        config = tyro.cli(RLMixConfig, args=sys.argv[1:] if arguments is None else arguments, description=__doc__)
        if config.resume is not None:
            run, stored = RunFolder.open(config.resume, KIND, trust=config.trust)
            config = stored_config(RLMixConfig, stored)
            data = load_data(config)
        else:
            data = load_data(config)
            config = resolve(config, data)
            run = RunFolder.create(config.out, KIND)
            if config.agent is not None:  # a copy, so that the training can go on without the original
                ThresholdAgent.load(Path(config.agent)).save(run.path)
            run.write_config(KIND, asdict(config))
    with user_errors(f"{COMMAND} {run.go_on}"):
        print(f"run folder: {run.path}\nwatch: tensorboard --logdir {run.events}", flush=True)
        train(config, run, data)


if __name__ == "__main__":
    main()
