"""Many searches: hyperparameters by ASHA, or PBT and random schedules with as many trainings as the agent."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rlmix.agent.agent import Agent
from rlmix.agent.population import QUANTILE, RESAMPLE
from rlmix.agent.replay import to_schedule
from rlmix.agent.vec_env import WorkerFailedError
from rlmix.agent.workers import EpisodeCursor, episode_seed
from rlmix.classifier.data import Splits
from rlmix.classifier.files import LineLog
from rlmix.classifier.mixing import PolicySchedule
from rlmix.envs import DIMENSIONS
from rlmix.experiments.runs.config import stored_config
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import flatten
from rlmix.experiments.search.cluster import (
    root_message,
    single_resources,
    trial_resources,
    tune_setting,
    worker_capacity,
)
from rlmix.experiments.search.config import AGENT, SearchConfig, TuneConfig
from rlmix.experiments.search.plan import Search, resolve, resolve_with_gpus
from rlmix.experiments.search.search import begin_workers, learn, positions_of, prepare_references
from rlmix.experiments.search.selection import (
    MAX_CANDIDATES,
    Trainings,
    compare_contestants,
    find_candidates,
    known_agents,
    select_best,
)
from rlmix.experiments.search.selection import (
    provenance as search_provenance,
)

if TYPE_CHECKING:
    from ray.tune import ResultGrid, Tuner

RECENT = 20  # newest finished episodes; their mean validation accuracy ranks the agents
METRIC = "validation_accuracy"


def check(config: TuneConfig) -> None:
    """Check that the options fit each other.

    Raises:
        RunError: they do not fit.
    """
    if config.agent.backend != "ray":
        raise RunError("--agent.backend must be ray here; train_agent.py searches without it")
    options = flatten(asdict(config.agent))
    for name in ("out", "resume", "address", "trust"):
        if options[name]:
            raise RunError(f"--agent.{name} is for a single search: give --{name} instead")
    if config.agent.start is not None:
        raise RunError("--agent.start is for a single search (train_agent.py): segments differ between these searches")


def resolve_agent(config: TuneConfig) -> tuple[SearchConfig, Splits]:
    """Return the single search with nothing left to `auto`, and its data.

    Raises:
        RunError: an option is out of range.
        DataError: the data set is not available or is too small.
    """
    agent = replace(config.agent, seed=config.seed)
    if not agent.workers:
        agent = replace(agent, workers=agent.most_workers(max(worker_capacity(Search.from_config(agent).share), 1)))
    search, data = resolve_with_gpus(agent) if agent.gpus_per_worker else resolve(agent)
    if config.search == "asha":
        for number in range(config.trials):
            Search.from_config(trial_config(search.config, config.seed, number))
    return search.config, data


def finish(config: TuneConfig, run: RunFolder, results: ResultGrid) -> None:
    """Select the best policy, compare it and write the summary."""
    for result in map(results.__getitem__, range(len(results))):
        if result.error is not None:
            print(
                f"a trial failed, the others continued: {' '.join(root_message(result.error).split())}", file=sys.stderr
            )
    search = Search.from_config(config.agent)
    workers = None
    try:
        workers = begin_workers(search, run, [EpisodeCursor() for _ in range(config.agent.workers)])
        trainings = Trainings(run, workers)
        if config.search == "asha":
            schedule, images = best_agent(config, run), agents_images(config, run)
        else:
            members = best_members(config, run, results)
            schedule, _ = select_best(search, run, trainings, members, provenance(config))
            images = sum(entry["images"] for entry in LineLog(run.path / "members.jsonl").read())
        contest = compare_contestants(search, schedule, trainings, known_agents(search, run))
    except WorkerFailedError as error:
        raise RunError(f"{error}; resume with {run.resume_options}") from None
    finally:
        if workers is not None:
            workers.close()
    summary = {"search": config.search, "images_trained": images, "policy": schedule.to_json(), "contest": contest}
    run.write_json("summary.json", summary)


# Agents


def trial_config(base: SearchConfig, seed: int, number: int) -> SearchConfig:
    """Return the configuration of one search: the base with drawn hyperparameters; search 0 is the base itself."""
    if number == 0:
        return base
    draw = np.random.default_rng([seed, number])
    ppo = replace(
        base.ppo,
        learning_rate=float(np.exp(draw.uniform(np.log(3e-4), np.log(1e-2)))),
        entropy=float(np.exp(draw.uniform(np.log(1e-3), np.log(5e-2)))),
        epochs=int(draw.choice([4, 8, 16])),
        clip=float(draw.choice([0.1, 0.2, 0.3])),
        gae_lambda=float(draw.choice([0.9, 0.95, 1.0])),
        start_probability=float(draw.uniform(0.2, 0.8)),
    )
    segments = (float(draw.choice([1, 2, 4])),)
    reward = str(draw.choice(["relative", "change", "final"]))
    return replace(base, ppo=ppo, segments=segments, reward=reward)


def agents(config: TuneConfig, run: RunFolder) -> ResultGrid:
    """Train every agent as a trial of its own; a resumed run trains those that have not finished."""
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    resources = trial_resources(config.agent.workers, Search.from_config(config.agent).share)
    scheduler = ASHAScheduler(
        time_attr="episodes",
        max_t=config.agent.episodes,
        grace_period=min(config.grace, config.agent.episodes),
        reduction_factor=2,
    )
    # Not in the parameters' space, which Tune keeps: a run folder may be moved before it is resumed.
    trainable = tune.with_resources(
        tune.with_parameters(agent_trial, base=asdict(config.agent), trials=str((run.path / "trials").resolve())),
        resources,
    )
    tuner = partial(
        tune.Tuner,
        trainable,
        param_space={
            "seed": config.seed,
            "number": tune.grid_search(list(range(config.trials))),
        },
        tune_config=tune.TuneConfig(
            metric=METRIC, mode="max", scheduler=scheduler, max_concurrent_trials=config.at_once or None
        ),
        run_config=tune_setting(run.path, verbose=1),
    )
    return fit(tuner, trainable, run)


def agent_trial(parameters: dict[str, Any], base: dict[str, Any], trials: str) -> None:
    """Train one agent in a run folder of its own, as train_agent.py does; resume if there is a checkpoint.

    Args:
        parameters: `seed` and `number`, arguments of `trial_config`.
        base: setting whose hyperparameters are changed, as fields of `SearchConfig`.
        trials: folder of all trials.
    """
    from ray import tune

    torch.set_num_threads(1)
    setting = trial_config(stored_config(SearchConfig, base), parameters["seed"], parameters["number"])
    search = Search.from_config(setting)
    run = RunFolder(trial_folder(Path(trials), parameters["number"]))
    run.write_config(AGENT, asdict(search.config))
    total = search.config.episodes
    if not (run.path / "policy.json").exists():

        def learned(episodes: int) -> None:
            if episodes < total:  # after the last one, the selected policy's accuracy is reported
                tune.report({METRIC: recent_accuracy(run), "episodes": episodes})

        checkpoint = run.load_checkpoint()
        positions = positions_of(search.config, checkpoint)
        workers = begin_workers(search, run, positions)
        try:
            prepare_references(search, workers)
            agent, _ = learn(search, run, workers, positions, checkpoint, learned)
            agent.save(run.path)
            trainings = Trainings(run, workers)
            select_best(search, run, trainings, find_candidates(search, run, workers, agent), agent.provenance)
        finally:
            workers.close()
    policy = PolicySchedule.load(run.path / "policy.json")
    tune.report({METRIC: policy.provenance["validation_accuracy"], "episodes": total})


def trial_folder(trials: Path, number: int) -> Path:
    """Return the run folder of one search."""
    return trials / f"{number:04d}"


def recent_accuracy(run: RunFolder) -> float:
    """Return the mean final validation accuracy of the newest episodes, in [0, 1]; comparable for all rewards."""
    episodes = LineLog(run.path / "episodes.jsonl").read()[-RECENT:]
    return float(np.mean([episode["validation_accuracy"][-1] for episode in episodes]))


def best_agent(config: TuneConfig, run: RunFolder) -> PolicySchedule:
    """Return the policy of the finished trial that is best on validation; copy it and its agent into the run folder.

    Raises:
        RunError: no trial finished.
    """
    finished = [
        folder
        for number in range(config.trials)
        if ((folder := trial_folder(run.path / "trials", number)) / "policy.json").exists()
    ]
    if not finished:
        raise RunError("no agent's training finished; their errors are above")
    policies = {folder: PolicySchedule.load(folder / "policy.json") for folder in finished}
    best = max(finished, key=lambda folder: policies[folder].provenance["validation_accuracy"])
    Agent.load(best).save(run.path)
    schedule = PolicySchedule(policies[best].segments, {**policies[best].provenance, "trial": best.name})
    schedule.save(run.path / "policy.json")
    return schedule


def agents_images(config: TuneConfig, run: RunFolder) -> int:
    """Return the number of images that all agents' episodes trained on, stopped agents included."""
    logs = [LineLog(trial_folder(run.path / "trials", number) / "episodes.jsonl") for number in range(config.trials)]
    return config.agent.train.batch_size * sum(entry["task"]["updates"] for log in logs for entry in log.read())


