"""Configuration of a comparison; importing it takes no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ComparisonConfig:
    """Compare training methods over paired seeds."""

    contestants: tuple[str, ...] = ()
    """Training methods; optional, defaults to all of them. An unknown name lists them."""
    schedules: tuple[str, ...] = ()
    """More contestants: policy schedules, each as NAME=FILE, such as learned=runs/agent-DATE-TIME/policy.json."""
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

    dataset: str = "fashion_mnist"
    """Data set by name, or package.module:function that returns a rlmix.classifier.data.Dataset."""
    data_root: str | None = None
    """Folder of the data set; optional, defaults to the usual places, then to a download."""
    model: str = "search"
    """Network by name, or package.module:function for your own function(num_classes, in_channels)."""
    train_size: int = 1000
    """Number of training images, drawn by the seed."""
    development_size: int | None = None
    """Number of development images; optional, defaults to 10,000, at most a fifth of the data set's pool."""
    updates: int = 1000
    """Number of updates of each training."""
    batch_size: int = 100
    """Number of images per update."""
    seeds: int = 10
    """Number of trainings of each contestant, at least 2, with seeds 0, 1, 2, ..."""
    processes: int = 2
    """Number of parallel trainings, one thread each."""
    device: str = "auto"
    """Device: auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Number format of the network; auto takes bf16 where it is native and agrees with fp32."""
    out: str = "runs/comparison"
    """Folder of results.json, results.md, results.csv, results.png and runs.jsonl, the trainings finished so far."""
