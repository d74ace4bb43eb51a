"""Configuration of a search, and named presets of it with the cost of each; importing them takes no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from tyro.conf import Suppress

from rlmix.agent.config import PPOConfig
from rlmix.classifier.errors import require_at_least, require_numpy_seed
from rlmix.classifier.limits import usable_cores
from rlmix.classifier.training.config import TrainConfig
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.options import UNPREFIXED, DatasetConfig, RunConfig

AGENT = "agent"  # the kind of run that is one search, as its config.json names it


@dataclass(frozen=True)
class TaskTrainConfig(TrainConfig):
    """Setting of the trainings of a search, whose length each task draws."""

    updates: Suppress[int] = 1000


@dataclass(frozen=True)
class SearchConfig:
    """Search a mixing policy with PPO: many short trainings, each mixed as the agent chooses."""

    preset: str = "clean"
    """Named setting that the other options change: default, clean, fashion, family, cifar10 or cifar100; optional,
    defaults to default, a problem on which the agent learns in ten minutes, and with --dataset to clean."""
    data: Annotated[DatasetConfig, UNPREFIXED] = field(default_factory=DatasetConfig)
    train: Annotated[TaskTrainConfig, UNPREFIXED] = field(default_factory=TaskTrainConfig)
    train_size: tuple[int, int] = (500, 500)
    """Smallest and largest number of training images of a task."""
    updates: tuple[int, int] = (250, 250)
    """Smallest and largest number of updates of a task's training."""
    label_noise: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest share of wrong training labels of a task."""
    lr_scale: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest factor of a task's learning rate, for trainings that learn at different speeds."""
    clean: float = 0.0
    """Share of the tasks without wrong labels, whatever --label-noise says."""
    tasks: int = 2
    """Number of distinct tasks in the search, each with training images of its own."""
    segments: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Number of equal segments (1: one choice for the whole training), or the progress at which each one ends."""
    menu: Literal["default", "family"] = "default"
    """Menu that the agent chooses from. family: 8 mixtures with and without label smoothing, 16 policies; default: 7
    mixtures with R-Mix's threshold, LaMix's label and the distribution of the mixing ratio."""
    also: tuple[str, ...] = ()
    """Methods that the agent can choose besides those of its menu, each on half of the updates, e.g. puzzlemix."""
    reward: str = "relative"
    """Reward. relative: change over the segment of the lead over CutMix on half the updates, in standard deviations
    over seeds; standing: the final lead, given at the end; change: change of validation accuracy; final: final
    validation accuracy."""
    reference_seeds: int = 2
    """Number of trainings of the relative reward's reference on each task; 0 takes one with each episode's own seed."""
    validation_limit: int = 1000
    """Number of validation images used before the end of a training."""
    episodes: int = 120
    """Number of classifier trainings in the search, rounded up to whole updates of the agent; 0 makes as many as fit
    into --minutes, but at least 6 updates' worth (6 times --ppo.episodes-per-update) and at most about 1,024."""
    minutes: float = 10.0
    """Minutes that the whole job should take with --episodes 0: trainings are timed first. It takes longer where 6
    updates' worth of trainings do, and less where about 1,024 are made before."""
    workers: int = 0
    """Number of worker processes, one thread each; 0 takes the largest number, at most that of the cores, that
    divides --ppo.episodes-per-update evenly."""
    environments: int = 0
    """Number of parallel environments, divided among --workers (0: one per worker). Changing this changes results;
    changing --workers does not."""
    backend: Literal["local", "ray"] = "local"
    """Place of the workers. local: processes of this machine; ray: actors of a Ray cluster."""
    address: str | None = None
    """Address of a Ray cluster, auto for this machine's; optional, defaults to Ray started on this machine, on
    loopback."""
    cpus_per_worker: float = 1.0
    """Number of CPUs and threads of each Ray worker; the number of threads changes results in their last bits."""
    gpus_per_worker: float = 0.0
    """Number of GPUs of each Ray worker; with 0.25 four share one."""
    worker_timeout: float = 3600.0
    """Seconds without an answer after which a Ray worker is replaced; must be longer than any training takes."""
    candidate_seeds: int = 4
    """Number of fresh trainings of each candidate, the agent's most probable schedules, to choose the best by."""
    contest_seeds: int = 5
    """Number of fresh trainings of each contestant in the final table."""
    seed: int = 0
    """RNG seed for the whole search."""
    start: str | None = None
    """Agent that the search starts from, with its menu, segments and features: shipped, surrogate (PPO that learned in
    the surrogate), or a folder; optional, defaults to a new one that prefers CutMix on half."""
    features: tuple[str, ...] = ()
    """Names of the features that the agent sees, those of --start where there is one; empty for the environment's."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """Hyperparameters of PPO."""
    run: Annotated[RunConfig, UNPREFIXED] = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require_at_least(
            self, episodes=0, workers=0, environments=0, candidate_seeds=1, contest_seeds=1, worker_timeout=1, seed=0
        )
        require_numpy_seed(self.seed)
        if not 0 < self.minutes < math.inf:
            raise RunError(f"--minutes must be above 0, got {self.minutes:g}")

    @property
    def worker_count(self) -> int:
        """Number of workers on this machine."""
        cores = usable_cores()
        return self.workers or (min(self.environments, cores) if self.environments else self.most_workers(cores))

    @property
    def environment_count(self) -> int:
        """Number of parallel environments."""
        return self.environments or self.worker_count

    def most_workers(self, places: int) -> int:
        """Return the largest number of workers, at most `places`, that divides an update's episodes evenly."""
        return max(count for count in range(1, places + 1) if self.ppo.episodes_per_update % count == 0)


