"""Train a classifier under a learned policy: a schedule from a file, or an agent that is asked at every segment.

python experiments/replay_policy.py --policy runs/agent-20260101-120000/policy.json
python experiments/replay_policy.py --agent runs/agent-20260101-120000 --model preact_resnet18 --updates 20000
python experiments/replay_policy.py --resume runs/replay-20260101-130000
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from agent.ppo import Agent
from agent.replay import Chooser, ask, follow
from classifier.mixing import MixPolicy, PolicySchedule
from experiments.final_training import FinalConfig, load_data, resolve, train_to_the_end
from experiments.run_folder import RunError, RunFolder, interrupt_on_sigterm, stored_config, user_errors

KIND = "replay"


@dataclass(frozen=True)
class ReplayConfig(FinalConfig):
    """Train a classifier under a learned policy."""

    policy: str | None = None
    """Policy schedule, a JSON file that train_agent.py wrote."""
    agent: str | None = None
    """Run folder of train_agent.py whose agent is asked at every segment, instead of a schedule."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    interrupt_on_sigterm()
    with user_errors():
        config = tyro.cli(ReplayConfig, args=sys.argv[1:] if arguments is None else arguments, description=__doc__)
        if config.resume is not None:
            run, stored = RunFolder.open(config.resume, KIND)
            config = stored_config(ReplayConfig, stored)
            choose, segments, name = chooser(config, run.path)
            data = load_data(config)
        else:
            choose, segments, name = chooser(config, None)
            data = load_data(config)
            config = resolve(config, data, policies(config))
            run = RunFolder.create(config.out, KIND)
            keep_policy(config, run)
            run.write_config(KIND, asdict(config))
    with user_errors(f"python experiments/replay_policy.py --resume {run.path}"):
        print(f"run folder: {run.path}")
        train_to_the_end(config, run, data, choose, segments, name)


def chooser(config: ReplayConfig, run: Path | None) -> tuple[Chooser, Sequence[float], str]:
    """Who chooses, at which progress, and its name; read from the run folder's own copy when a training goes on.

    Raises:
        RunError: neither or both of a schedule and an agent are given.
        PolicyError: the schedule cannot be used.
        DamagedFileError: the agent cannot be used.
    """
    if (config.policy is None) == (config.agent is None):
        raise RunError("give either --policy FILE (a schedule) or --agent RUN (a search's run folder)")
    if config.policy is not None:
        schedule = PolicySchedule.load(config.policy if run is None else run / "policy.json")
        return follow(schedule), [until for until, _ in schedule.segments], config.policy
    assert config.agent is not None
    agent = Agent.load(Path(config.agent) if run is None else run)
    return ask(agent), agent.segments, f"the agent of {config.agent}"


def policies(config: ReplayConfig) -> list[MixPolicy]:
    """What a schedule will mix with; an agent's choices are not known before it is asked."""
    if config.policy is None:
        return []
    return [policy for _, policy in PolicySchedule.load(config.policy).segments]


def keep_policy(config: ReplayConfig, run: RunFolder) -> None:
    """Copy what chooses into the run folder, so that the training can go on, and be told, without the original."""
    if config.policy is not None:
        PolicySchedule.load(config.policy).save(run.path / "policy.json")
    elif config.agent is not None:
        Agent.load(Path(config.agent)).save(run.path)


if __name__ == "__main__":
    main()
