"""Agent of RL-Mix that has finished learning: its file, and choosing by it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor
from torch.distributions import Categorical

from rlmix.agent.files import AgentFormat, write_files
from rlmix.agent.rl_mix.learner import RLMixLearner
from rlmix.agent.rl_mix.loop import STREAMS, Choice, Choose
from rlmix.agent.rl_mix.networks import POLICIES, BatchPolicy, new_policy
from rlmix.classifier.errors import InputError
from rlmix.envs import RLMixEnv
from rlmix.envs.rl_mix import Observation

MAX_SIZES = {"images": 4096, "side": 32, "num_classes": 100_000}  # larger ones would be built before refused
FORMAT = AgentFormat(
    name="rl-mix per-batch agent",
    version=1,
    title="RL-Mix agent",
    command="train_rl_mix.py",
    fields=("extractor", *MAX_SIZES, "grid", "provenance"),
)


@dataclass(frozen=True)
class RLMixAgent:
    """A frozen agent of RL-Mix: what it needs to choose, without anything to unpickle.

    Attributes:
        policy: actor and critic.
        extractor: key of `POLICIES`.
        images: number of images of a batch that the policy is built for.
        side: number of patches per side of the saliency that it observes.
        num_classes: number of classes, the length of the logits that it observes.
        grid: grid of the saliency, `published` or `mixing`, as in `RLMixEnv`.
        provenance: how it was learned; any JSON object.
    """

    policy: BatchPolicy
    extractor: str
    images: int
    side: int
    num_classes: int
    grid: str
    provenance: dict[str, Any]

    @classmethod
    def from_learner(
        cls, learner: RLMixLearner, extractor: str, env: RLMixEnv, provenance: dict[str, Any]
    ) -> RLMixAgent:
        """Return the agent as a learner has it now.

        Args:
            learner: learner of the agent.
            extractor: key of `POLICIES` that the learner uses.
            env: environment in which it learns.
            provenance: how it was learned; any JSON object.
        """
        policy = learner.model.policy
        assert isinstance(policy, BatchPolicy)
        images, side, _ = env.observation_space["saliency"].shape or ()
        return cls(policy, extractor, images, side, env.trainer.num_classes, env.grid, provenance)

    def for_environment(self, env: RLMixEnv) -> RLMixAgent:
        """Return the same agent for the batches of an environment, on its device.

        Raises:
            InputError: it observes other patches or classes, or, as published, serves another batch size only.
        """
        images, side, _ = env.observation_space["saliency"].shape or ()
        given = {"patches per side": side, "classes": env.trainer.num_classes, "grid": env.grid}
        for (name, value), own in zip(given.items(), (self.side, self.num_classes, self.grid), strict=True):
            if value != own:
                raise InputError(
                    f"the agent was learned with {name} {own}, got {value}; use it with the classes and grid it knows"
                )
        if self.extractor == "batch" and images != self.images:
            raise InputError(
                f"the agent's extractor takes the images of a batch as channels and serves batches of {self.images}, "
                f"got {images}; give that batch size, or learn an agent with the extractor image"
            )
        policy = new_policy(self.extractor, images, side, self.num_classes)
        policy.load_state_dict(self.policy.state_dict())
        policy.to(env.trainer.device).set_training_mode(False)
        return RLMixAgent(policy, self.extractor, images, side, self.num_classes, self.grid, self.provenance)

    def thresholds(self, seed: int) -> Choose:
        """Return a function that draws thresholds from the frozen policy.

        Thresholds are drawn, not the most probable ones: the policy is a distribution, often close to uniform.

        Args:
            seed: RNG seed; a draw is a function of it, of the update's number and of the observation.
        """

        def choose(observation: Observation, update: int) -> Choice:
            device = self.policy.device
            seen = obs_as_tensor({name: values[None] for name, values in observation.items()}, device)
            with torch.no_grad():
                distribution = self.policy.get_distribution(seen).distribution
            assert isinstance(distribution, Categorical)
            logits = distribution.logits[0].cpu().numpy()
            # The largest of logits with Gumbel noise is a draw from their softmax.
            noise = np.random.default_rng([seed, STREAMS["frozen"], update]).gumbel(size=logits.shape)
            return (logits + noise).argmax(axis=1)

        return choose

    def save(self, folder: Path) -> None:
        """Write `agent.safetensors` and `agent.json` into `folder`."""
        # Parameters, and there is nothing else, once each: the state names the shared extractor's three times.
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in self.policy.named_parameters()}
        write_files(folder, FORMAT.to_files({name: getattr(self, name) for name in FORMAT.fields}, weights))

    @classmethod
    def load(cls, folder: Path) -> RLMixAgent:
        """Read an agent that `save` wrote; no code is run.

        Raises:
            DamagedFileError: a file is missing, damaged, of another version, or does not fit the other.
        """
        return FORMAT.load(folder, cls._build)

    @classmethod
    def _build(cls, value: dict[str, Any], weights: dict[str, Tensor]) -> RLMixAgent:
        if value["extractor"] not in POLICIES or value["grid"] not in ("published", "mixing"):
            raise ValueError(f"unknown extractor or grid: {value['extractor']!r:.80}, {value['grid']!r:.80}")
        if any(type(value[name]) is not int or not 2 <= value[name] <= most for name, most in MAX_SIZES.items()):
            raise ValueError(f"sizes must be whole numbers from 2 to at most {MAX_SIZES}")
        policy = new_policy(value["extractor"], value["images"], value["side"], value["num_classes"])
        if weights.keys() != dict(policy.named_parameters()).keys():
            raise ValueError("the weights are those of another network")
        policy.load_state_dict(weights, strict=False)  # without the shared extractor's other two names
        return cls(policy, **{name: value[name] for name in FORMAT.fields})
