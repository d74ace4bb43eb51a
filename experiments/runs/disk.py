"""What a run's folder takes at most, and a warning where that is not free.

Bounds, not forecasts: what a run writes once or rarely is counted at its largest, and what it writes again and again by
the size of one record. Every start after the first adds a file of events, some kilobytes, and a damaged checkpoint that
is kept for a look comes on top.
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

from stable_baselines3.common.policies import BasePolicy
from torch import nn

from rlmix.agent.callbacks import MOST_PICTURES
from rlmix.experiments.runs.folder import KEPT_CHECKPOINTS
from rlmix.experiments.search.config import SearchConfig

FIXED = 2**20  # report, summary and whatever else does not grow, in bytes
SCALAR = 100  # bytes of one number in TensorBoard's events
HISTOGRAM = 2**14  # bytes of a distribution there
PICTURES = 2**19  # bytes of the pictures that a search draws at a time
COPIES = KEPT_CHECKPOINTS + 1  # of a checkpoint: those that are kept, and the one that is being written


def parameters_of(network: nn.Module) -> int:
    """Bytes of a network's weights and statistics."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def search_bytes(config: SearchConfig, agent: BasePolicy, *, segments: int, choices: int, jobs: int) -> int:
    """What a search over `MixPolicyEnv` takes at most.

    Args:
        config: the setting.
        agent: its policy.
        segments: of an episode.
        choices: in all dimensions of the menu together.
        jobs: trainings after the search.
    """
    rollouts = math.ceil(config.episodes / config.ppo.episodes_per_update)
    episodes = rollouts * config.ppo.episodes_per_update
    line = 300 + 120 * segments
    history = 25 * choices * rollouts
    # Weights and Adam's means, the choices of every rollout, and the running episodes.
    checkpoint = 3 * parameters_of(agent) + history + config.environment_count * line + 2**14
    events = rollouts * (20 + choices) * SCALAR + min(rollouts, MOST_PICTURES + 1) * PICTURES
    tasks = (config.tasks or 0) * (2000 + 100 * segments)  # references of the relative reward
    trainings = jobs * (1000 + 400 * segments)
    return FIXED + episodes * line + events + COPIES * checkpoint + 3 * parameters_of(agent) + tasks + trainings


def training_bytes(network: nn.Module, *, stretches: int, evaluations: int, segments: int) -> int:
    """What a final training takes at most.

    Args:
        network: that is trained.
        stretches: times that its progress is written into TensorBoard's events.
        evaluations: on validation images.
        segments: of its schedule.
    """
    # Weights, momentum and the segment's statistics, now and where a divergence goes back to, and the best network.
    checkpoint = 5 * parameters_of(network) + 1500 * stretches + 2**16
    events = (20 * stretches + 5 * evaluations) * SCALAR + segments * PICTURES
    return FIXED + COPIES * checkpoint + 2 * parameters_of(network) + events


def per_batch_bytes(network: nn.Module, agent: BasePolicy | None, *, rollout: int, epochs: int, choices: int) -> int:
    """What a training under the per-batch agent takes at most.

    Args:
        network: the classifier.
        agent: that learns; none = none does.
        rollout: bytes of its rollout's arrays.
        epochs: of the training.
        choices: thresholds that there are.
    """
    # Of an agent: weights, Adam's means, the rollout so far, and its own file.
    learner = 0 if agent is None else 4 * parameters_of(agent) + rollout
    checkpoint = 3 * parameters_of(network) + learner + 2**16
    line = 500 + 25 * choices
    events = epochs * ((20 + choices) * SCALAR + HISTOGRAM) + PICTURES
    return FIXED + COPIES * checkpoint + 2 * parameters_of(network) + epochs * line + events


def tell_disk(folder: Path, needed: int) -> None:
    """Say what a run takes, and warn where that is not free; on standard output and standard error.

    Args:
        folder: of the run.
        needed: bytes, at most.
    """
    free = shutil.disk_usage(folder).free
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())  # of an earlier start
    print(f"disk: at most {needed / 1e6:,.0f} MB in {folder}", flush=True)
    if needed - there > free:
        print(
            f"warning: {folder} may come to need {(needed - there) / 1e6:,.0f} MB more, and {free / 1e6:,.0f} MB are "
            "free there; make room, or choose another --out",
            file=sys.stderr,
            flush=True,
        )
