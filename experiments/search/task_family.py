"""The family of tasks that the shipped agent is trained for, and what it chooses from.

Trainings that last seconds: Fashion-MNIST at 14 x 14 pixels, 200 to 5,000 images, 200 to 2,000 updates of the search
network, half of the tasks with up to 50 % wrong labels. Which policy is best changes from one to the next. An agent is
trained on slow tasks too, whose learning rate is lower, and on tasks of a network without normalisation: it then knows
networks that do not get far in their time, and such that learn in another way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlmix.classifier.mixing import MixPolicy
from rlmix.classifier.training.config import Precision, TrainConfig
from rlmix.envs import Menu, MixPolicyEnv, Task, TaskDistribution
from rlmix.experiments.search.config import PRESETS

FAMILY = PRESETS["family"]
DATA, SEGMENTS = FAMILY.data, FAMILY.segments
TASKS = TaskDistribution(
    train_size=FAMILY.train_size,
    updates=FAMILY.updates,
    label_noise=FAMILY.label_noise,
    clean=FAMILY.clean,
    pool=None,
    seed=2212_04875,
)
ONE_TASK = TaskDistribution(  # the same task again and again, with other images: of what a single task is worth
    train_size=(1000, 1000), updates=(1000, 1000), label_noise=(0.0, 0.0), pool=None, seed=TASKS.seed + 1
)
SLOW = replace(TASKS, lr_scale=FAMILY.lr_scale)  # every speed, so that an agent has seen networks that lag behind


@dataclass(frozen=True)
class Part:
    """Tasks of one kind.

    Attributes:
        first: number of its first task; its tasks go on from there.
        tasks: where they come from, by those numbers.
        model, lr: the network and its highest learning rate.
    """

    first: int
    tasks: TaskDistribution
    model: str = "search"
    lr: float = 0.2


PARTS = {
    "family": Part(0, TASKS),
    "slow": Part(1_000_000, SLOW),
    "bare": Part(2_000_000, replace(TASKS, lr_scale=(0.2, 1.0)), model="convnet", lr=0.05),  # without normalisation
}
MENU = Menu(
    sources=(
        ("clean", {"clean": 1.0}),
        ("mixup half", {"clean": 0.5, "mixup": 0.5}),
        ("mixup all", {"mixup": 1.0}),
        ("cutmix half", {"clean": 0.5, "cutmix": 0.5}),
        ("cutmix all", {"cutmix": 1.0}),
        ("average half", {"clean": 0.5, "average": 0.5}),
        ("rmix half", {"clean": 0.5, "rmix": 0.5}),
        ("rmix all", {"rmix": 1.0}),
    ),
    thresholds=(None,),
    labels=((1.0, 0.0), (1.0, 0.3)),
    lams=("beta(1)",),
)
PLAIN = MENU.find(MixPolicy({"clean": 1.0}))
REFERENCE = MENU.find(MixPolicy({"clean": 0.5, "cutmix": 0.5}))


def part_of(number: int) -> str:
    """The part, one of `PARTS`, that a task's number belongs to."""
    return max((name for name, part in PARTS.items() if part.first <= number), key=lambda name: PARTS[name].first)


def task(number: int) -> Task:
    """A task by its number, which says its part too."""
    return PARTS[part_of(number)].tasks.task(number)


def environment(part: str = "family", *, precision: Precision, data_root: str | None = None) -> MixPolicyEnv:
    """A training of the family as a game, in one process; the reward is the final validation accuracy.

    Args:
        part: of the family, one of `PARTS`.
        precision: number format of the network, `bf16` or `fp32`.
        data_root: folder where the data set lies; none = looked for.
    """
    return MixPolicyEnv(
        DATA.dataset,
        data_root,
        image_size=DATA.image_size,
        training=TrainConfig(
            model=PARTS[part].model, lr=PARTS[part].lr, updates=TASKS.updates[1], device="cpu", precision=precision
        ),
        tasks=PARTS[part].tasks,
        segments=SEGMENTS,
        reward="final",
        menu=MENU,
        validation_size=DATA.validation_size,
    )
