"""Memory of an environment worker over many trainings of varied tasks.

The contract: it is flat. Resident memory is read after each episode; over the second half, when caches are full, a
straight line is laid through the means of ten equal blocks, which are nearly independent though neighbouring readings
are not. It is judged flat if what the line could rise over as many episodes again, at the upper end of its 95 %
interval, is less than 2 % of the memory.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import linregress, t
from tqdm import tqdm

from rlmix.agent.vec_env import ProcessVecEnv
from rlmix.agent.workers import EpisodeCursor, make_worker
from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.options import with_options
from rlmix.experiments.search.config import SearchConfig
from rlmix.experiments.search.plan import Search

BLOCKS = 10  # of the second half
LEAST = 2 * 2 * BLOCKS  # episodes: two readings a block
FLAT = 0.02  # of the memory, over as many episodes again


def growth(mebibytes: Sequence[float]) -> dict[str, Any]:
    """Slope of the second half of the readings, one an episode, and whether they are judged flat.

    Args:
        mebibytes: at least `LEAST`.
    """
    second = np.asarray(mebibytes[len(mebibytes) // 2 :])
    blocks = np.array_split(np.arange(len(second)), BLOCKS)
    means = [second[block].mean() for block in blocks]
    fit = linregress([block.mean() for block in blocks], means)
    # Readings that are all the same have no slope, and no error of one that could be computed.
    slope, error = (float(fit.slope), float(fit.stderr)) if np.ptp(means) else (0.0, 0.0)
    width = float(t.ppf(0.975, BLOCKS - 2)) * error
    rise = (slope + width) * len(mebibytes)
    return {
        "slope_mib_per_episode": slope,
        "interval": width,
        "mean_mib": float(second.mean()),
        "highest_rise_mib": rise,
        "flat": rise < FLAT * float(second.mean()),
    }


@dataclass(frozen=True)
class MemorySoak:
    """Measure the memory of an environment worker."""

    episodes: int = 500
    """Trainings, each of a task of its own."""
    seed: int = 0
    """Of the tasks and choices."""
    out: str | None = None
    """Folder of the result and the figure; none writes nothing."""

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Measure; gives the result, and what is wrong if the memory is not flat.

        Raises:
            RunError: there are too few episodes to judge.
        """
        if self.episodes < LEAST:
            raise RunError(f"--episodes must be at least {LEAST}, got {self.episodes}")
        readings = measure(self.episodes, self.seed)
        result = growth(readings)
        if self.out is not None:
            draw(readings).savefig(Path(self.out) / "memory.png", dpi=120)
        failed = []
        if not result["flat"]:
            failed = [f"memory is not flat: it could rise by {result['highest_rise_mib']:.1f} MiB as long again"]
        return {**result, "judged": f"flat below {FLAT:.0%} over as many episodes again", "mib": readings}, failed


def measure(episodes: int, seed: int) -> list[float]:
    """Resident memory in MiB of a worker process after each of its episodes, under random choices."""
    config = with_options(
        SearchConfig(),
        dataset="digits",
        train_size=(60, 200),
        updates=(4, 12),
        validation_size=100,
        tasks=episodes,
        reward="change",
        seed=seed,
        workers=1,
    )
    draw_action = random.Random(seed)
    make = partial(make_worker, Search.from_config(config).environment(None), seed)
    workers = ProcessVecEnv(make, [EpisodeCursor()], processes=1)
    try:
        statistics = Path(f"/proc/{workers.processes[0].pid}/statm")
        workers.reset()
        readings: list[float] = []
        with tqdm(total=episodes, unit="episode", mininterval=20) as bar:
            while len(readings) < episodes:
                action = [draw_action.randrange(size) for size in workers.action_space.nvec]
                _, _, done, _ = workers.step(np.array([action]))
                if done[0]:
                    readings.append(
                        round(int(statistics.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)
                    )
                    bar.update()
    finally:
        workers.close()
    return readings


def draw(mebibytes: Sequence[float]) -> Figure:
    """The readings over the episodes."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(1, len(mebibytes) + 1), mebibytes)
    axes.axvline(len(mebibytes) / 2, color="grey", linestyle=":", label="judged from here on")
    axes.set(xlabel="episode", ylabel="resident memory of a worker, MiB", ylim=(0, 1.25 * max(mebibytes)))
    axes.legend(loc="lower right")
    return figure
