"""Setting of a search: the checked configuration, with nothing left to `auto`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rlmix.agent.agent import Agent
from rlmix.agent.baselines import FIXED
from rlmix.agent.ppo import build_agent
from rlmix.agent.ray_env import WorkerResources
from rlmix.agent.vec_env import MAX_HELD
from rlmix.classifier.compilation import resolve_machine
from rlmix.classifier.data import Splits, split
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs import Menu, MixPolicyEnv, TaskDistribution
from rlmix.envs.observation import DEFAULT_FEATURES
from rlmix.envs.segments import segment_ends
from rlmix.experiments.reports import describe_task
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.folder import RunFolder
from rlmix.experiments.runs.options import flatten
from rlmix.experiments.search import task_family
from rlmix.experiments.search.cluster import run_on_worker
from rlmix.experiments.search.config import SearchConfig, TaskTrainConfig

MENUS: dict[Literal["default", "family"], Menu] = {"default": Menu(), "family": task_family.MENU}
MAX_ENVIRONMENTS = 1000  # each is built once to check the setting, before a search starts
MAX_VALIDATION = 3000  # images; more would slow the end of every training
START = "CutMix half"  # policy that the untrained agent prefers: the one that it has to beat


@dataclass(frozen=True)
class Search:
    """Setting of a search as the rest of the program uses it.

    Attributes:
        config: options of the search.
        tasks: distribution of the tasks.
        training: setting of the classifier's trainings.
        menu: choices of the agent.
    """

    config: SearchConfig
    tasks: TaskDistribution
    training: TaskTrainConfig
    menu: Menu

    @classmethod
    def from_config(cls, config: SearchConfig) -> Search:
        """Return the search that a configuration asks for.

        Raises:
            InputError: an option is out of range.
        """
        tasks = TaskDistribution(
            config.train_size,
            config.updates,
            config.label_noise,
            config.tasks,
            config.seed,
            config.clean,
            lr_scale=config.lr_scale,
        )
        training = replace(config.train, updates=config.updates[1])
        search = cls(config, tasks, training, MENUS[config.menu].including(config.also))
        MixPolicyEnv(**search.environment(None))
        _require_workers(config)
        _ = search.share  # raises where it is out of range
        return search

    @property
    def segments(self) -> tuple[float, ...]:
        """Progress at which each segment ends."""
        given = self.config.segments
        return segment_ends(int(given[0]) if len(given) == 1 and given[0].is_integer() else given)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that the agent sees."""
        return self.config.features or DEFAULT_FEATURES

    @property
    def one_decision(self) -> bool:
        """Return whether the agent sees the same in every training and chooses once: it is then one fixed policy."""
        config = self.config
        ranges = (config.train_size, config.updates, config.label_noise, config.lr_scale)
        return len(self.segments) == 1 and all(low == high for low, high in ranges) and config.clean in (0, 1)

    @property
    def share(self) -> WorkerResources:
        """Resources of each Ray worker."""
        return WorkerResources(self.config.cpus_per_worker, self.config.gpus_per_worker)

    def environment(self, run: RunFolder | None) -> dict[str, Any]:
        """Arguments of the workers' `MixPolicyEnv`."""
        return {
            "dataset": self.config.data.dataset,
            "data_root": self.config.data.data_root,
            "image_size": self.config.data.image_size,
            "training": self.training,
            "tasks": self.tasks,
            "segments": self.segments,
            "reward": self.config.reward,
            "menu": self.menu,
            "features": self.features,
            "reference_seeds": self.config.reference_seeds,
            "reference_cache": None if run is None else run.path.resolve() / "references",
            "validation_size": self.config.data.validation_size,
            "validation_limit": self.config.validation_limit,
            "render_mode": "rgb_array",
        }


def _require_workers(config: SearchConfig) -> None:
    """Check that numbers and places of workers fit each other.

    Raises:
        RunError: they do not fit.
    """
    if max(config.workers, config.environments) > MAX_ENVIRONMENTS:
        raise RunError(
            f"--workers and --environments must be at most {MAX_ENVIRONMENTS:,}, got {config.workers} and "
            f"{config.environments}"
        )
    if config.environments > MAX_HELD * config.worker_count:
        raise RunError(
            f"--environments must be at most {MAX_HELD} for each of {config.worker_count} workers, "
            f"got {config.environments}"
        )
    if config.environments and config.backend == "ray":
        raise RunError(
            f"each of Ray's workers holds one environment, got --environments {config.environments}: give "
            "--environments 0, and their number as --workers"
        )
    if config.environments and config.environments < config.workers:
        raise RunError(f"--environments must be at least --workers ({config.workers}), got {config.environments}")
    if config.backend == "local" and (config.address is not None or config.gpus_per_worker):
        raise RunError("--address and --gpus-per-worker are for Ray's workers: add --backend ray")


