"""Search a mixing policy with PPO, then say honestly how good it is.

The default preset searches on 500 Fashion-MNIST images with a network of 78 thousand parameters: 120 trainings of 250
updates in about 5 minutes on 2 cores, then the learned schedule against plain training, CutMix on half the updates and
a random policy, each over fresh seeds and images.

    python experiments/train_agent.py
    python experiments/train_agent.py --preset fashion
    python experiments/train_agent.py --resume runs/agent-20260101-120000
    python experiments/train_agent.py --backend ray --workers 8 --gpus-per-worker 0.25 --address auto

The per-batch agent of RL-Mix as published, beside it, has options of its own:

    python experiments/train_agent.py --env rl-mix
    python experiments/train_agent.py --env rl-mix --help
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.logger import HParam, configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from agent.baselines import FIXED, random_schedule
from agent.callbacks import SearchLog
from agent.ppo import Agent, build_agent, restore_search
from agent.ray_env import RayVecEnv, Share, WorkerFailedError
from agent.replay import candidates, greedy_schedules
from agent.vec_env import MOST_HELD, ProcessVecEnv
from agent.workers import Job, Position, episode_seed, make_worker, run_jobs
from classifier.data import Splits, load_dataset, split
from classifier.hardware import resolve_device, resolve_precision
from classifier.mixing import PolicySchedule
from classifier.trainer import TrainConfig, Trainer
from classifier.tuning import compiling_pays
from envs import Menu, MixPolicyEnv, TaskDistribution
from envs.mix_policy import REFERRED, require_updates, segment_ends
from experiments import per_batch
from experiments.cluster import connected, on_a_worker, places, require_places, run_trial
from experiments.disk import search_bytes, tell_disk
from experiments.intervals import mean_interval, paired_difference, verdict
from experiments.memory import shortage
from experiments.pages import NAME, write_search_report
from experiments.presets import MENUS, PRESETS, SearchConfig, named
from experiments.run_folder import (
    LineLog,
    RunError,
    RunFolder,
    fitting,
    interrupt_later,
    interrupt_on_sigterm,
    stored_config,
    user_errors,
)
from experiments.shipped import FOLDER, agent_checksum

KIND = "agent"
GREEDY_EPISODES = 4  # for each worker's share of at least one: what the majority is taken over
MOST_CANDIDATES = 3
MOST_ENVIRONMENTS = 1000  # to be tried out before a search starts
MOST_VALIDATION = 3000  # more take time at the end of every training of a search
LIVE, SHIPPED_AGENT = "its agent, live", "shipped agent, live"  # contestants
START = "CutMix half"  # what the untrained agent leans to: the rival it has to leave behind
LEAST = (  # (part of the config or none, option, its least value): what nothing further down checks
    (None, "episodes", 1),
    (None, "workers", 0),
    (None, "environments", 0),
    (None, "candidate_seeds", 1),
    (None, "contest_seeds", 1),
    (None, "worker_timeout", 1),
    (None, "seed", 0),
    ("ppo", "epochs", 1),
    ("ppo", "minibatches", 1),
    ("ppo", "hidden", 1),
)
TASKS_OF_THE_CONTEST = 1  # added to the seed of the tasks: images that the search has not trained on


@dataclass(frozen=True)
class Search:
    """A search's setting as the rest of the program uses it.

    Attributes:
        config: what was asked for, with nothing left to `auto`.
        tasks: of the search.
        training: the classifier's setting.
        menu: what can be chosen.
    """

    config: SearchConfig
    tasks: TaskDistribution
    training: TrainConfig
    menu: Menu

    @classmethod
    def of(cls, config: SearchConfig) -> Search:
        """The search that a configuration asks for.

        Raises:
            RunError: an option is out of range.
        """
        try:
            tasks = TaskDistribution(
                config.train_size,
                config.updates,
                config.label_noise,
                config.tasks,
                config.seed,
                config.clean,
                lr_scale=config.lr_scale,
            )
            training = TrainConfig(
                model=config.model,
                embedding=config.embedding,
                updates=config.updates[1],
                batch_size=config.batch_size,
                lr=config.lr,
                weight_decay=config.weight_decay,
                device=config.device,
                precision=config.precision,
                compile=config.compile == "on",
            )
            search = cls(config, tasks, training, MENUS[config.menu].including(config.also))
            MixPolicyEnv(**search.environment(None))
            for part, name, least in LEAST:
                value = getattr(config if part is None else getattr(config, part), name)
                if value < least:
                    option = name if part is None else f"{part}.{name}"
                    raise ValueError(f"{option} must be at least {least}, got {value}")
            if max(config.workers, config.environments) > MOST_ENVIRONMENTS:
                raise ValueError(
                    f"--workers and --environments must be at most {MOST_ENVIRONMENTS:,}, got {config.workers} and "
                    f"{config.environments}"
                )
            if config.environments > MOST_HELD * config.worker_count:
                raise ValueError(
                    f"--environments must be at most {MOST_HELD} for each of {config.worker_count} workers, "
                    f"got {config.environments}"
                )
            if config.environments and config.backend == "ray":
                raise ValueError(
                    f"each of Ray's workers holds one environment, got --environments {config.environments}: give "
                    "--environments 0, and their number as --workers"
                )
            if config.environments and config.environments < config.workers:
                raise ValueError(
                    f"--environments must be at least --workers ({config.workers}), got {config.environments}"
                )
            if config.backend == "local" and (config.address is not None or config.gpus_per_worker):
                raise ValueError("--address and --gpus-per-worker are for Ray's workers: add --backend ray")
            search.share  # noqa: B018, raises ValueError where it is out of range
            return search
        except ValueError as error:
            raise RunError(str(error)) from error

    @property
    def segments(self) -> tuple[float, ...]:
        """Progress at which each segment ends."""
        given = self.config.segments
        return segment_ends(int(given[0]) if len(given) == 1 and given[0].is_integer() else given)

    @property
    def share(self) -> Share:
        """What each Ray worker has of its machine."""
        return Share(self.config.cpus_per_worker, self.config.gpus_per_worker)

    def environment(self, run: RunFolder | None) -> dict[str, Any]:
        """Arguments of the workers' `MixPolicyEnv`."""
        return {
            "dataset": self.config.dataset,
            "data_root": self.config.data_root,
            "image_size": self.config.image_size,
            "training": self.training,
            "tasks": self.tasks,
            "segments": self.segments,
            "reward": self.config.reward,
            "menu": self.menu,
            "reference_seeds": self.config.reference_seeds,
            "reference_cache": None if run is None else run.path.resolve() / "references",
            "validation_size": self.config.validation_size,
            "validation_limit": self.config.validation_limit,
            "render_mode": "rgb_array",
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if named(arguments, "--env") == per_batch.KIND:
        per_batch.main(arguments)
        return
    torch.set_num_threads(1)  # the cores are the workers'
    interrupt_on_sigterm()
    with ExitStack() as ray:
        with user_errors():
            asked = parse(arguments)
            if asked.resume is not None:
                run, stored = RunFolder.open(asked.resume, KIND, trust=asked.trust)
                search = Search.of(stored_config(SearchConfig, stored))
                if search.config.backend == "ray":
                    ray.enter_context(connected(asked.address or search.config.address))
                    require_places(search.config.workers, search.share)
            else:
                if asked.backend == "ray":
                    share = Search.of(asked).share
                    ray.enter_context(connected(asked.address))
                    if not asked.workers:
                        asked = replace(asked, workers=asked.most_workers(max(places(share), 1)))
                    require_places(asked.workers, share)
                search, data = resolve_with_gpus(asked) if asked.gpus_per_worker else resolve(asked)
                warn_of_memory(search, data)
                run = RunFolder.create(asked.out, KIND)
                run.write_config(KIND, asdict(search.config))
                print_data(data, search)
        with user_errors(f"python experiments/train_agent.py {run.go_on}"):
            print(f"run folder: {run.path}\nwatch: tensorboard --logdir {run.events}", flush=True)
            if search.config.backend == "ray":
                run.release()  # the trial's process owns it
                run_trial(search_trial, run.path, search.config.workers, search.share)
            else:
                execute(search, run)
            report(search, run)
            print(
                f"\nwritten: {run.path}/policy.json, agent.safetensors, summary.json, episodes.jsonl, {NAME}\n"
                "next:\n"
                f"  tensorboard --logdir {run.events}\n"
                f"  python experiments/replay_policy.py --policy {run.path}/policy.json"
            )


def search_trial(parameters: dict[str, str]) -> None:
    """The search of a run folder as a Ray Tune trial.

    Args:
        parameters: `run`, the folder's path.
    """
    torch.set_num_threads(1)
    run, stored = RunFolder.open(parameters["run"], KIND, trust=True)
    execute(Search.of(stored_config(SearchConfig, stored)), run)


def parse(arguments: Sequence[str]) -> SearchConfig:
    """The command line, on top of the preset that it names.

    Raises:
        RunError: the preset is not known.
    """
    name = named(arguments, "--preset") or "default"
    if name not in PRESETS:
        raise RunError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    asked = tyro.cli(SearchConfig, default=PRESETS[name], args=arguments, description=__doc__)
    return asked if asked.start is None else replace(asked, start=str(Path(asked.start).resolve()))


def resolve(asked: SearchConfig) -> tuple[Search, Splits]:
    """The search with nothing left to `auto`, and its data.

    Raises:
        RunError: an option is out of range.
        DataError: the data set cannot be had or is too small.
    """
    dataset = load_dataset(asked.dataset, asked.data_root, image_size=asked.image_size)
    if asked.validation_size is None:
        asked = replace(asked, validation_size=min(MOST_VALIDATION, len(dataset.pool) // 5))
    search = Search.of(asked)
    data = split(dataset, validation_size=asked.validation_size)
    largest = data.draw(asked.train_size[1], data_seed=0, label_noise=asked.label_noise[1])
    data.draw(asked.train_size[0], data_seed=0)
    try:
        device = resolve_device(asked.device)
        precision = resolve_precision(asked.precision, device)
        # What is wrong with network or agent is said here, before there is a run folder and a worker.
        tried = Trainer(replace(search.training, device="cpu", precision="fp32", compile=False), largest)
        for action in search.menu.actions():
            tried.check(search.menu.policy(action))
        environments = DummyVecEnv([lambda: MixPolicyEnv(**search.environment(None))] * asked.environment_count)
        new_agent(search, environments, None if asked.start is None else Path(asked.start))
        compiled = asked.compile == "on"
        if asked.compile == "auto":
            planned = asked.episodes * asked.updates[1]
            compiled = compiling_pays(replace(search.training, precision=precision), largest, planned_updates=planned)
    except ValueError as error:
        raise RunError(str(error)) from error
    return (
        Search.of(
            replace(
                asked,
                device=str(device),
                precision=precision,  # type: ignore[arg-type]
                compile="on" if compiled else "off",
                workers=asked.worker_count,
            )
        ),
        data,
    )


def resolve_with_gpus(asked: SearchConfig) -> tuple[Search, Splits]:
    """As `resolve`, where a worker's GPU is, which this machine need not have.

    Raises:
        RunError: an option is out of range.
        DataError: the data set cannot be had or is too small.
    """
    config = on_a_worker(_resolved_config, asked, Share(asked.cpus_per_worker, asked.gpus_per_worker))
    dataset = load_dataset(config.dataset, config.data_root, image_size=config.image_size)
    return Search.of(config), split(dataset, validation_size=config.validation_size)


def _resolved_config(asked: SearchConfig) -> SearchConfig:
    return resolve(asked)[0].config


def warn_of_memory(search: Search, data: Splits) -> None:
    """Say what will not fit into this machine's memory, or its GPUs', if the workers run here."""
    config = search.config
    if config.address is not None:
        return
    workers, gpus = config.worker_count, config.gpus_per_worker
    # Ray puts as many on a GPU as their shares allow; local workers all take the same one.
    on_one_gpu = min(workers, max(int(1 / gpus + 1e-6), 1)) if gpus else workers
    task = data.draw(config.train_size[1], data_seed=0)
    held = math.ceil(config.environment_count / workers)
    for line in shortage(search.training, data, task, workers=workers, on_one_gpu=on_one_gpu, held=held):
        print(line, file=sys.stderr, flush=True)


def print_data(data: Splits, search: Search) -> None:
    """Say what is about to happen."""
    config = search.config
    print(
        f"{data.name}: {len(data.train):,} images to train on, {len(data.validation):,} validation, "
        f"{len(data.development):,} development test; the test set is not read\n"
        f"search: {config.episodes} trainings of {_range(config.updates)} updates "
        f"on {_range(config.train_size)} images, {config.workers} workers, {config.precision} on {config.device}"
        f"{', compiled' if config.compile == 'on' else ''}"
    )


def execute(search: Search, run: RunFolder) -> None:
    """Search, choose, compare and report, from wherever the run folder stands."""
    started = time.monotonic()
    config = search.config
    checkpoint = run.load_checkpoint()
    with fitting(run.checkpoints):
        positions = positions_of(config, checkpoint)
    workers = None
    try:
        workers = begin_workers(search, run, positions)
        prepare_references(search, workers)
        searching = time.monotonic()
        agent, learning_seconds = learn(search, run, workers, positions, checkpoint)
        search_seconds = time.monotonic() - searching
        agent.save(run.path)
        trainings = Trainings(run, workers)
        schedule = keep_best(search, run, trainings, offer(run, workers, agent), agent.provenance)
        contest = compare(search, schedule, trainings, {LIVE: agent, **shipped_agent(search)})
    except (EOFError, ConnectionError):
        raise RunError(
            "a worker process ended too early, by its own error above or killed from outside (is there enough "
            f"memory?); go on with {run.go_on}"
        ) from None
    except WorkerFailedError as error:
        raise RunError(f"{error}; what was learned is saved, go on with {run.go_on}") from None
    finally:
        if workers is not None:
            workers.close()
    timing = {
        "seconds_this_time": round(time.monotonic() - started, 1),
        "search_seconds_this_time": round(search_seconds, 1),
        "learning_share_of_search": round(learning_seconds / max(search_seconds, 1e-9), 4),
    }
    run.write_json("summary.json", {"policy": schedule.to_json(), "contest": contest, "timing": timing})
    write_search_report(run.path)


def positions_of(config: SearchConfig, checkpoint: dict[str, Any] | None) -> list[Position]:
    """Where each worker stands: at the start, or where the checkpoint left it."""
    if checkpoint is None:
        return [Position() for _ in range(config.environment_count)]
    return [
        Position("search", entry["episode"], tuple(tuple(action) for action in entry["actions"]))
        for entry in checkpoint["positions"]
    ]


def begin_workers(search: Search, run: RunFolder, positions: Sequence[Position]) -> VecEnv:
    """Start the workers where the search wants them."""
    make, config = partial(make_worker, search.environment(run), search.config.seed), search.config
    if config.backend == "ray":
        return RayVecEnv(make, positions, share=search.share, timeout=config.worker_timeout)
    with interrupt_later():
        return ProcessVecEnv(make, positions, processes=config.worker_count)


def prepare_references(search: Search, workers: VecEnv) -> None:
    """Let the workers measure the relative reward's reference on every task of the pool, side by side."""
    if search.config.reward not in REFERRED or not search.config.reference_seeds:
        return
    tasks = range(search.config.tasks)
    for start in tqdm(range(0, len(tasks), workers.num_envs), desc="reference", unit="round", mininterval=1):
        workers.env_method("prepare_reference", list(tasks[start : start + workers.num_envs]))


def learn(
    search: Search,
    run: RunFolder,
    workers: VecEnv,
    positions: list[Position],
    checkpoint: dict[str, Any] | None,
    learned: Callable[[int], None] = lambda _: None,
) -> tuple[Agent, float]:
    """Train the agent, from a checkpoint if there is one; gives it and the seconds that PPO itself took.

    Args:
        search: the setting.
        run: where checkpoints and the log of episodes go.
        workers: the environments.
        positions: where each worker stands.
        checkpoint: what the search goes on from; none = it starts.
        learned: called with the number of finished episodes after each rollout that was learned from and saved.
    """
    config = search.config
    log = LineLog(run.path / "episodes.jsonl")
    log.keep(0 if checkpoint is None else checkpoint["episodes_done"])
    start = run.path / "start"
    if config.start is not None and not (start / "agent.json").exists():
        start.mkdir(exist_ok=True)
        Agent.load(Path(config.start)).save(start)  # the run goes on without the original
    try:
        model = new_agent(search, workers, None if config.start is None else start)
    except ValueError as error:
        raise RunError(str(error)) from error
    jobs = MOST_CANDIDATES * config.candidate_seeds + (len(FIXED) + 4) * config.contest_seeds
    segments, choices = len(search.segments), sum(search.menu.sizes)
    tell_disk(run.path, search_bytes(config, model.policy, segments=segments, choices=choices, jobs=jobs))
    model.set_logger(configure(str(run.events), ["tensorboard"]))
    model.logger.record("hparams", HParam(_flat(asdict(config)), {"reward/return_mean": 0.0}))
    observations = workers.reset()
    assert isinstance(observations, np.ndarray)
    if checkpoint is not None:
        with fitting(run.checkpoints):
            restore_search(model, checkpoint["search"], observations)
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
                episodes_file=log.path,
                positions=positions,
                bar=bar,
                rollouts=math.ceil(config.episodes / config.ppo.episodes_per_update),
                save=save,
                checkpoint=checkpoint,
            )
            model._last_obs = observations
            if checkpoint is None:
                model._last_episode_starts = np.ones(workers.num_envs, dtype=bool)
            # The total is counted from where the search stands, since timesteps are not reset.
            model.learn(left, callback=callback, reset_num_timesteps=False)
            learning_seconds = callback.learning_seconds
    started = None if config.start is None else agent_checksum(start)  # no path: it says nothing elsewhere
    facts = {"learned_by": "ppo", "episodes": len(log.read()), "start_sha256": started, **facts_of(search)}
    return Agent(model.policy, search.menu, search.segments, facts), learning_seconds


def new_agent(search: Search, workers: VecEnv, start: Path | None = None) -> PPO:
    """The agent before the search: that of a folder, or one that leans to CutMix on half the updates.

    Args:
        search: the setting.
        workers: the environments.
        start: folder of the agent; none = a new one.

    Raises:
        ValueError: its options do not fit each other or the number of workers, or the agent that it starts at.
        DamagedFileError: that agent cannot be used.
    """
    config, lean = search.config, search.menu.find(FIXED[START])
    model = build_agent(config.ppo, workers, segments=len(search.segments), seed=config.seed, start=lean)
    if start is not None:
        known = Agent.load(start)
        if (known.menu, known.segments) != (search.menu, search.segments):
            raise ValueError(f"--start: {config.start} holds an agent of another menu or of other segments")
        if known.policy.net_arch != model.policy.net_arch:
            raise ValueError(
                f"--start: {config.start} has hidden layers of {known.policy.net_arch}, not {model.policy.net_arch}; "
                "set --ppo.hidden"
            )
        model.policy.load_state_dict(known.policy.state_dict())
    return model


def offer(run: RunFolder, workers: VecEnv, agent: Agent) -> dict[str, PolicySchedule]:
    """Candidates by name: what the agent does when it is rolled out greedily, or what an earlier start found.

    Raises:
        RunError: every one of these trainings diverged.
    """
    if (run.path / "candidates.json").exists():
        return {name: PolicySchedule.from_json(value) for name, value in run.read_json("candidates.json").items()}
    rolled = greedy_schedules(agent, workers, GREEDY_EPISODES)
    if not rolled:
        raise RunError("every training under the greedy agent diverged: search longer, or with a lower --lr")
    offered = candidates(rolled, MOST_CANDIDATES)
    run.write_json("candidates.json", {name: schedule.to_json() for name, schedule in offered.items()})
    return offered


def keep_best(
    search: Search, run: RunFolder, trainings: Trainings, offered: dict[str, PolicySchedule], facts: dict[str, Any]
) -> PolicySchedule:
    """The candidate that does best on fresh seeds, as the run's `policy.json`.

    Args:
        search: the setting.
        run: the folder.
        trainings: who trains under the candidates.
        offered: the candidates by name.
        facts: how they came about, for the policy's provenance.
    """
    config = search.config
    jobs = [
        Job.of(name, schedule, search.tasks.task(number), _seed(config, "candidates", number), ["validation"])
        for number in range(config.candidate_seeds)
        for name, schedule in offered.items()
    ]
    results = trainings.run("candidates", jobs)
    scores = {
        name: mean_interval([r["validation"] for job, r in zip(jobs, results, strict=True) if job.name == name])
        for name in offered
    }
    best = max(scores, key=lambda name: scores[name][0])
    mean, width = scores[best]
    provenance = {
        "learned_by": facts["learned_by"],
        "candidate": best,
        "validation_accuracy": mean,
        "validation_interval": width if np.isfinite(width) else None,
        "validation_seeds": config.candidate_seeds,
        **facts,
        **offered[best].provenance,
    }
    schedule = PolicySchedule(offered[best].segments, provenance)
    schedule.save(run.path / "policy.json")
    return schedule


def compare(
    search: Search, schedule: PolicySchedule, trainings: Trainings, agents: Mapping[str, Agent]
) -> dict[str, dict[str, Any]]:
    """Train everybody on fresh images and seeds, the same for all; development-test accuracy.

    Args:
        search: the setting.
        schedule: what was learned.
        trainings: who trains.
        agents: further contestants by name, asked live.
    """
    config = search.config
    tasks = replace(search.tasks, pool=None, seed=search.tasks.seed + TASKS_OF_THE_CONTEST)
    names = ["learned", *agents, *FIXED, "random"]
    jobs = []
    for number in range(config.contest_seeds):
        seed = _seed(config, "contest", number)
        contestants: dict[str, PolicySchedule | Agent] = {
            "learned": schedule,
            **agents,
            **{name: PolicySchedule.fixed(policy) for name, policy in FIXED.items()},
            "random": random_schedule(search.menu, search.segments, seed),
        }
        splits = ["validation", "development"]
        jobs += [Job.of(name, contestants[name], tasks.task(seed), seed, splits) for name in names]
    results = trainings.run("comparison", jobs)
    accuracies = {
        name: [r["development"] for job, r in zip(jobs, results, strict=True) if job.name == name] for name in names
    }
    contest = {}
    for name in names:
        mean, width = mean_interval(accuracies[name])
        difference, difference_width = paired_difference(accuracies["learned"], accuracies[name])
        contest[name] = {
            "accuracies": accuracies[name],
            "mean": mean,
            "interval": width if np.isfinite(width) else None,
            "learned_minus_this": difference,
            "difference_interval": difference_width if np.isfinite(difference_width) else None,
        }
    return contest


def shipped_agent(search: Search) -> dict[str, Agent]:
    """The shipped agent by its name, if its segments all get an update in every training of the search.

    Raises:
        DamagedFileError: it cannot be used.
    """
    shipped = Agent.load(FOLDER)
    try:
        require_updates(shipped.segments, *search.tasks.updates)
    except ValueError:
        return {}
    return {SHIPPED_AGENT: shipped}


class Trainings:
    """Trainings under given schedules, each run once however often the program is started.

    Args:
        run: where results are kept, in `trainings.jsonl`.
        workers: who trains.
    """

    def __init__(self, run: RunFolder, workers: VecEnv) -> None:
        self._log = LineLog(run.path / "trainings.jsonl")
        with fitting(self._log.path):
            self._done = {
                (e["stage"], e["name"], e["seed"]): {split: float(value) for split, value in e["accuracy"].items()}
                for e in self._log.read()
            }
        self._log.keep(len(self._done))
        self._workers = workers

    def run(self, stage: str, jobs: Sequence[Job]) -> list[dict[str, float]]:
        """Accuracy by split of every job, in order; those of an earlier start are read."""
        left = [number for number, job in enumerate(jobs) if (stage, job.name, job.seed) not in self._done]
        bar = tqdm(total=len(jobs), initial=len(jobs) - len(left), desc=stage, unit="training")
        with bar:
            finished = run_jobs(self._workers, [jobs[number] for number in left])
            for number, (job, accuracy) in zip(left, finished, strict=True):
                told = {name: value for name, value in asdict(job).items() if name != "agent"}  # the name says whose
                entry = {"stage": stage, "number": number, **told, "accuracy": accuracy}
                self._log.append(entry)
                self._done[stage, job.name, job.seed] = accuracy
                bar.update(1)
        return [self._done[stage, job.name, job.seed] for job in jobs]


def report(search: Search, run: RunFolder) -> None:
    """Print the policy and the table, and say what is noise; the table goes to TensorBoard too."""
    summary = run.read_json("summary.json")
    schedule, contest = PolicySchedule.from_json(summary["policy"]), summary["contest"]
    print("\nThe learned policy")
    for until, policy in schedule.segments:
        print(f"  until {100 * until:5.1f} %  {policy}")
    if search.config.start is None and all(policy == FIXED[START] for _, policy in schedule.segments):
        print(f"  This is where the search started: it found nothing that its evidence puts above {START}.")
    rows = [("", "accuracy", "learned is ahead by", "")]
    for name, entry in contest.items():
        versus = ("", "")
        if name != "learned":
            versus = (
                f"{100 * entry['learned_minus_this']:+.2f} {_width(entry['difference_interval'])}",
                verdict(entry["learned_minus_this"], entry["difference_interval"]),
            )
        rows.append((name, f"{100 * entry['mean']:.2f} {_width(entry['interval'])}", *versus))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    seeds = len(contest["learned"]["accuracies"])
    print(f"\nDevelopment-test accuracy in %, {seeds} fresh trainings each, 95 % intervals")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    noisy = any(
        verdict(entry["learned_minus_this"], entry["difference_interval"]) == "within noise"
        for name, entry in contest.items()
        if name != "learned"
    )
    if noisy and search.config.preset == "default":
        print(
            "\nA search this short mostly ends within noise. `--preset fashion` tries ten times as many trainings, "
            "each twice as long, in an estimated 2.5 hours on 2 cores."
        )
    with SummaryWriter(str(run.events)) as writer:
        header = "|" + "|".join(cell or " " for cell in rows[0]) + "|\n|---|---|---|---|\n"
        writer.add_text("comparison", header + "\n".join("|" + "|".join(row) + "|" for row in rows[1:]))
        policy = "\n".join(f"- until {100 * until:.1f} %: {policy}" for until, policy in schedule.segments)
        writer.add_text("learned_policy", policy)


def _seed(config: SearchConfig, stream: str, number: int) -> int:
    return episode_seed(config.seed, stream, number)


def facts_of(search: Search) -> dict[str, Any]:
    """What a policy was learned on, for its provenance."""
    config = search.config
    return {
        "dataset": config.dataset,
        "image_size": config.image_size,
        "model": config.model,
        "train_size": list(config.train_size),
        "updates": list(config.updates),
        "label_noise": list(config.label_noise),
        "lr_scale": list(config.lr_scale),
        "clean": config.clean,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    flat = {**{name: value for name, value in config.items() if name != "ppo"}, **config["ppo"]}
    return {name: value if isinstance(value, int | float | str | bool) else str(value) for name, value in flat.items()}


def _range(limits: tuple[int, int]) -> str:
    return f"{limits[0]:,}" if limits[0] == limits[1] else f"{limits[0]:,} to {limits[1]:,}"


def _width(width: float | None) -> str:
    return "" if width is None else f"± {100 * width:.2f}"


if __name__ == "__main__":
    main()
