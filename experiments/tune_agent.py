"""Search many times on a Ray cluster, and keep the best mixing policy.

`--search asha` trains agents with different hyperparameters of PPO and of the environment, and stops early those that
do worse than others did after the same number of episodes. The other two need no agent, for comparison: `--search pbt`
is Population Based Training over the same policies, `--search random` draws a schedule for each training. Both make
`--trainings` classifier trainings, as many as an agent with so many `--agent.episodes`. The best policy is written to
policy.json, as by train_agent.py.

    python experiments/tune_agent.py --trials 16
    python experiments/tune_agent.py --search pbt --trainings 120
    python experiments/tune_agent.py --preset fashion --address auto --trials 32
    python experiments/tune_agent.py --resume runs/tune-20260101-120000

A trial with one configuration and seed gives one result. Which trials ASHA stops, and which members PBT replaces,
depends on the order in which they report where several run at once, so on timing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from rlmix.experiments.runs.command import Call, command
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.options import TUNE
from rlmix.experiments.search.config import TuneConfig, preset

EPISODES = 256  # of an agent whose preset is given minutes instead


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("tune_agent", arguments) as call:
        config = asked = parse(call)

        import torch

        from rlmix.experiments.runs.config import stored_config
        from rlmix.experiments.runs.data_record import record_data, require_same_data
        from rlmix.experiments.runs.folder import RunFolder
        from rlmix.experiments.search.cluster import check_capacity, ray_session
        from rlmix.experiments.search.plan import Search, load_splits
        from rlmix.experiments.search.replay_command import replay_command
        from rlmix.experiments.search.selection import report
        from rlmix.experiments.search.tuning import agents, check, finish, population, resolve_agent

        torch.set_num_threads(1)  # the cores are the workers'
        if asked.run.resume is not None:
            run, stored = RunFolder.open(asked.run.resume, TUNE, trust=asked.run.trust)
            call.warn_of_ignored()
            config = stored_config(TuneConfig, stored)
            data = load_splits(config.agent)
            require_same_data(run.path, data)
        check(config)
        address = asked.address or config.address
        with ray_session(address):
            share = Search.from_config(config.agent).share
            if asked.run.resume is None:
                agent, data = resolve_agent(config)
                config = replace(config, agent=agent)
                run = RunFolder.create(config.run.out, TUNE)
                run.write_config(TUNE, asdict(config))
            record_data(run.path, data)
            check_capacity(config.agent.workers if config.search == "asha" else 1, share)
            call.resume = f"{call.command} {run.resume_options}"
            print(f"run folder: {run.path}\nwatch: tensorboard --logdir {run.path}", flush=True)
            results = agents(config, run) if config.search == "asha" else population(config, run)
        # Some of Tune's actors outlive its trials, on CPUs that the comparison needs; they end with the connection.
        with ray_session(address):
            finish(config, run, results)
            report(Search.from_config(config.agent), run)
        print(
            f"\nwritten: {run.path}/policy.json, summary.json\nnext:\n"
            f"  {replay_command(run.path / 'policy.json', config.agent)}"
        )


def parse(call: Call) -> TuneConfig:
    """Return the options of the command line, on top of the preset that it names.

    Raises:
        RunError: the preset is not known, or differs from the single search's own.
    """
    search = preset(call.value("--preset") or TuneConfig.preset)
    one_each = replace(search, backend="ray", environments=0)  # each of Ray's workers holds one environment
    one_each = replace(one_each, episodes=search.episodes or EPISODES)
    config = call.parse(TuneConfig, __doc__, default=TuneConfig(preset=search.preset, agent=one_each))
    for name in ("preset", "seed"):
        if getattr(config.agent, name) not in (getattr(one_each, name), getattr(config, name)):
            raise RunError(f"--agent.{name} is for a single search: give --{name} instead")
    return config


if __name__ == "__main__":
    main()
