"""Actor and critic of RL-Mix's agent: the published networks, and one that treats images alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn
from torch.distributions import Categorical

from rlmix.agent.files import NoOptimizer
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing.draw import THRESHOLDS
from rlmix.envs.rl_mix import LOGIT_LIMIT

FEATURES = 256  # units of the published extractor's two linear layers
HIDDEN = 64  # units of the per-image network's two layers


class BatchExtractor(BaseFeaturesExtractor):
    """The published features: the batch's saliency maps as the channels of one picture, and all of its logits.

    Convolutions over `[B, 8, 8]` (150 filters 3 x 3, then 100 filters 2 x 2), a linear layer from each image's logits
    to 256, all of it flattened and joined into 256. ReLU after each convolution and at the end.

    Args:
        observation_space: observation space of an `RLMixEnv`.

    Raises:
        InputError: there are fewer patches than the two filters cover.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, FEATURES)
        batch, side, _ = observation_space["saliency"].shape or ()
        if side < 4:
            raise InputError(
                f"the published extractor needs at least 4 patches per side, got {side}; use the extractor image"
            )
        _, num_classes = observation_space["logits"].shape or ()
        self.saliency = nn.Sequential(
            nn.Conv2d(batch, 150, 3), nn.ReLU(), nn.Conv2d(150, 100, 2), nn.ReLU(), nn.Flatten()
        )
        self.logits = nn.Sequential(nn.Linear(num_classes, FEATURES), nn.Flatten())
        self.joined = nn.Sequential(nn.Linear(100 * (side - 3) ** 2 + batch * FEATURES, FEATURES), nn.ReLU())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Map observations `[n, B, ...]` to features `[n, 256]`."""
        parts = self.saliency(observations["saliency"]), self.logits(observations["logits"])
        return self.joined(torch.cat(parts, dim=1))


class ImageExtractor(BaseFeaturesExtractor):
    """Features of each image by itself: its saliency relative to that of a uniform map, and its logits.

    Args:
        observation_space: observation space of an `RLMixEnv`.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        _, side, _ = observation_space["saliency"].shape or ()
        _, num_classes = observation_space["logits"].shape or ()
        super().__init__(observation_space, side**2 + num_classes)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Map observations `[n, B, ...]` to `[n, B, side * side + K]`."""
        maps = observations["saliency"].flatten(2)
        return torch.cat((maps * maps.shape[2], observations["logits"]), dim=2)


class ImageNetwork(nn.Module):
    """Network applied to every image: logits of its threshold, and its share in the value of the batch.

    Takes the place of Stable-Baselines3's `MlpExtractor`.

    Args:
        features: number of features of an image.
    """

    latent_dim_pi = 1  # input of SB3's action layer, which `ImagePolicy` replaces
    latent_dim_vf = HIDDEN

    def __init__(self, features: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(features, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(features, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.thresholds = nn.Linear(HIDDEN, len(THRESHOLDS))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Map features `[n, B, F]` to threshold logits `[n, B * 10]` and latent values `[n, 64]`."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        """Map features `[n, B, F]` to threshold logits `[n, B * 10]`."""
        return self.thresholds(self.actor(features)).flatten(1)

    def forward_critic(self, features: Tensor) -> Tensor:
        """Map features `[n, B, F]` to their mean over images, `[n, 64]`."""
        return self.critic(features).mean(dim=1)


class ThresholdDistribution(MultiCategoricalDistribution):
    """Categorical distribution over thresholds, for all images at once.

    Stable-Baselines3 makes one object for each dimension of a `MultiDiscrete`, which for batches of 100 images takes
    longer than the published agent's network.
    """

    distribution: Categorical  # type: ignore[assignment]

    def proba_distribution(self, action_logits: Tensor) -> ThresholdDistribution:
        """Set the distribution from logits `[n, B * 10]`."""
        self.distribution = Categorical(logits=action_logits.unflatten(1, (-1, len(THRESHOLDS))))
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return the log probability of actions `[n, B]`, summed over images, `[n]`."""
        return self.distribution.log_prob(actions).sum(dim=1)

    def entropy(self) -> Tensor:
        """Return the entropy, summed over images, `[n]`."""
        return self.distribution.entropy().sum(dim=1)

    def sample(self) -> Tensor:
        """Draw a threshold for each image, `[n, B]`."""
        return self.distribution.sample()

    def mode(self) -> Tensor:
        """Return each image's most probable threshold, `[n, B]`."""
        return self.distribution.logits.argmax(dim=2)


class BatchPolicy(MultiInputActorCriticPolicy):
    """Stable-Baselines3's actor and critic (two layers of 64 units each) on the published extractor's features."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"features_extractor_class": BatchExtractor, **keywords})

    def _build(self, lr_schedule: Schedule) -> None:
        assert isinstance(self.action_space, spaces.MultiDiscrete)
        self.action_dist = ThresholdDistribution(self.action_space.nvec.tolist())
        super()._build(lr_schedule)


class ImagePolicy(BatchPolicy):
    """Actor and critic that treat images alike: their parameters fit any batch size."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **{"features_extractor_class": ImageExtractor, **keywords})

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = ImageNetwork(self.features_dim)  # type: ignore[assignment]

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.action_net = nn.Identity()  # the image network's last layer gives the logits
        assert isinstance(self.mlp_extractor, ImageNetwork)
        self.mlp_extractor.thresholds.apply(partial(self.init_weights, gain=0.01))  # near uniform, as SB3's own
        # The parameters have changed; SB3, too, builds its optimiser from all of them.
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]


POLICIES: dict[str, type[BatchPolicy]] = {"batch": BatchPolicy, "image": ImagePolicy}


def new_policy(extractor: str, images: int, side: int, num_classes: int) -> BatchPolicy:
    """Return the actor and critic that PPO builds for an `RLMixEnv`, with new weights and without an optimiser.

    Args:
        extractor: key of `POLICIES`.
        images: number of images of a batch.
        side: number of patches per side of the saliency.
        num_classes: number of classes.
    """
    observed = spaces.Dict(
        {
            "saliency": spaces.Box(0.0, 1.0, (images, side, side), np.float32),
            "logits": spaces.Box(-LOGIT_LIMIT, LOGIT_LIMIT, (images, num_classes), np.float32),
        }
    )
    actions = spaces.MultiDiscrete([len(THRESHOLDS)] * images)
    return POLICIES[extractor](observed, actions, lambda _: 0.0, optimizer_class=NoOptimizer)
