"""A training led by an agent, in this process, from its start to its end."""

from __future__ import annotations

import math
from dataclasses import replace

from rlmix.agent.any_agent import AnyAgent
from rlmix.agent.decisions import choose_by, segments_of
from rlmix.agent.scheduler import PolicyScheduler
from rlmix.classifier.evaluation import check_labels
from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.stats import TrainStats, merge_stats
from rlmix.classifier.training.trainer import Trainer
from rlmix.envs.observation import TrainingState, checks_labels
from rlmix.envs.task_trainer import VALIDATION_LIMIT
from rlmix.envs.tasks import Task


def train_by_agent(trainer: Trainer, agent: AnyAgent) -> tuple[TrainStats, PolicySchedule]:
    """Train to the end under an agent, or until the training diverges.

    Args:
        trainer: at the start of a training; changed in place.
        agent: asked at the start of every one of its segments.

    Returns:
        Statistics of all segments as of one, and what the agent chose.
    """
    updates = trainer.config.updates
    task = Task(len(trainer.data.train), updates, label_noise=0.0, data_seed=0)  # the last two are not seen
    state = TrainingState.at_start(trainer, task)
    scheduler = PolicyScheduler(choose_by(agent), segments_of(agent), state, updates=updates)
    parts = []
    for end in scheduler.ends:
        policy = scheduler.start_segment(trainer.updates_done)
        parts.append(trainer.train(policy, end - trainer.updates_done))
        if parts[-1].diverged:
            break
        evaluation = trainer.evaluate("validation", limit=VALIDATION_LIMIT)
        if not math.isfinite(evaluation.loss):
            parts[-1] = replace(parts[-1], diverged=True)
            break
        scheduler.add(parts[-1])
        scheduler.end_segment(
            progress=trainer.progress,
            relative_lr=trainer.relative_lr,
            evaluation=evaluation,
            labels=check_labels(trainer) if checks_labels(agent.features) else None,
        )
    return merge_stats(parts), replace(scheduler.schedule(), provenance={})