# Population Based Training and random schedules


def population(config: TuneConfig, run: RunFolder) -> ResultGrid:
    """Train every member; a resumed run trains those that have not finished."""
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, PopulationBasedTraining

    from rlmix.experiments.search.population_trainable import Member

    search = Search.from_config(config.agent)
    # Tune's scheduler draws from Python's global generator.
    random.seed(config.seed)
    scheduler: Any = FIFOScheduler()
    if config.search == "pbt":
        scheduler = PopulationBasedTraining(
            time_attr="training_iteration",
            perturbation_interval=1,  # a segment
            quantile_fraction=QUANTILE,
            resample_probability=RESAMPLE,
            hyperparam_mutations={
                dimension: list(range(size)) for dimension, size in zip(DIMENSIONS, search.menu.sizes, strict=True)
            },
            synch=True,
        )
    starts = [random_schedule_actions(search, config, number) for number in range(config.trainings)]

    def first_choice(index: int) -> Any:
        return tune.sample_from(lambda spec: starts[spec["config"]["number"]][0][index])

    trainable = tune.with_parameters(Member, agent=asdict(config.agent))
    members = tune.with_resources(trainable, single_resources(search.share))
    tuner = partial(
        tune.Tuner,
        members,
        param_space={
            "number": tune.grid_search(list(range(config.trainings))),
            "perturbed": config.search == "pbt",
            "plan": tune.sample_from(lambda spec: starts[spec["config"]["number"]]),
            **{dimension: first_choice(index) for index, dimension in enumerate(DIMENSIONS)},
        },
        tune_config=tune.TuneConfig(metric=METRIC, mode="max", scheduler=scheduler, reuse_actors=True),
        run_config=tune_setting(run.path, verbose=1),
    )
    return fit(tuner, members, run)


