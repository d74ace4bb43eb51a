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

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rlmix.experiments.runs.command import command
from rlmix.experiments.training.config import RL_MIX, RLMixConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("train_rl_mix", arguments) as call:
        config = call.parse(RLMixConfig, __doc__)

        from rlmix.agent.rl_mix.agent import RLMixAgent
        from rlmix.experiments.runs.config import stored_config
        from rlmix.experiments.runs.data_record import at_its_place, keep_to_data
        from rlmix.experiments.runs.folder import RunFolder
        from rlmix.experiments.training.rl_mix import resolve, train

        if config.run.resume is not None:
            run, stored = RunFolder.open(config.run.resume, RL_MIX, trust=config.run.trust)
            call.warn_of_ignored()
            config = at_its_place(stored_config(RLMixConfig, stored), call)
            data = config.data.draw(config.data_seed)
        else:
            data = config.data.draw(config.data_seed)
            config = resolve(config, data)
            run = RunFolder.create(config.run.out, RL_MIX)
            if config.agent is not None:  # a copy, so that the training can be resumed without the original
                RLMixAgent.load(Path(config.agent)).save(run.path)
            run.write_config(RL_MIX, asdict(config))
        call.resume = f"{call.command} {run.resume_options}"
        keep_to_data(run, data, config)
        print(f"run folder: {run.path}\nwatch: tensorboard --logdir {run.events}", flush=True)
        train(config, run, data)


if __name__ == "__main__":
    main()
