"""Search for a mixing policy: PPO on the workers' trainings, resumable."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.logger import HParam, configure
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from rlmix.agent.agent import Agent
from rlmix.agent.callbacks import SearchLog
from rlmix.agent.ppo import start_search, to_agent
from rlmix.agent.ray_env import RayVecEnv
from rlmix.agent.tags import Tag
from rlmix.agent.vec_env import ProcessVecEnv, WorkerFailedError
from rlmix.agent.workers import EpisodeCursor, make_worker
from rlmix.classifier.files import LineLog
from rlmix.classifier.limits import available_memory
from rlmix.envs.rewards import REWARDS
from rlmix.experiments.reports.search_page import write_search_report
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError, reject_incompatible
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import flatten
from rlmix.experiments.runs.signals import interrupt_later
from rlmix.experiments.search.budget import fit_to_time
from rlmix.experiments.search.config import AGENT, SearchConfig
from rlmix.experiments.search.plan import Search, load_start, new_agent
from rlmix.experiments.search.selection import (
    LIVE,
    Trainings,
    compare_contestants,
    find_candidates,
    known_agents,
    provenance,
    select_best,
)


def search_trial(parameters: dict[str, str]) -> None:
    """Run the search of a run folder as a Ray Tune trial.

    Args:
        parameters: `run`, path of the run folder.
    """
    torch.set_num_threads(1)
    run, stored = RunFolder.open(parameters["run"], AGENT, trust=True)
    execute(Search.from_config(stored_config(SearchConfig, stored)), run)


def execute(search: Search, run: RunFolder) -> None:
    """Search, select a policy, compare it and report; resume from whatever the run folder has."""
    started = time.monotonic()
    config = search.config
    checkpoint = run.load_checkpoint()
    with reject_incompatible(run.checkpoints):
        positions = positions_of(config, checkpoint)
    workers = None
    try:
        workers = begin_workers(search, run, positions)
        prepare_references(search, workers)
        search = fit_to_time(search, run, workers, time.monotonic() - started)
        searching = time.monotonic()
        agent, learning_seconds = learn(search, run, workers, positions, checkpoint)
        search_seconds = time.monotonic() - searching
        agent.save(run.path)
        trainings = Trainings(run, workers)
        found = find_candidates(search, run, workers, agent)
        schedule, candidates = select_best(search, run, trainings, found, agent.provenance)
        live = {} if search.one_decision else {LIVE: agent}  # the learned policy, where the agent chooses once
        contest = compare_contestants(search, schedule, trainings, {**live, **known_agents(search, run)})
    except WorkerFailedError as error:
        raise RunError(f"{error}; the search is saved, resume with {run.resume_options}") from None
    finally:
        if workers is not None:
            workers.close()
    timing = {
        "seconds_this_time": round(time.monotonic() - started, 1),
        "search_seconds_this_time": round(search_seconds, 1),
        "learning_share_of_search": round(learning_seconds / max(search_seconds, 1e-9), 4),
    }
    summary = {"policy": schedule.to_json(), "candidates": candidates, "contest": contest, "timing": timing}
    run.write_json("summary.json", summary)
    write_search_report(run.path)


def positions_of(config: SearchConfig, checkpoint: dict[str, Any] | None) -> list[EpisodeCursor]:
    """Return each environment's position: the start of the search, or that of the checkpoint."""
    if checkpoint is None:
        return [EpisodeCursor() for _ in range(config.environment_count)]
    return [
        EpisodeCursor("search", entry["episode"], tuple(tuple(action) for action in entry["actions"]))
        for entry in checkpoint["positions"]
    ]


def begin_workers(search: Search, run: RunFolder, positions: Sequence[EpisodeCursor]) -> VecEnv:
    """Start the workers, each environment at its position."""
    make, config = partial(make_worker, search.environment(run), search.config.seed), search.config
    if config.backend == "ray":
        return RayVecEnv(make, positions, share=search.share, timeout=config.worker_timeout)
    warn_of_memory(config.worker_count)
    with interrupt_later():
        return ProcessVecEnv(make, positions, processes=config.worker_count)