CIFAR10 = SearchConfig(
    preset="cifar10",
    data=DatasetConfig("cifar10", validation_size=5000),
    train=TaskTrainConfig(model="preact_resnet18"),
    train_size=(5000, 5000),
    updates=(2000, 2000),
    tasks=4,
    episodes=1000,
    workers=4,
    candidate_seeds=5,
    contest_seeds=10,
    ppo=PPOConfig(episodes_per_update=16, minibatches=4),
)

PRESETS = {
    # About 10 minutes on every machine. Few images, four in ten with a wrong label, 100 passes over them: the network
    # learns the wrong labels by heart unless it is mixed well, and policies are up to 15 points apart.
    "default": SearchConfig(
        preset="default",
        data=DatasetConfig("fashion_mnist", image_size=14, validation_size=3000),
        train=TaskTrainConfig(batch_size=100, compile="off"),
        train_size=(100, 100),
        updates=(100, 100),
        label_noise=(0.4, 0.4),
        tasks=4,
        segments=(1.0,),
        menu="family",
        reference_seeds=8,  # fewer tell the spread between seeds, the unit of the return, badly: threefold apart with 4
        episodes=0,
        candidate_seeds=6,
        contest_seeds=24,  # random policies differ much: fewer seeds would not tell them from the learned one
        ppo=PPOConfig(
            episodes_per_update=16,
            minibatches=1,
            learning_rate=0.002,
            entropy=0.0,
            start_probability=0.15,
            target_kl=None,
        ),
    ),
    # 2 cores without AMX: about 7 minutes. The best policies are within noise of each other, and so is what it finds.
    "clean": SearchConfig(),
    # 2 cores without AMX: an estimated 2.5 hours.
    "fashion": SearchConfig(
        preset="fashion",
        train_size=(1000, 1000),
        updates=(500, 500),
        tasks=8,
        episodes=1200,
        candidate_seeds=8,
        contest_seeds=10,
        ppo=PPOConfig(episodes_per_update=16, minibatches=4),
    ),
    # Many tasks, for an agent that is shipped (search/task_family.py); see experiments/results/README.md.
    "family": SearchConfig(
        preset="family",
        data=DatasetConfig("fashion_mnist", image_size=14, validation_size=3000),
        train_size=(200, 5000),
        updates=(200, 2000),
        label_noise=(0.0, 0.5),
        lr_scale=(0.05, 1.0),
        clean=0.5,
        tasks=64,
        segments=(0.15, 0.4, 0.7, 0.9, 1.0),  # a short first one to look, short last ones for the finish
        menu="family",
        reward="standing",
        reference_seeds=1,
        episodes=256,
        environments=16,
        train=TaskTrainConfig(compile="off"),
        ppo=PPOConfig(episodes_per_update=16, minibatches=1, learning_rate=3e-4, epochs=10, target_kl=0.02),
    ),
    # For a GPU; on a core one of the 1,000 trainings takes about an hour. Run in small alone: results/presets.
    "cifar10": CIFAR10,
    "cifar100": replace(
        CIFAR10,
        preset="cifar100",
        data=DatasetConfig("cifar100", validation_size=5000),
        train_size=(10_000, 10_000),
        updates=(4000, 4000),
    ),
}


@dataclass(frozen=True)
class TuneConfig:
    """Search many times on a Ray cluster, and keep the best policy."""

    preset: str = "clean"
    """Named setting of the single searches: clean, fashion, family, cifar10 or cifar100."""
    search: Literal["asha", "pbt", "random"] = "asha"
    """Kind of search. asha: agents with different hyperparameters, the worse ones stopped early; pbt: Population Based
    Training; random: random schedules."""
    trials: int = 8
    """Number of agents that asha trains."""
    trainings: int = 120
    """Number of classifier trainings of pbt (the population's size) and of random (the number of schedules)."""
    at_once: int = 0
    """Number of agents that train in parallel; 0 takes as many as there is room for."""
    grace: int = 16
    """Number of episodes that asha lets every agent finish before it may stop it."""
    agent: SearchConfig = field(default_factory=SearchConfig)
    """The single search, and the classifier trainings of pbt and random. Refused, because this command has options of
    its own for them or cannot use them: --agent.preset, seed, backend, address, start, out, resume and trust."""
    seed: int = 0
    """RNG seed for the hyperparameters, every single search and the population."""
    address: str | None = None
    """Address of a Ray cluster, auto for this machine's; optional, defaults to Ray started on this machine, on
    loopback."""
    run: Annotated[RunConfig, UNPREFIXED] = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require_at_least(self, trials=1, trainings=2, at_once=0, grace=1, seed=0)
        require_numpy_seed(self.seed)
        if not self.agent.episodes:
            raise RunError(
                "--agent.episodes must be at least 1, got 0: agents are compared after equally many trainings"
            )


def preset(name: str) -> SearchConfig:
    """Return a preset by its name.

    Raises:
        RunError: there is no such preset.
    """
    if name not in PRESETS:
        raise RunError(f"--preset must be one of {', '.join(PRESETS)}, got {name!r}")
    return PRESETS[name]
