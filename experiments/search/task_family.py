"""Task family that the agent of version 0.2 is trained for, and the menu that all shipped agents choose from.

Trainings that last seconds: Fashion-MNIST at 14 x 14 pixels, 200 to 5,000 images, 200 to 2,000 updates of the search
network, half of the tasks with up to 50 % wrong labels. The best policy differs from task to task. An agent is also
trained on slow tasks, with a lower learning rate, and on tasks of a network without normalisation, so that it has seen
networks that learn more slowly and in other ways.
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
ONE_TASK = TaskDistribution(  # always the same sizes, with new images each time
    train_size=(1000, 1000), updates=(1000, 1000), label_noise=(0.0, 0.0), pool=None, seed=TASKS.seed + 1
)
SLOW = replace(TASKS, lr_scale=FAMILY.lr_scale)


@dataclass(frozen=True)
class FamilyPart:
    """Part of the family: tasks of one kind.

    Attributes:
        first: number of its first task; the others follow.
        tasks: distribution of the tasks, by those numbers.
        model: name of the network.
        lr: highest learning rate.
    """

    first: int
    tasks: TaskDistribution
    model: str = "search"
    lr: float = 0.2


PARTS = {
    "family": FamilyPart(0, TASKS),
    "slow": FamilyPart(1_000_000, SLOW),
    # Without normalisation.
    "bare": FamilyPart(2_000_000, replace(TASKS, lr_scale=(0.2, 1.0)), model="convnet", lr=0.05),
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
    """Return the part, a key of `PARTS`, that a task's number belongs to."""
    return max((name for name, part in PARTS.items() if part.first <= number), key=lambda name: PARTS[name].first)


def task(number: int) -> Task:
    """Return a task by its number, which also determines its part."""
    return PARTS[part_of(number)].tasks.task(number)


def environment(part: str = "family", *, precision: Precision, data_root: str | None = None) -> MixPolicyEnv:
    """Return an environment of the family's trainings; its reward is the final validation accuracy.

    Args:
        part: part of the family, a key of `PARTS`.
        precision: number format of the network, `bf16` or `fp32`.
        data_root: folder of the data set; optional, defaults to `$RLMIX_DATA`, else `~/.cache/rlmix/data`.
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
