"""The per-batch agent of RL-Mix (arXiv 2212.04875): PPO that learns thresholds while the classifier trains."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn
from torch.distributions import Categorical

from rlmix.agent.config import RLMixAgentConfig
from rlmix.agent.ppo import restore_search, search_state
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import DamagedFileError, write_atomic
from rlmix.classifier.hardware import require_memory
from rlmix.classifier.mixing.policy import require_fields
from rlmix.classifier.mixing.rmix import THRESHOLDS
from rlmix.envs import RLMixEnv
from rlmix.envs.rl_mix import LOGIT_LIMIT, Observation

FORMAT = "rl-mix per-batch agent"
VERSION = 1
FEATURES = 256  # units of the published extractor's two linear layers
HIDDEN = 64  # units of the per-image network's two layers
DECAY = 0.9  # power of the remaining progress by which the learning rate falls, as published
STREAMS = {"random": 0, "frozen": 1}  # draws of one chooser never meet those of another

Choice = NDArray[np.int64]
Choose = Callable[[Observation, int], Choice]  # (observation, number of the update) -> threshold index of each image
Learn = Callable[[float, Observation, bool, bool], None]  # (reward, what followed, terminated, truncated)


class BatchExtractor(BaseFeaturesExtractor):
    """The published features: the batch's saliency maps as the channels of one picture, and all of its logits.

    Convolutions over `[B, 8, 8]` (150 filters 3 x 3, then 100 filters 2 x 2), a linear layer from each image's logits
    to 256, all of it flattened and joined into 256. ReLU after each convolution and at the end.

    Args:
        observation_space: of an `RLMixEnv`.

    Raises:
        ValueError: there are fewer patches than the two filters cover.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        super().__init__(observation_space, FEATURES)
        batch, side, _ = observation_space["saliency"].shape or ()
        if side < 4:
            raise InputError(
                f"the published extractor needs 4 patches per side or more, got {side}; take the extractor image"
            )
        _, num_classes = observation_space["logits"].shape or ()
        self.saliency = nn.Sequential(
            nn.Conv2d(batch, 150, 3), nn.ReLU(), nn.Conv2d(150, 100, 2), nn.ReLU(), nn.Flatten()
        )
        self.logits = nn.Sequential(nn.Linear(num_classes, FEATURES), nn.Flatten())
        self.joined = nn.Sequential(nn.Linear(100 * (side - 3) ** 2 + batch * FEATURES, FEATURES), nn.ReLU())

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Observations `[n, B, ...]` to features `[n, 256]`."""
        parts = self.saliency(observations["saliency"]), self.logits(observations["logits"])
        return self.joined(torch.cat(parts, dim=1))


class ImageExtractor(BaseFeaturesExtractor):
    """What is known of each image by itself: its saliency over that of a uniform map, and its logits.

    Args:
        observation_space: of an `RLMixEnv`.
    """

    def __init__(self, observation_space: spaces.Dict) -> None:
        _, side, _ = observation_space["saliency"].shape or ()
        _, num_classes = observation_space["logits"].shape or ()
        super().__init__(observation_space, side**2 + num_classes)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Observations `[n, B, ...]` to `[n, B, side * side + K]`."""
        maps = observations["saliency"].flatten(2)
        return torch.cat((maps * maps.shape[2], observations["logits"]), dim=2)


