"""The setting of a search: a configuration checked, with nothing left to `auto`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rlmix.agent.baselines import FIXED
from rlmix.agent.ppo import Agent, build_agent
from rlmix.agent.ray_env import Share
from rlmix.agent.vec_env import MOST_HELD
from rlmix.classifier.compilation import compiling_pays
from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.hardware import resolve_device, resolve_precision
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Menu, MixPolicyEnv, TaskDistribution
from rlmix.envs.mix_policy import segment_ends
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.search.cluster import on_a_worker
from rlmix.experiments.search.config import MENUS, SearchConfig

KIND = "agent"
MOST_ENVIRONMENTS = 1000  # to be tried out before a search starts
MOST_VALIDATION = 3000  # more take time at the end of every training of a search
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


def _range(limits: tuple[int, int]) -> str:
    return f"{limits[0]:,}" if limits[0] == limits[1] else f"{limits[0]:,} to {limits[1]:,}"
