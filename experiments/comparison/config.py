"""Configuration of a comparison; importing it takes no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import Suppress

from rlmix.classifier.errors import require_at_least
from rlmix.classifier.training.config import TrainConfig
from rlmix.experiments.runs.options import UNPREFIXED, DataConfig, ParallelConfig

# Options that every stored setting names; others only where they are not the default.
NAMED = ("dataset", "model", "train_size", "updates", "batch_size", "device", "precision")


@dataclass(frozen=True)
class ComparisonTrainConfig(TrainConfig):
    """Setting of the trainings of a comparison, whose contestants say how saliency is computed."""

    saliency: Suppress[Literal["recycled", "exact"]] = "recycled"
    compile: Suppress[Literal["auto", "on", "off"]] = "off"


@dataclass(frozen=True)
class ComparisonConfig:
    """Compare training methods over paired seeds."""

    contestants: tuple[str, ...] = ()
    """Training methods; optional, defaults to all of them. An unknown name lists them."""
    schedules: tuple[str, ...] = ()
    """More contestants: policy schedules, each as NAME=FILE, such as learned=runs/agent-DATE-TIME/policy.json."""
    agents: tuple[str, ...] = ()
    """More contestants: agents that choose as each training goes, each as NAME=FOLDER, the run folder of a search,
    or NAME=FILE, a rule; shipped, surrogate and rule are those that come with the program."""
    collect: tuple[str, ...] = ()
    """Folders of other comparisons with the same setting, whose finished trainings are reused."""
    baseline: str = "plain"
    """Contestant that the others are compared with."""
    measures: tuple[str, ...] = ()
    """Measures of each network besides its accuracy, as in evaluate.py: accuracy (calibration), attacks, ... An unknown
    name lists them."""
    measured_images: int | None = None
    """Number of images that --measures are taken on, from the start of the split; optional, defaults to all."""
    test_set: bool = False
    """Read the test set instead of the development images; every reading is recorded."""
    data: Annotated[DataConfig, UNPREFIXED] = field(default_factory=lambda: DataConfig(train_size=1000))
    train: Annotated[ComparisonTrainConfig, UNPREFIXED] = field(default_factory=ComparisonTrainConfig)
    seeds: int = 10
    """Number of trainings of each contestant, at least 2, with seeds 0, 1, 2, ..."""
    parallel: Annotated[ParallelConfig, UNPREFIXED] = field(default_factory=ParallelConfig)
    out: str = "runs/comparison"
    """Folder of results.json, results.md, results.csv, results.png and runs.jsonl, the trainings finished so far."""

    def __post_init__(self) -> None:
        require_at_least(self, seeds=2, measured_images=2)
