"""Seeds derived from seeds: one stream of random numbers never meets another."""

import numpy as np


def derive_seed(*numbers: int) -> int:
    """Return a seed in [0, 2**31) that is a pure function of the numbers, each at least 0."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0] >> 1)


def training_seed(episode_seed: int) -> int:
    """Return the `Trainer` seed of an episode; numbers below 0 are those of reference trainings."""
    return derive_seed(abs(episode_seed), 1 if episode_seed >= 0 else 2)
