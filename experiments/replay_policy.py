"""Train a classifier under a learned policy: a schedule from a file, or an agent that chooses at every segment.

    python experiments/replay_policy.py --agent shipped
    python experiments/replay_policy.py --agent rule
    python experiments/replay_policy.py --agent shipped --budget 4
    python experiments/replay_policy.py --agent shipped --budget auto --worth 0.5
    python experiments/replay_policy.py --policy runs/agent-20260101-120000/policy.json
    python experiments/replay_policy.py --agent runs/agent-20260101-120000 --model preact_resnet18 --updates 20000
    python experiments/replay_policy.py --policy runs/agent-20260101-120000/policy.json --num-workers 4 --address auto
    python experiments/replay_policy.py --resume runs/replay-20260101-130000

With `--budget` several candidates train, within the updates of so many trainings: one led by the agent, each other one
under one policy of a portfolio. Validation decides among those that end. Of a budget that is no whole number the rest
pays for further ones, and forecasts that were learned from recorded trainings decide which of them go on. `--workers`
trains several at the same time. When candidates have ended it says how far they are apart, and what more of them are
expected to gain; `--budget auto` stops where that is not worth its cost.

With `--num-workers` Ray Train runs the training in several processes (gloo on CPUs, NCCL on GPUs, one each). The batch
of `--batch-size` is divided evenly, and gradients are averaged. Each process mixes and normalises within its own part
of the batch, so that results differ from those of one process. If one is lost, all restart from the last checkpoint.
Ctrl-C and SIGTERM let them save first. Several machines need a run folder on storage that they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rlmix.experiments.runs.command import command
from rlmix.experiments.training.config import REPLAY, ReplayConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("replay_policy", arguments) as call:
        config = asked = call.parse(ReplayConfig, __doc__)

        from rlmix.experiments.runs.config import stored_config
        from rlmix.experiments.runs.data_record import at_its_place, keep_to_data
        from rlmix.experiments.runs.folder import RunFolder
        from rlmix.experiments.training.final_training import train_to_the_end
        from rlmix.experiments.training.replay import (
            OF_WORKERS,
            PolicySource,
            split_threads,
            train_distributed,
            with_workers_of,
        )
        from rlmix.experiments.training.resolve import load_data, resolve

        if config.run.resume is not None:
            run, stored = RunFolder.open(config.run.resume, REPLAY, trust=config.run.trust)
            call.warn_of_ignored(*OF_WORKERS)
            config = at_its_place(stored_config(ReplayConfig, stored), call)
            config = with_workers_of(asked, config, call)
            source = PolicySource.load(config, run.path)
            data = load_data(config)
        else:
            source = PolicySource.load(config, None)
            data = load_data(config)
            config = resolve(split_threads(config, source.candidates(config)), data, source.policies())
            source.require_updates(config.train.updates)
            run = RunFolder.create(config.run.out, REPLAY)
            source.save(run.path)
            run.write_config(REPLAY, asdict(config))
        call.resume = f"{call.command} {run.resume_options}"
        keep_to_data(run, data, config)
        print(f"run folder: {run.path}", flush=True)
        if remark := source.remark(config, data):
            print(f"note: {remark}", flush=True)
        if config.trainings > 1:
            from rlmix.experiments.training.budget_training import train_within_budget

            train_within_budget(config, run, data, source, asked.address or config.address)
        elif config.num_workers > 1:
            train_distributed(config, run, asked.address or config.address)
        else:
            checked = source.labels_checked
            train_to_the_end(config, run, data, source.choose, source.segments, source.name, labels_checked=checked)


if __name__ == "__main__":
    main()