class ImageNetwork(nn.Module):
    """One network for every image: its threshold's logits, and its share in the batch's value.

    Takes the place of Stable-Baselines3's `MlpExtractor`.

    Args:
        features: of one image.
    """

    latent_dim_pi = 1  # of the layer that `ImagePolicy` does without
    latent_dim_vf = HIDDEN

    def __init__(self, features: int) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(features, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(features, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, HIDDEN), nn.Tanh())
        self.thresholds = nn.Linear(HIDDEN, len(THRESHOLDS))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[n, B, F]` to threshold logits `[n, B * 10]` and latent values `[n, 64]`."""
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        """Features `[n, B, F]` to threshold logits `[n, B * 10]`."""
        return self.thresholds(self.actor(features)).flatten(1)

    def forward_critic(self, features: Tensor) -> Tensor:
        """Features `[n, B, F]` to the mean over images, `[n, 64]`."""
        return self.critic(features).mean(dim=1)


class ThresholdDistribution(MultiCategoricalDistribution):
    """One categorical for all images at once.

    Stable-Baselines3 makes one object for each dimension of a `MultiDiscrete`, which for batches of 100 images takes
    longer than the published agent's network.
    """

    distribution: Categorical  # type: ignore[assignment]

    def proba_distribution(self, action_logits: Tensor) -> ThresholdDistribution:
        """From logits `[n, B * 10]`."""
        self.distribution = Categorical(logits=action_logits.unflatten(1, (-1, len(THRESHOLDS))))
        return self

    def log_prob(self, actions: Tensor) -> Tensor:
        """Of actions `[n, B]`: the sum over images, `[n]`."""
        return self.distribution.log_prob(actions).sum(dim=1)

    def entropy(self) -> Tensor:
        """The sum over images, `[n]`."""
        return self.distribution.entropy().sum(dim=1)

    def sample(self) -> Tensor:
        """A threshold for each image, `[n, B]`."""
        return self.distribution.sample()

    def mode(self) -> Tensor:
        """Each image's most probable threshold, `[n, B]`."""
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
        # The parameters are others now; SB3 makes its optimiser of all that there are, too.
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]


POLICIES: dict[str, type[BatchPolicy]] = {"batch": BatchPolicy, "image": ImagePolicy}


class ThresholdPPO:
    """PPO that chooses thresholds and learns from what came of them, one step of an `RLMixEnv` at a time.

    What Stable-Baselines3's `learn` does, cut into steps: so that a training can be stopped at any epoch's end, in the
    middle of a rollout, and so that who does not learn is driven by the same loop (`play`).

    Args:
        config: how it sees and learns.
        env: for its spaces; it is not stepped here.
        seed: of weights and sampling; seeds torch's, NumPy's and Python's global generators, as Stable-Baselines3 does.
        updates: of the classifier's training, over which the learning rate falls.
        logger: where PPO's own figures go, as it learns.

    Raises:
        ValueError: the configuration is out of range.
    """

    def __init__(self, config: RLMixAgentConfig, env: RLMixEnv, *, seed: int, updates: int, logger: Logger) -> None:
        if config.extractor not in POLICIES:
            raise InputError(f"extractor must be one of {', '.join(POLICIES)}, got {config.extractor!r}")
        for name, least in (("n_steps", 2), ("batch_size", 2), ("epochs", 1)):
            if getattr(config, name) < least:
                raise InputError(f"{name} of the agent must be at least {least}, got {getattr(config, name)}")
        if config.n_steps % config.batch_size:
            raise InputError(
                "n_steps of the agent must be a multiple of its batch_size, "
                f"got {config.n_steps} and {config.batch_size}"
            )
        shapes = [space.shape or () for space in env.observation_space.spaces.values()]
        rollout = 4 * config.n_steps * sum(math.prod(shape) for shape in shapes)
        require_memory(rollout, f"a rollout of n_steps {config.n_steps:,}")
        if not 0 < config.learning_rate < 1:
            raise InputError(f"learning_rate of the agent must be in (0, 1), got {config.learning_rate}")
        self.model = PPO(
            POLICIES[config.extractor],
            env,
            learning_rate=lambda left: config.learning_rate * left**DECAY,
            n_steps=config.n_steps,
            batch_size=config.batch_size,
            n_epochs=config.epochs,
            seed=seed,
            device=env.trainer.device,
        )
        self.model.set_logger(logger)
        self.model._last_episode_starts = np.ones(1, dtype=bool)
        self._updates = updates
        self._chosen: tuple[Observation, Tensor, Tensor, Tensor]

    def choose(self, observation: Observation, update: int) -> Choice:
        """Draw each image's threshold from the policy; `update` is not used."""
        self.model.policy.set_training_mode(False)
        with torch.no_grad():
            action, value, log_prob = self.model.policy(self._tensors(observation))
        self._chosen = (observation, action, value, log_prob)
        return action[0].cpu().numpy()

    def learn(self, reward: float, following: Observation, terminated: bool, truncated: bool) -> None:
        """Take in what came of the last choice; update the agent when a rollout is full."""
        model, buffer = self.model, self._buffer
        observation, action, value, log_prob = self._chosen
        paid = np.array([reward], dtype=np.float32)
        if truncated:  # training goes on: what would have come is estimated, as Stable-Baselines3 does
            paid += model.gamma * self._value(following)
        starts = model._last_episode_starts
        assert isinstance(starts, np.ndarray)
        batched = {name: values[None] for name, values in observation.items()}
        buffer.add(batched, action.cpu().numpy(), paid, starts, value, log_prob)
        model._last_episode_starts = done = np.array([terminated or truncated])
        model.num_timesteps += 1
        if buffer.full:
            self.update(torch.from_numpy(self._value(following)), done=bool(done[0]))

    def update(self, value: Tensor, *, done: bool) -> None:
        """Learn from a full rollout, and start another one.

        Args:
            value: `[1, 1]`, estimated of what follows the rollout.
            done: an episode ended with it.
        """
        model, buffer = self.model, self._buffer
        buffer.compute_returns_and_advantage(value, np.array([done]))
        model._update_current_progress_remaining(model.num_timesteps, self._updates)
        model.train()
        model.logger.dump(model.num_timesteps)
        buffer.reset()

    def state_dict(self) -> dict[str, Any]:
        """Everything of the agent between two steps, its unfinished rollout and the global random states included."""
        done = self._buffer.pos
        rollout = {name: torch.from_numpy(values[:done]) for name, values in self.rows().items()}
        return {"search": search_state(self.model), "rollout": rollout}

    def load_state_dict(self, state: dict[str, Any], observation: Observation) -> None:
        """Go on from what `state_dict` gave, when the environment shows `observation`."""
        restore_search(self.model, state["search"], observation)
        for name, values in self.rows().items():
            kept = state["rollout"][name].numpy()
            values[: len(kept)] = kept
            self._buffer.pos = len(kept)

    @property
    def _buffer(self) -> DictRolloutBuffer:
        buffer = self.model.rollout_buffer
        assert isinstance(buffer, DictRolloutBuffer)
        return buffer

    def rows(self) -> dict[str, NDArray[Any]]:
        """The rollout's arrays by name, `[n_steps, 1, ...]` each; those of past steps are filled."""
        names = ("actions", "rewards", "episode_starts", "values", "log_probs")
        return {**self._buffer.observations, **{name: getattr(self._buffer, name) for name in names}}

    def _value(self, observation: Observation) -> NDArray[np.float32]:
        with torch.no_grad():
            return self.model.policy.predict_values(self._tensors(observation))[0].cpu().numpy()

    def _tensors(self, observation: Observation) -> Any:
        return obs_as_tensor({name: values[None] for name, values in observation.items()}, self.model.device)


def random_thresholds(seed: int, images: int) -> Choose:
    """A chooser that draws thresholds as R-Mix does: the control of whatever is learned.

    Args:
        seed: the draws are a function of it and of the update's number alone.
        images: of a batch.
    """

    def choose(observation: Observation, update: int) -> Choice:
        random = np.random.default_rng([seed, STREAMS["random"], update])
        return random.integers(len(THRESHOLDS), size=images)

    return choose


@dataclass(frozen=True)
class ThresholdAgent:
    """A learned per-batch agent that learns no more: what it needs to choose, and nothing to unpickle.

    Attributes:
        policy: actor and critic.
        extractor: a key of `POLICIES`.
        images: of a batch that the policy is built for.
        side: patches per side that it sees.
        num_classes: K, length of the logits that it sees.
        grid: `published` or `mixing`, as the environment has it.
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
    def of(cls, learner: ThresholdPPO, extractor: str, env: RLMixEnv, provenance: dict[str, Any]) -> ThresholdAgent:
        """The agent that has been learned so far in an environment."""
        policy = learner.model.policy
        assert isinstance(policy, BatchPolicy)
        images, side, _ = env.observation_space["saliency"].shape or ()
        return cls(policy, extractor, images, side, env.trainer.num_classes, env.grid, provenance)

    def fitted(self, env: RLMixEnv) -> ThresholdAgent:
        """The same agent for the batches of an environment, on its device.

        Raises:
            ValueError: it sees other patches or classes, or, as published, serves another batch size only.
        """
        images, side, _ = env.observation_space["saliency"].shape or ()
        found = {"patches per side": side, "classes": env.trainer.num_classes, "grid": env.grid}
        for (name, there), own in zip(found.items(), (self.side, self.num_classes, self.grid), strict=True):
            if there != own:
                raise InputError(f"the agent was learned with {name} {own}, got {there}; replay it where it fits")
        if self.extractor == "batch" and images != self.images:
            raise InputError(
                f"the agent's extractor takes the images of a batch as channels and serves batches of {self.images}, "
                f"got {images}; give that batch size, or learn an agent with the extractor image"
            )
        policy = new_policy(self.extractor, images, side, self.num_classes)
        policy.load_state_dict(self.policy.state_dict())
        policy.to(env.trainer.device).set_training_mode(False)
        return ThresholdAgent(policy, self.extractor, images, side, self.num_classes, self.grid, self.provenance)

    def thresholds(self, seed: int) -> Choose:
        """A chooser that draws from the frozen policy.

        Drawn, not the most probable: what was learned is a distribution, often close to uniform.

        Args:
            seed: the draws are a function of it, of the update's number and of what is seen.
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
        description = {
            "format": FORMAT,
            "version": VERSION,
            "extractor": self.extractor,
            "images": self.images,
            "side": self.side,
            "num_classes": self.num_classes,
            "grid": self.grid,
            "provenance": self.provenance,
        }
        # Parameters, and there is nothing else, once each: the state names the shared extractor's three times.
        weights = {name: tensor.detach().contiguous().cpu() for name, tensor in self.policy.named_parameters()}
        write_atomic(folder / "agent.safetensors", save(weights))
        write_atomic(folder / "agent.json", (json.dumps(description, indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> ThresholdAgent:
        """Read an agent that `save` wrote: a new network is built and given the weights; no code is run.

        Raises:
            DamagedFileError: a file is missing, damaged, of another version, or does not fit the other.
        """
        try:
            value = json.loads((folder / "agent.json").read_bytes())
            if not isinstance(value, dict) or value.get("format") != FORMAT or value.get("version") != VERSION:
                raise ValueError(f"not a per-batch agent of version {VERSION}")
            sizes = {"images": 4096, "side": 32, "num_classes": 100_000}  # larger ones would be built before refused
            require_fields("agent", value, ["format", "version", "extractor", *sizes, "grid", "provenance"])
            if value["extractor"] not in POLICIES or value["grid"] not in ("published", "mixing"):
                raise ValueError(f"an unknown extractor or grid: {value['extractor']!r:.80}, {value['grid']!r:.80}")
            if any(type(value[name]) is not int or not 2 <= value[name] <= most for name, most in sizes.items()):
                raise ValueError(f"sizes must be whole numbers from 2 to at most {sizes}")
            if not isinstance(value["provenance"], dict):
                raise ValueError("provenance must be an object")
            weights = load_file(folder / "agent.safetensors")
            values = {name: value[name] for name in (*sizes, "extractor", "grid", "provenance")}
            policy = new_policy(value["extractor"], value["images"], value["side"], value["num_classes"])
            if weights.keys() != dict(policy.named_parameters()).keys():
                raise ValueError("the weights are those of another network")
            policy.load_state_dict(weights, strict=False)  # without the shared extractor's other two names
            return cls(policy, **values)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, RecursionError) as error:
            raise DamagedFileError(
                f"{folder}: no usable per-batch agent there ({error}); it needs agent.json and agent.safetensors as "
                "train_rl_mix.py writes them"
            ) from None


def new_policy(extractor: str, images: int, side: int, num_classes: int) -> BatchPolicy:
    """The actor and critic that PPO builds for an `RLMixEnv` of these sizes, with new weights."""
    observed = spaces.Dict(
        {
            "saliency": spaces.Box(0.0, 1.0, (images, side, side), np.float32),
            "logits": spaces.Box(-LOGIT_LIMIT, LOGIT_LIMIT, (images, num_classes), np.float32),
        }
    )
    return POLICIES[extractor](observed, spaces.MultiDiscrete([len(THRESHOLDS)] * images), lambda _: 0.0)


@dataclass(frozen=True)
class Epoch:
    """What an epoch was like.

    Attributes:
        counts: how often each threshold was chosen, `[10]`.
        reward: mean over its updates.
        loss: of the mixed batches, mean over its updates, in nats.
        updates: how many there were.
        updates_done: of the training, at its end.
        diverged: a loss was not finite.
        observation: what the environment shows now.
    """

    counts: NDArray[np.int64]
    reward: float
    loss: float
    updates: int
    updates_done: int
    diverged: bool
    observation: Observation

    def line(self) -> dict[str, Any]:
        """What a log keeps of it, as JSON: `counts`, `reward`, `loss`, `updates` and `updates_done`."""
        kept = {name: getattr(self, name) for name in ("reward", "loss", "updates", "updates_done")}
        return {"counts": self.counts.tolist(), **kept}


def play(env: RLMixEnv, observation: Observation, choose: Choose, learn: Learn | None = None) -> Iterator[Epoch]:
    """Train the environment's classifier to its end, an epoch at a time.

    Between two epochs everything can be saved (`env.state_dict`, `ThresholdPPO.state_dict`) and gone on with.

    Args:
        env: at the start of an epoch.
        observation: what it shows.
        choose: who chooses the thresholds.
        learn: told what came of each choice; none = nobody learns.
    """
    while not env.training_over:
        counts, rewards, losses, over = np.zeros(len(THRESHOLDS), dtype=np.int64), [], [], False
        while not over:
            action = choose(observation, env.trainer.updates_done)
            observation, reward, terminated, truncated, info = env.step(action)
            if learn is not None:
                learn(reward, observation, terminated, truncated)
            counts += np.bincount(action, minlength=len(counts))
            rewards.append(reward)
            losses.append(info["loss"])
            over = terminated or truncated
        if not info["training_over"]:
            observation, _ = env.reset()
        yield Epoch(
            counts,
            float(np.mean(rewards)),
            float(np.mean(losses)),
            len(rewards),
            info["updates_done"],
            info["diverged"],
            observation,
        )


def last_quarter(epochs: Sequence[Mapping[str, Any]], updates: int) -> dict[str, Any]:
    """Mean reward, and share of each threshold, over the epochs that end in the last quarter of a training.

    Args:
        epochs: lines of `Epoch.line`, at least one; where the training ended before, the last one counts.
        updates: length of the training.
    """
    last = [epoch for epoch in epochs if epoch["updates_done"] > 0.75 * updates] or epochs[-1:]
    counts = np.sum([epoch["counts"] for epoch in last], axis=0)
    return {
        "reward": float(np.average([epoch["reward"] for epoch in last], weights=[epoch["updates"] for epoch in last])),
        "thresholds": (counts / counts.sum()).tolist(),
    }
