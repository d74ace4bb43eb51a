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

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro

from agent.ppo import Agent
from agent.ray_env import Share
from agent.replay import Chooser, ask, follow
from classifier.mixing import MixPolicy, PolicySchedule
from experiments.cluster import connected, train_together
from experiments.final_training import FinalConfig, load_data, resolve, train_to_the_end
from experiments.run_folder import RunError, RunFolder, interrupt_on_sigterm, stop_file, stored_config, user_errors
from experiments.shipped import SHIPPED, agent_folder

KIND = "replay"


@dataclass(frozen=True)
class ReplayConfig(FinalConfig):
    """Train a classifier under a learned policy."""

    policy: str | None = None
    """Policy schedule, a JSON file that train_agent.py wrote."""
    agent: str | None = None
    """An agent that is asked at every segment, instead of a schedule: shipped, or a run folder of train_agent.py."""
    num_workers: int = 1
    """Processes that train together through Ray Train, on a CPU with --threads each; batches are parted among them."""
    address: str | None = None
    """Of a Ray cluster for several processes, auto for this machine's; none starts Ray on this machine, on loopback."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    interrupt_on_sigterm()
    with user_errors():
        asked = tyro.cli(ReplayConfig, args=sys.argv[1:] if arguments is None else arguments, description=__doc__)
        config = asked
        if config.resume is not None:
            run, stored = RunFolder.open(config.resume, KIND, trust=config.trust)
            config = stored_config(ReplayConfig, stored)
            choose, segments, name = chooser(config, run.path)
            data = load_data(config)
        else:
            choose, segments, name = chooser(config, None)
            data = load_data(config)
            config = resolve(parted(config), data, policies(config))
            run = RunFolder.create(config.out, KIND)
            keep_policy(config, run)
            run.write_config(KIND, asdict(config))
    with user_errors(f"python experiments/replay_policy.py {run.go_on}"):
        print(f"run folder: {run.path}", flush=True)
        if config.num_workers > 1:
            with connected(asked.address or config.address):
                run.release()  # the first process owns it
                train_together(one_of_several, run.path, config.num_workers, together_share(config))
        else:
            train_to_the_end(config, run, data, choose, segments, name)


def parted(config: ReplayConfig) -> ReplayConfig:
    """The configuration as several processes can have it: a share of the threads each, and nothing compiled.

    Raises:
        RunError: the batch does not part evenly, or something is asked for that one process alone can do.
    """
    if config.num_workers < 1:
        raise RunError(f"--num-workers must be at least 1, got {config.num_workers}")
    if config.num_workers == 1:
        if config.address is not None:
            raise RunError("--address is for several processes: add --num-workers")
        return config
    if config.batch_size % config.num_workers or config.batch_size < 2 * config.num_workers:
        raise RunError(
            f"--batch-size must part into {config.num_workers} slices of at least 2 images, got {config.batch_size}"
        )
    if config.compile == "on":
        raise RunError("--compile on is for one process; leave it out with --num-workers")
    cores = len(os.sched_getaffinity(0))
    return replace(config, compile="off", threads=config.threads or max(cores // config.num_workers, 1))


def together_share(config: ReplayConfig) -> Share:
    """What each of several processes has of its machine."""
    return Share(config.threads, 1.0 if config.device.startswith("cuda") else 0.0)


def one_of_several(parameters: dict[str, str]) -> None:
    """One process of several; the first one owns the run folder and reports.

    Args:
        parameters: `run`, the folder's path.
    """
    first = torch.distributed.get_rank() == 0
    path = Path(parameters["run"])
    run = RunFolder(path) if first else None
    config = stored_config(ReplayConfig, json.loads((path / "config.json").read_bytes())["config"])
    choose, segments, name = chooser(config, path)
    try:
        train_to_the_end(config, run, load_data(config), choose, segments, name, together=True)
    except KeyboardInterrupt:  # saved; Ray would take it for a failure and start again
        return
    if first:
        stop_file(path).unlink(missing_ok=True)  # asked too late


def chooser(config: ReplayConfig, run: Path | None) -> tuple[Chooser, Sequence[float], str]:
    """Who chooses, at which progress, and its name; read from the run folder's own copy when a training goes on.

    Raises:
        RunError: neither or both of a schedule and an agent are given.
        PolicyError: the schedule cannot be used.
        DamagedFileError: the agent cannot be used.
    """
    if (config.policy is None) == (config.agent is None):
        raise RunError("give either --policy FILE (a schedule) or --agent shipped (or a search's run folder)")
    if config.policy is not None:
        schedule = PolicySchedule.load(config.policy if run is None else run / "policy.json")
        return follow(schedule), [until for until, _ in schedule.segments], config.policy
    assert config.agent is not None
    agent = Agent.load(agent_folder(config.agent) if run is None else run)
    return (
        ask(agent),
        agent.segments,
        "the shipped agent" if config.agent == SHIPPED else f"the agent of {config.agent}",
    )


def policies(config: ReplayConfig) -> list[MixPolicy]:
    """What a schedule will mix with, or whatever an agent may choose."""
    if config.policy is not None:
        return [policy for _, policy in PolicySchedule.load(config.policy).segments]
    assert config.agent is not None
    menu = Agent.load(agent_folder(config.agent)).menu
    return [menu.policy(action) for action in menu.actions()]


def keep_policy(config: ReplayConfig, run: RunFolder) -> None:
    """Copy what chooses into the run folder, so that the training can go on, and be told, without the original."""
    if config.policy is not None:
        PolicySchedule.load(config.policy).save(run.path / "policy.json")
    elif config.agent is not None:
        Agent.load(agent_folder(config.agent)).save(run.path)


if __name__ == "__main__":
    main()
