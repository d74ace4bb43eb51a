"""Options that several commands have, each written once; a command's configuration is made of these parts.

On the command line and in configurations of earlier versions their names stand alone: `--dataset`, not
`--data.dataset`. Importing this takes no torch, so that a command's `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import tyro

from rlmix.classifier.errors import InputError, require_at_least
from rlmix.classifier.training.config import TrainConfig

if TYPE_CHECKING:
    from rlmix.classifier.data import Dataset, Splits

Config = TypeVar("Config")

UNPREFIXED = tyro.conf.arg(name="")
TUNE = "tune"  # the kind of run that is many searches, which holds files of Ray
FORMER = {"env"}  # options of earlier versions that say nothing any more


@dataclass(frozen=True)
class DatasetConfig:
    """Data set, and the part of it that steers."""

    dataset: str = "fashion_mnist"
    """Data set: a name, a folder of images or a zip file of one, a .npz or .csv file, or package.module:function that
    returns a rlmix.classifier.data.Dataset."""
    data_root: str | None = None
    """Folder of the data set; optional, defaults to $RLMIX_DATA, else ~/.cache/rlmix/data, else a download."""
    image_size: int | None = None
    """Side that images are resized to; optional, defaults to their own size, and in a folder of images of several
    sizes, or of an odd one, to a multiple of 4."""
    validation_size: int | None = None
    """Number of validation images; optional, defaults to all of the data set's own, or to a part of the training
    images."""

    def load(self) -> Dataset:
        """Load the data set.

        Raises:
            DataError: it is not available.
        """
        from rlmix.classifier.data import load_dataset

        return load_dataset(self.dataset, self.data_root, image_size=self.image_size)


@dataclass(frozen=True)
class DataConfig(DatasetConfig):
    """The images of one training."""

    development_size: int | None = None
    """Number of development images, which comparisons report; optional, defaults to the data set's own, 0 leaves more
    to train on."""
    train_size: int | None = None
    """Number of training images; optional, defaults to all."""
    label_noise: float = 0.0
    """Share of the training labels that are made wrong, in [0, 1)."""

    def draw(self, data_seed: int) -> Splits:
        """Load the data set, split it and draw the training images.

        Args:
            data_seed: RNG seed for the training images and wrong labels.

        Raises:
            DataError: the data set is not available, or has too few images.
        """
        return self.draw_from(self.load(), data_seed)

    def draw_from(self, dataset: Dataset, data_seed: int) -> Splits:
        """Split a data set that is loaded and draw the training images.

        Raises:
            DataError: it has too few images.
        """
        from rlmix.classifier.data import split

        data = split(dataset, validation_size=self.validation_size, development_size=self.development_size)
        return data.draw(self.train_size, data_seed=data_seed, label_noise=self.label_noise)


@dataclass(frozen=True)
class ParallelConfig:
    """Trainings beside each other."""

    processes: int = 2
    """Number of parallel trainings, one thread each."""

    def __post_init__(self) -> None:
        require_at_least(self, processes=1)


@dataclass(frozen=True)
class StudyConfig(ParallelConfig):
    """Trainings of a study, which names the data sets itself."""

    data_root: str | None = None
    """Folder of the data sets; optional, defaults to $RLMIX_DATA, else ~/.cache/rlmix/data, else a download."""


@dataclass(frozen=True)
class RunConfig:
    """The run folder."""

    out: str | None = None
    """Run folder; optional, defaults to a new one under runs/."""
    resume: str | None = None
    """Run folder to resume; all other options are then read from it."""
    trust: bool = False
    """The run folder is your own: code that it names (package.module:function) or holds (Ray's files) may run."""


@dataclass(frozen=True)
class TrainingRunConfig:
    """Options of every command that trains one classifier."""

    data: Annotated[DataConfig, UNPREFIXED] = field(default_factory=DataConfig)
    data_seed: int = 0
    """RNG seed for the training images and wrong labels."""
    train: Annotated[TrainConfig, UNPREFIXED] = field(default_factory=lambda: TrainConfig(updates=2000))
    seed: int = 0
    """RNG seed for weights, data order and mixing."""
    threads: int = 0
    """Number of threads on a CPU; 0 takes one for each core."""
    checkpoint_seconds: float = 60.0
    """Time between two checkpoints."""
    run: Annotated[RunConfig, UNPREFIXED] = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        require_at_least(self, seed=0, data_seed=0, threads=0)


def unprefixed_parts(kind: type[Any]) -> dict[str, type[Any]]:
    """Return the parts of a configuration whose options stand without a prefix, by field."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__origin__ for name, hint in hints.items() if UNPREFIXED in getattr(hint, "__metadata__", ())}


def nest(kind: type[Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Sort options that stand alone into the parts of a configuration that they belong to.

    Args:
        kind: the configuration's class.
        flat: options by name; those of a part may also be sorted in already. Unknown names stay where they are.
    """
    options = {name: value for name, value in flat.items() if name not in FORMER}
    own = {entry.name for entry in fields(kind)}
    for part, part_kind in unprefixed_parts(kind).items():
        names = {entry.name for entry in fields(part_kind)} - own
        moved = {name: options.pop(name) for name in list(options) if name in names}
        if moved and isinstance(options.setdefault(part, {}), dict):
            options[part] = {**options[part], **moved}
    hints = get_type_hints(kind)
    for name, value in options.items():
        if is_dataclass(hints.get(name)) and isinstance(value, Mapping):
            options[name] = nest(hints[name], value)
    return options


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a configuration that was turned into a dictionary, without the parts that hold them.

    Options of the command itself win over those of its parts; parts with a prefix, such as `ppo`, stay.
    """
    own, inner = dict(config), {}
    for part in ("data", "train", "parallel", "run"):
        if isinstance(config.get(part), Mapping):
            inner.update(own.pop(part))
    return {**inner, **own}


def with_options(config: Config, **options: Any) -> Config:
    """Return a configuration with other options, given by the names they have on the command line.

    Raises:
        InputError: an option is not known or out of range.
    """
    nested, values = nest(type(config), options), {}
    for name, value in nested.items():
        if not hasattr(config, name):
            raise InputError(f"{name} is not an option of {type(config).__name__}")
        values[name] = with_options(getattr(config, name), **value) if isinstance(value, dict) else value
    return replace(config, **values)  # type: ignore[type-var]
