"""What `train_agent.py` can be asked, and named settings of it with what each costs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlmix.agent.config import PPOConfig
from rlmix.envs import Menu
from rlmix.experiments.search import task_family

MENUS = {"default": Menu(), "family": task_family.MENU}


@dataclass(frozen=True)
class SearchConfig:
    """Search a mixing policy with PPO: many short trainings, each mixed as the agent chooses."""

    env: Literal["mix-policy"] = "mix-policy"
    """What is learned: a policy for whole segments of trainings; train_rl_mix.py is the published agent of RL-Mix."""
    preset: str = "default"
    """Named setting that the other options change: default, fashion, family, cifar10 or cifar100."""
    dataset: str = "fashion_mnist"
    """Data set by name, or package.module:function that returns a rlmix.classifier.data.Dataset."""
    data_root: str | None = None
    """Folder where the data set lies; none looks in the usual places, then downloads."""
    image_size: int | None = None
    """Side that images are resized to; none leaves them as they are."""
    model: str = "search"
    """Network by name, or package.module:function for your own function(num_classes, in_channels)."""
    embedding: str | None = None
    """Name of your network's last linear layer; none finds it."""
    train_size: tuple[int, int] = (500, 500)
    """Fewest and most training images of a task."""
    updates: tuple[int, int] = (250, 250)
    """Fewest and most updates of a task's training."""
    label_noise: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest share of wrong training labels of a task."""
    lr_scale: tuple[float, float] = (1.0, 1.0)
    """Lowest and highest factor of a task's learning rate: trainings that learn at different speeds."""
    clean: float = 0.0
    """Share of the tasks that have no wrong labels, whatever --label-noise says."""
    tasks: int = 2
    """Number of distinct tasks in the search; each has training images of its own."""
    batch_size: int = 100
    """Images per update."""
    lr: float = 0.2
    """Highest learning rate of the classifier's OneCycle schedule."""
    weight_decay: float = 5e-4
    """L2 penalty on the classifier's parameters."""
    segments: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Number of equal segments (1: one choice for the whole training), or the progress at which each one ends."""
    menu: Literal["default", "family"] = "default"
    """What the agent can choose from, by name."""
    also: tuple[str, ...] = ()
    """Methods that the agent can choose besides those of its menu, each on half of the updates, e.g. puzzlemix."""
    reward: Literal["relative", "standing", "change", "final"] = "relative"
    """What the agent is paid: standing against CutMix on half (by segment or at the end), change, or final accuracy."""
    reference_seeds: int = 2
    """Trainings of the relative reward's reference on each task; 0 takes one from each episode's own seed."""
    validation_size: int | None = None
    """Validation images; none takes 3,000, but no more than a fifth of the data set's pool."""
    validation_limit: int = 1000
    """How many of them are used before the end of a training."""
    episodes: int = 120
    """Classifier trainings of the search, rounded up to whole updates of the agent."""
    workers: int = 0
    """Worker processes, one thread each; 0 takes as many as cores allow and as share an update's episodes evenly."""
    environments: int = 0
    """Trainings side by side, shared out among local workers; 0: one each. Results depend on this, not on workers."""
    backend: Literal["local", "ray"] = "local"
    """Where workers run: processes of this machine, or actors of a Ray cluster."""
    address: str | None = None
    """Of a Ray cluster, auto for this machine's; none starts Ray on this machine, listening on loopback alone."""
    cpus_per_worker: float = 1.0
    """CPUs of each Ray worker, which are its threads too; results depend on the threads, in the last bits."""
    gpus_per_worker: float = 0.0
    """GPUs of each Ray worker; 0.25 lets four share one."""
    worker_timeout: float = 3600.0
    """Seconds after which a Ray worker that has not answered is replaced; longer than any training takes."""
    candidate_seeds: int = 4
    """Fresh trainings by which the learned schedule is chosen among its candidates."""
    contest_seeds: int = 5
    """Fresh trainings of each contestant in the final table."""
    seed: int = 0
    """Of the whole search."""
    device: str = "auto"
    """Where classifiers are trained: auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the networks; auto takes bf16 where it is native and agrees with fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Whether the training step is compiled; auto measures whether it pays."""
    start: str | None = None
    """Folder of an agent that the search starts at, such as start_agent.py's; none leans to CutMix on half."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """How the agent learns."""
    out: str | None = None
    """Run folder; none makes one under runs/."""
    resume: str | None = None
    """Run folder of a search to go on with; all other options are then read from it."""
    trust: bool = False
    """The run folder is your own: code that it names (package.module:function) or holds (Ray's files) may run."""

    @property
    def worker_count(self) -> int:
        """Number of workers on this machine."""
        cores = len(os.sched_getaffinity(0))
        return self.workers or (min(self.environments, cores) if self.environments else self.most_workers(cores))

    @property
    def environment_count(self) -> int:
        """Number of trainings side by side."""
        return self.environments or self.worker_count

    def most_workers(self, places: int) -> int:
        """The largest number of workers, up to `places`, that shares an update's episodes evenly."""
        return max(count for count in range(1, places + 1) if self.ppo.episodes_per_update % count == 0)


PRESETS = {
    # 2 cores without AMX: about 7 minutes. A look at what a search does; differences are mostly within noise.
    "default": SearchConfig(),
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
    # Many tasks, for an agent that is shipped; see experiments/results/README.md.
    "family": SearchConfig(
        preset="family",
        dataset=task_family.DATASET,
        image_size=task_family.IMAGE_SIZE,
        train_size=task_family.TASKS.train_size,
        updates=task_family.TASKS.updates,
        label_noise=task_family.TASKS.label_noise,
        lr_scale=task_family.SLOW.lr_scale,
        clean=task_family.TASKS.clean,
        tasks=64,
        segments=task_family.SEGMENTS,
        menu="family",
        reward="standing",
        reference_seeds=1,
        validation_size=task_family.VALIDATION_SIZE,
        episodes=256,
        environments=16,
        compile="off",
        ppo=PPOConfig(episodes_per_update=16, minibatches=1, learning_rate=3e-4, epochs=10, target_kl=0.02),
    ),
    # For a GPU. Not run yet: no machine of ours holds the data set.
    "cifar10": SearchConfig(
        preset="cifar10",
        dataset="cifar10",
        model="preact_resnet18",
        train_size=(5000, 5000),
        updates=(2000, 2000),
        tasks=4,
        episodes=1000,
        workers=4,
        validation_size=5000,
        candidate_seeds=5,
        contest_seeds=10,
        ppo=PPOConfig(episodes_per_update=16, minibatches=4),
    ),
    # For a GPU. Not run yet: no machine of ours holds the data set.
    "cifar100": SearchConfig(
        preset="cifar100",
        dataset="cifar100",
        model="preact_resnet18",
        train_size=(10_000, 10_000),
        updates=(4000, 4000),
        tasks=4,
        episodes=1000,
        workers=4,
        validation_size=5000,
        candidate_seeds=5,
        contest_seeds=10,
        ppo=PPOConfig(episodes_per_update=16, minibatches=4),
    ),
}


def named(arguments: Sequence[str], option: str) -> str | None:
    """What follows `option` on a command line: a preset must be known before the rest, whose defaults it sets.

    Args:
        arguments: of the command.
        option: with its dashes; `option NAME` and `option=NAME` are the same, and the last one counts.
    """
    name = None
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            name = arguments[index + 1]
        elif argument.startswith(f"{option}="):
            name = argument.partition("=")[2]
    return name
