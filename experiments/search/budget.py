"""Number of episodes that fit into a search's minutes, estimated from a few timed trainings."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from stable_baselines3.common.vec_env import VecEnv

from rlmix.agent.baselines import balanced_schedules
from rlmix.agent.workers import Job, episode_seed, run_jobs
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.search.plan import Search
from rlmix.experiments.search.selection import trainings_after

FILE = "budget.json"
TIMED_ROUNDS = 2  # timed trainings of each environment
MIN_ROLLOUTS, MAX_EPISODES = 6, 1024  # fewer teach the agent nothing; more add little
RESERVE = 0.05  # share of the time for everything but training: pictures, report, PPO itself


def fit_to_time(search: Search, run: RunFolder, workers: VecEnv, spent: float) -> Search:
    """Return the search with as many episodes as fit into its minutes, unless its configuration fixes their number.

    Trainings are timed once, and the run folder keeps the result: a resumed search has the same number of episodes.

    Args:
        search: setting of the search.
        run: run folder.
        workers: environments, with their references prepared.
        spent: seconds that the job has taken so far.
    """
    config = search.config
    if config.episodes:
        return search
    if not (run.path / FILE).exists():
        seconds = _seconds_per_round(search, workers)
        later_rounds = sum(math.ceil(count / workers.num_envs) for count in trainings_after(search, run))
        available = 60 * config.minutes * (1 - RESERVE) - spent - (TIMED_ROUNDS + later_rounds) * seconds
        rollout = config.ppo.episodes_per_update
        fitting = int(available / seconds * workers.num_envs) // rollout
        episodes = min(max(fitting, MIN_ROLLOUTS) * rollout, max(MAX_EPISODES // rollout, MIN_ROLLOUTS) * rollout)
        rounds = TIMED_ROUNDS + later_rounds + episodes / workers.num_envs
        total_seconds = spent + rounds * seconds / (1 - RESERVE)
        run.write_json(
            FILE,
            {
                "seconds_per_round": round(seconds, 3),
                "trainings_per_round": workers.num_envs,
                "episodes": episodes,
                "minutes": round(total_seconds / 60, 1),
            },
        )
    budget = run.read_json(FILE)
    print(
        f"{budget['trainings_per_round']} trainings take {budget['seconds_per_round']:.1f} s here: the agent learns "
        f"from {budget['episodes']:,}, about {budget['minutes']:.0f} minutes in all",
        flush=True,
    )
    return replace(search, config=replace(config, episodes=budget["episodes"]))


def _seconds_per_round(search: Search, workers: VecEnv) -> float:
    """Return the seconds of one training in every environment at the same time, under policies drawn from the menu."""
    count = TIMED_ROUNDS * workers.num_envs
    schedules = balanced_schedules(search.menu, search.segments, count, search.config.seed)
    jobs = []
    for number, schedule in enumerate(schedules):
        seed = episode_seed(search.config.seed, "search", number)
        jobs.append(Job.from_chooser("timed", schedule, search.tasks.task(number), seed, ["validation", "development"]))
    started = time.monotonic()
    for _ in run_jobs(workers, jobs):
        pass
    return max(time.monotonic() - started, 1e-3) / TIMED_ROUNDS
