"""Configurations of the agents; importing them takes no torch, so that a command's `--help` answers at once."""

from dataclasses import dataclass

from rlmix.classifier.errors import InputError, require_at_least

MOST_TRAININGS = 64  # of a budget


@dataclass(frozen=True)
class PPOConfig:
    """Hyperparameters of PPO over `MixPolicyEnv`.

    Attributes:
        episodes_per_update: number of whole episodes in each rollout, over all workers.
        learning_rate: step size of Adam, constant.
        epochs: number of passes over each rollout.
        minibatches: number of minibatches in each pass.
        entropy: weight of the entropy bonus, which keeps the agent exploring.
        clip: PPO's clipping range.
        gae_lambda: λ of generalised advantage estimation; the discount is 1, since an episode has an end.
        target_kl: an update ends early where the KL divergence exceeds 1.5 times this; None sets no limit.
        hidden: number of units of each of the two hidden layers, in the policy's network and in the value's.
        start_probability: probability that the untrained agent gives each choice of the policy that the search starts
            at; at least that of every other choice.

    Raises:
        InputError: a number of passes or minibatches is below 1, or the learning rate not in (0, 1).
    """

    episodes_per_update: int = 8
    learning_rate: float = 1e-3
    epochs: int = 8
    minibatches: int = 2
    entropy: float = 0.01
    clip: float = 0.2
    gae_lambda: float = 0.95
    target_kl: float | None = 0.05
    hidden: int = 64
    start_probability: float = 0.5

    def __post_init__(self) -> None:
        require_at_least(self, epochs=1, minibatches=1)
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate of the agent must be in (0, 1), got {self.learning_rate}")


@dataclass(frozen=True)
class RLMixAgentConfig:
    """Hyperparameters of RL-Mix's agent; everything else is Stable-Baselines3's default for PPO.

    Attributes:
        extractor: network that reads the observation. `batch`, as published: convolutions that take the images of a
            batch as channels, so the agent serves one batch size only; `image`: a small network applied to each image,
            for any batch size.
        n_steps: number of updates of the classifier (the agent's steps) between two updates of the agent.
        batch_size: number of these steps in each of the agent's minibatches; n_steps must be divisible by it.
        epochs: number of passes over the steps in each update of the agent.
        learning_rate: step size of Adam at the start; it falls to 0 with the 0.9th power of the remaining progress.

    Raises:
        InputError: a number is too small, or batch_size does not divide n_steps.
    """

    extractor: str = "batch"
    n_steps: int = 1000
    batch_size: int = 250
    epochs: int = 10
    learning_rate: float = 3e-4

    def __post_init__(self) -> None:
        require_at_least(self, n_steps=2, batch_size=2, epochs=1)
        if self.n_steps % self.batch_size:
            raise InputError(
                f"n_steps of the agent must be divisible by its batch_size, got {self.n_steps} and {self.batch_size}"
            )
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate of the agent must be in (0, 1), got {self.learning_rate}")