def warn_of_memory(count: int) -> None:
    """Warn if the workers may not fit into memory: each becomes about as large as this process.

    This process has loaded the same libraries and, before a new search, the same data and network.
    """
    each, free = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, available_memory()  # Linux counts in KiB
    if count * each > free:
        print(
            f"warning: {count} workers of about {each / 1e9:.1f} GB each may not fit into {free / 1e9:.1f} GB of free "
            f"memory; if one is killed, start again with --workers {max(free // each, 1)}",
            file=sys.stderr,
        )


def prepare_references(search: Search, workers: VecEnv) -> None:
    """Measure the relative reward's reference on every task of the pool, in parallel on all workers."""
    if not REWARDS[search.config.reward].needs_reference or not search.config.reference_seeds:
        return
    tasks = range(search.config.tasks)
    for start in tqdm(range(0, len(tasks), workers.num_envs), desc="reference", unit="round", mininterval=1):
        workers.env_method("prepare_reference", list(tasks[start : start + workers.num_envs]))


def learn(
    search: Search,
    run: RunFolder,
    workers: VecEnv,
    positions: list[EpisodeCursor],
    checkpoint: dict[str, Any] | None,
    learned: Callable[[int], None] = lambda _: None,
) -> tuple[Agent, float]:
    """Train the agent, from a checkpoint if there is one; return it and the seconds that PPO itself took.

    Args:
        search: setting of the search.
        run: run folder, for checkpoints and the log of episodes.
        workers: environments.
        positions: position of each environment.
        checkpoint: state to resume from; None starts a new search.
        learned: callback after each rollout that was learned from and saved, with the number of finished episodes.
    """
    config = search.config
    log = LineLog(run.path / "episodes.jsonl")
    log.keep(0 if checkpoint is None else checkpoint["episodes_done"])
    start = load_start(search, run)
    model = new_agent(search, workers, start)
    model.set_logger(configure(str(run.events), ["tensorboard"]))
    model.logger.record("hparams", HParam(_flat(asdict(config)), {Tag.RETURN_MEAN: 0.0}))
    observations = workers.reset()
    assert isinstance(observations, np.ndarray)
    with reject_incompatible(run.checkpoints):
        start_search(model, observations, None if checkpoint is None else checkpoint["search"])
    total = config.episodes * len(search.segments)
    left = total - model.num_timesteps
    learning_seconds = 0.0
    with tqdm(
        total=config.episodes,
        initial=0 if checkpoint is None else checkpoint["episodes_done"],
        desc="search",
        unit="episode",
        smoothing=0.1,
        mininterval=0.5 if sys.stderr.isatty() else 20,
    ) as bar:
        if left > 0:

            def save(state: dict[str, Any]) -> None:
                run.save_checkpoint(state["search"]["timesteps"], state)
                learned(state["episodes_done"])

            callback = SearchLog(
                menu=search.menu,
                segments=search.segments,
                episodes=log,
                positions=positions,
                bar=bar,
                rollouts=math.ceil(config.episodes / config.ppo.episodes_per_update),
                save=save,
                checkpoint=checkpoint,
            )
            # Timesteps are not reset, so PPO counts this total from the present one.
            model.learn(left, callback=callback, reset_num_timesteps=False)
            learning_seconds = callback.learning_seconds
    start_checksum = None if start is None else start.checksum  # a path means nothing elsewhere
    facts = {"learned_by": "ppo", "episodes": len(log.read()), "start_sha256": start_checksum, **provenance(search)}
    return to_agent(model.policy, search.menu, search.segments, facts, search.features), learning_seconds


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat = {**{name: value for name, value in flatten(config).items() if name != "ppo"}, **config["ppo"]}
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in flat.items()}