def resolve(config: SearchConfig) -> tuple[Search, Splits]:
    """Return the search with nothing left to `auto`, and its data.

    Raises:
        InputError: an option is out of range.
        DataError: the data set is not available or is too small.
    """
    dataset = config.data.load()
    if config.data.validation_size is None:
        size = min(MAX_VALIDATION, len(dataset.pool) // 5)
        config = replace(config, data=replace(config.data, validation_size=size))
    search = Search.from_config(config)
    data = split(dataset, validation_size=config.data.validation_size)
    largest = data.draw(config.train_size[1], data_seed=0, label_noise=config.label_noise[1])
    data.draw(config.train_size[0], data_seed=0)
    # Errors in network or agent are reported here, before there is a run folder and a worker.
    tried = Trainer(replace(search.training, device="cpu", precision="fp32", compile="off"), largest)
    for action in search.menu.actions():
        tried.check(search.menu.policy(action))
    environments = DummyVecEnv([lambda: MixPolicyEnv(**search.environment(None))] * config.environment_count)
    new_agent(search, environments, None if config.start is None else Agent.load(config.start))
    training = resolve_machine(search.training, largest, planned_updates=config.episodes * config.updates[1])
    return Search.from_config(replace(config, train=training, workers=config.worker_count)), data


def resolve_with_gpus(config: SearchConfig) -> tuple[Search, Splits]:
    """Resolve a search on a worker with a GPU, which this machine need not have.

    Raises:
        InputError: an option is out of range.
        DataError: the data set is not available or is too small.
    """
    config = run_on_worker(_resolved_config, config, WorkerResources(config.cpus_per_worker, config.gpus_per_worker))
    return Search.from_config(config), load_splits(config)


def load_splits(config: SearchConfig) -> Splits:
    """Return the images of a search, all that tasks draw from.

    Raises:
        DataError: the data set is not available or is too small.
    """
    return split(config.data.load(), validation_size=config.data.validation_size)


def _resolved_config(config: SearchConfig) -> SearchConfig:
    return resolve(config)[0].config


def print_data(data: Splits, search: Search) -> None:
    """Print the data and the setting of the search."""
    config = search.config
    print(
        f"{data.name}: {len(data.train):,} images to train on, {len(data.validation):,} validation, "
        f"{len(data.development):,} development test; the test set is not read\n"
        f"search: {f'{config.episodes:,}' if config.episodes else f'{config.minutes:g} minutes of'} trainings of "
        f"{describe_task(flatten(asdict(config)))}, {config.workers} worker{'s' if config.workers > 1 else ''}, "
        f"{config.train.precision} on {config.train.device}"
        f"{', compiled' if config.train.compile == 'on' else ''}"
    )


def like_agent(config: SearchConfig, start: str) -> SearchConfig:
    """Return a configuration with menu, segments, features and hidden layers of the agent that a search starts from.

    Args:
        config: configuration of a search.
        start: the agent's name or folder.

    Raises:
        DamagedFileError: it cannot be used.
    """
    agent = Agent.load(start)
    menus = [name for name, menu in MENUS.items() if menu == agent.menu]
    hidden = agent.policy.hidden[0] if agent.policy.hidden else config.ppo.hidden
    return replace(
        config,
        menu=menus[0] if menus else config.menu,
        segments=agent.segments,
        features=agent.features,
        ppo=replace(config.ppo, hidden=hidden),
    )


def new_agent(search: Search, workers: VecEnv, start: Agent | None = None) -> PPO:
    """Return the learner before the search: with an agent's weights, or one that prefers CutMix on half the updates.

    Args:
        search: setting of the search.
        workers: environments.
        start: agent whose weights it has; optional, defaults to new weights.

    Raises:
        InputError: the options do not fit each other, the number of workers, or the agent.
    """
    config, preferred = search.config, search.menu.find(FIXED[START])
    model = build_agent(config.ppo, workers, segments=len(search.segments), seed=config.seed, start=preferred)
    if start is not None:
        if (start.menu, start.segments, start.features) != (search.menu, search.segments, search.features):
            raise RunError(f"--start: {config.start} holds an agent of another menu or of other segments or features")
        if start.policy.hidden != model.policy.net_arch:
            raise RunError(
                f"--start: {config.start} has hidden layers of {start.policy.hidden}, not {model.policy.net_arch}; "
                "set --ppo.hidden"
            )
        model.policy.load_state_dict(start.policy.state_dict())
    return model


def describe_start(start: str | None, schedule: PolicySchedule) -> str | None:
    """Return a sentence on a learned schedule that is the policy which the untrained agent prefers; None on others.

    Args:
        start: agent that the search started from; None for an untrained one.
        schedule: the learned schedule.
    """
    if start is None and all(policy == FIXED[START] for _, policy in schedule.segments):
        return f"The search started from this policy, {START}, and found no better one."
    return None


def load_start(search: Search, run: RunFolder) -> Agent | None:
    """Return the agent that the search starts from, and copy it so that the run can be resumed without the original."""
    if search.config.start is None:
        return None
    copy = run.path / "start"
    if (copy / "agent.json").exists():
        return Agent.load(copy)
    agent = Agent.load(search.config.start)
    copy.mkdir(exist_ok=True)
    agent.save(copy)
    return agent
