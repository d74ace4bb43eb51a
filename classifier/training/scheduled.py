"""Training under a schedule, from its current update to its end."""

from rlmix.classifier.mixing import PolicySchedule
from rlmix.classifier.training.stats import TrainStats, merge_stats
from rlmix.classifier.training.trainer import Trainer


def train_schedule(trainer: Trainer, schedule: PolicySchedule) -> TrainStats:
    """Train to the end under a schedule, or until the training diverges.

    Args:
        trainer: at the start of a training; changed in place.
        schedule: mixing policy for each part of the training.

    Returns:
        Statistics of all segments as of one; saliency and gradient are not measured.
    """
    parts = []
    for end, policy in schedule.ends(trainer.config.updates):
        parts.append(trainer.train(policy, end - trainer.updates_done, probe=False))
        if parts[-1].diverged:
            break
    return merge_stats(parts)
