"""How many trainings a search makes in the time that it is given: a few are timed first."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from stable_baselines3.common.vec_env import VecEnv

from rlmix.agent.baselines import random_schedule
from rlmix.agent.workers import Job, episode_seed, run_jobs
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.search.plan import Search
from rlmix.experiments.search.selection import trainings_after

FILE = "budget.json"
TIMED_ROUNDS = 2  # trainings of each environment
MIN_ROLLOUTS, MAX_EPISODES = 6, 1024  # fewer teach nothing; more add little to what has been learned
RESERVE = 0.05  # share of the time that is kept for what is not training: pictures, report, PPO itself


def fit_to_time(search: Search, run: RunFolder, workers: VecEnv, spent: float) -> Search:
    """Return the search with as many episodes as fit into its minutes, where its configuration asks for that.

    Trainings are timed once in a run folder, which keeps the result: a resumed search goes on with the same number.

    Args:
        search: the setting.
        run: the run folder.
        workers: the environments, with their references.
        spent: seconds that the job has taken so far.
    """
    config = search.config
    if config.episodes:
        return search
    if not (run.path / FILE).exists():
        seconds = _seconds_per_round(search, workers)
        others = sum(math.ceil(count / workers.num_envs) for count in trainings_after(search))
        available = 60 * config.minutes * (1 - RESERVE) - spent - (TIMED_ROUNDS + others) * seconds
        rollout = config.ppo.episodes_per_update
        fitting = int(available / seconds * workers.num_envs) // rollout
        episodes = min(max(fitting, MIN_ROLLOUTS) * rollout, max(MAX_EPISODES // rollout, MIN_ROLLOUTS) * rollout)
        whole = spent + (TIMED_ROUNDS + others + episodes / workers.num_envs) * seconds / (1 - RESERVE)
        run.write_json(
            FILE,
            {
                "seconds_per_round": round(seconds, 3),
                "trainings_per_round": workers.num_envs,
                "episodes": episodes,
                "minutes": round(whole / 60, 1),
            },
        )
    found = run.read_json(FILE)
    print(
        f"{found['trainings_per_round']} trainings take {found['seconds_per_round']:.1f} s here: the agent learns from "
        f"{found['episodes']:,}, about {found['minutes']:.0f} minutes in all",
        flush=True,
    )
    return replace(search, config=replace(config, episodes=found["episodes"]))


def _seconds_per_round(search: Search, workers: VecEnv) -> float:
    """Return how long every environment takes for one training, side by side; policies are drawn from the menu."""
    jobs = []
    for number in range(TIMED_ROUNDS * workers.num_envs):
        seed = episode_seed(search.config.seed, "search", number)
        schedule = random_schedule(search.menu, search.segments, seed)
        jobs.append(Job.from_chooser("timed", schedule, search.tasks.task(number), seed, ["validation"]))
    started = time.monotonic()
    for _ in run_jobs(workers, jobs):
        pass
    return max(time.monotonic() - started, 1e-3) / TIMED_ROUNDS
