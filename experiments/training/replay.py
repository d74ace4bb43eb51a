"""Who chooses in a final training: a schedule or an agent; and the training in several processes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from rlmix.agent.ppo import Agent
from rlmix.agent.ray_env import Share
from rlmix.agent.replay import Chooser, ask, follow
from rlmix.classifier.mixing import MixPolicy, PolicySchedule
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import RunFolder, stop_file
from rlmix.experiments.search.shipped import SHIPPED, agent_folder
from rlmix.experiments.training.config import ReplayConfig
from rlmix.experiments.training.final_training import train_to_the_end
from rlmix.experiments.training.resolve import load_data


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