def random_schedule_actions(search: Search, config: TuneConfig, number: int) -> list[list[int]]:
    """Return a random action for each segment; a member of PBT starts with the first."""
    draw = np.random.default_rng(episode_seed(config.seed, "search", number))
    return [draw.integers(search.menu.sizes).tolist() for _ in search.segments]


def best_members(config: TuneConfig, run: RunFolder, results: ResultGrid) -> dict[str, PolicySchedule]:
    """Return the schedules of the members that end best on validation, by name; log all members in `members.jsonl`.

    Raises:
        RunError: no member finished.
    """
    search = Search.from_config(config.agent)
    finished = []
    log = LineLog(run.path / "members.jsonl")
    log.keep(0)
    for result in map(results.__getitem__, range(len(results))):
        metrics = result.metrics or {}
        if "actions" in metrics:
            segments, updates = len(metrics["actions"]), search.tasks.task(0).updates
            entry = {
                "trial": metrics["trial_id"],
                METRIC: metrics[METRIC],
                "actions": metrics["actions"],
                "lineage": metrics["lineage"],
                # A member trains every segment once, on its own weights or a better member's.
                "images": round(search.segments[segments - 1] * updates) * config.agent.train.batch_size,
            }
            log.append(entry)
            if segments == len(search.segments):
                finished.append(entry)
    if not finished:
        raise RunError("no training finished; their errors are above")
    finished.sort(key=lambda entry: -entry[METRIC])
    return {
        f"member {entry['trial']}": to_schedule(entry["actions"], search.menu, search.segments)
        for entry in finished[:MAX_CANDIDATES]
    }


def provenance(config: TuneConfig) -> dict[str, Any]:
    """Return the provenance of a population's policy."""
    return {
        "learned_by": config.search,
        "trainings": config.trainings,
        **search_provenance(Search.from_config(config.agent)),
    }


# Tune


def fit(tuner: Callable[[], Tuner], trainable: Any, run: RunFolder) -> ResultGrid:
    """Run the trials; in a resumed run, keep the finished ones and restart the failed ones.

    Args:
        tuner: function that builds the Tuner of a new run.
        trainable: trainable of the trials.
        run: run folder.
    """
    from ray import tune

    path = run.path.resolve() / "ray"
    if any(path.glob("experiment_state-*.json")):
        return tune.Tuner.restore(str(path), trainable, resume_unfinished=True, restart_errored=True).fit()
    return tuner().fit()
