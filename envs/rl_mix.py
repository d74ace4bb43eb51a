"""RLMixEnv: RL-Mix as published (arXiv 2212.04875); a step is one training batch, an episode one epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from rlmix.classifier.data import Splits, load_dataset, split
from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import LamDistribution
from rlmix.classifier.mixing.draw import THRESHOLDS
from rlmix.classifier.mixing.picture import blank_picture, mixed_picture
from rlmix.classifier.mixing.rmix import rmix_grids
from rlmix.classifier.mixing.saliency import pooled_saliency, summing_to_one
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.rmix_trainer import RMixTrainer
from rlmix.classifier.training.stats import EvalStats

Observation = dict[str, NDArray[np.float32]]

REWARDS = ("saliency", "validation")
GRIDS = ("published", "mixing")
PUBLISHED_SIDE = 8  # patches per side of what the agent sees
LOGIT_LIMIT = 100.0  # a network that is training has logits of some tens; beyond, it is diverging
DIGITS_TRAINING = TrainConfig(updates=60, batch_size=50)
DIGITS_TRAIN_SIZE = 300


class RLMixEnv(gym.Env[Any, Any]):
    """Choose each image's saliency threshold, batch by batch, while one classifier is trained.

    ## Description
    A step is one update of the classifier: R-Mix with exact saliency, on a batch that is always mixed. Before it, a
    forward and backward pass at the clean images gives their logits and input gradient; that one gradient serves the
    observation, the mixing mask and the reward. The mixed images' gradient comes with the update itself. The data
    order, crops, partners, ratios and mixing grids are those of the `Trainer` for the same seed, whatever is chosen.

    ## Action Space
    `MultiDiscrete([10] * B)`: for each image the index of its threshold τ in `linspace(0, 0.99, 10)`. Patches at or
    above an image's saliency quantile τ are salient.

    ## Observation Space
    `Dict` of float32, of the batch that the next step mixes; K is the number of classes.

    | Key | Shape | Meaning | Low | High |
    |---|---|---|---|---|
    | `saliency` | `[B, 8, 8]` | input-gradient saliency, averaged over patches, each image's summing to 1 | 0 | 1 |
    | `logits` | `[B, K]` | the classifier's logits, clipped | -100 | 100 |

    Image sides that 8 does not divide are pooled by patches that overlap by a pixel. With `grid="mixing"` the saliency
    is `[B, 4, 4]` (or the finest of R-Mix's grids that divides the image): averaged over the very patches that the
    batch will be mixed by, and repeated where these are larger. As published, an agent sees and is rewarded on 8 x 8
    patches while mixing happens on 4 x 4 or 2 x 2, drawn for each batch.

    Values that are not a number (a diverged classifier) are replaced by 0, and its saliency is uniform.

    ## Rewards
    - `saliency` (default, as published): at every step the cosine similarity, in [0, 1], of the clean and the mixed
      batch's saliency, both averaged over patches, not normalised per image, and flattened over the whole batch. 0
      where one of them has no gradient at all.
    - `validation`: at an epoch's last step the change of validation accuracy since the last epoch's end, starting at
      chance, in [-1, 1]; 0 before. The first `validation_limit` images of the split are used.

    ## Starting State
    `reset(seed=s)` starts a new classifier; s is the `Trainer`'s seed. Without a seed, `reset()` starts the next epoch
    of the same classifier, or, if there is none or its training is over, a new one whose seed the environment draws.
    `info["classifier_seed"]` is the classifier's seed, `info["updates_done"]` the number of its updates so far.

    ## Episode End
    Truncated after the updates of one epoch, `training images // B`: training continues. (Images that do not fill a
    batch are not dropped, as they were in the authors' program: they begin the next epoch, so that the order is that
    of every other training.) Truncated too when the classifier's updates are used up (`info["training_over"]`).
    Terminated at once when a loss is not finite (`info["diverged"]`).

    ## Arguments
    ```python
    import gymnasium as gym
    env = gym.make("rlmix:RLMix-v0", dataset="digits")
    ```

    ## Version History
    - v0: first version.

    Args:
        dataset: name for `rlmix.classifier.data.load_dataset`.
        data_root: folder of the data set; optional, defaults to `$RLMIX_DATA`, else `~/.cache/rlmix/data`.
        training: the classifier's setting, a `TrainConfig` or a dictionary of its fields; its `saliency` is not read.
        train_size: number of training images; None for all.
        data_seed: RNG seed for the choice of training images.
        reward: `saliency` or `validation`.
        grid: `published` or `mixing`.
        lam: distribution of the mixing ratio λ, one for each batch: `beta(A)`, `uniform` or `fixed(V)`.
        validation_size: number of validation images; optional, defaults to the data set's.
        validation_limit: number of them that the reward `validation` is measured on; None for all.
        splits: images that the caller has drawn already; the data set and its options are then not read.
        render_mode: `rgb_array` for `render()`: the last mixed images with their targets.

    Raises:
        ValueError: an argument is out of range, or there are fewer training images than a batch holds.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012, as in gymnasium

    def __init__(
        self,
        dataset: str = "digits",
        data_root: str | None = None,
        *,
        training: TrainConfig | Mapping[str, Any] = DIGITS_TRAINING,
        train_size: int | None = DIGITS_TRAIN_SIZE,
        data_seed: int = 0,
        reward: str = "saliency",
        grid: str = "published",
        lam: str = "beta(1)",
        validation_size: int | None = None,
        validation_limit: int | None = 1000,
        splits: Splits | None = None,
        render_mode: str | None = None,
    ) -> None:
        for name, value, choices in (("reward", reward, REWARDS), ("grid", grid, GRIDS)):
            if value not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if validation_limit is not None and validation_limit < 1:
            raise InputError(f"validation_limit must be at least 1 image or None, got {validation_limit}")
        if splits is None:
            whole = split(load_dataset(dataset, data_root), validation_size=validation_size)
            splits = whole.draw(train_size, data_seed=data_seed)
        self.reward, self.grid, self.validation_limit = reward, grid, validation_limit
        self.render_mode = render_mode
        self._lam = LamDistribution.parse(lam)
        config = TrainConfig(**training) if isinstance(training, Mapping) else training
        if len(splits.train) < config.batch_size:
            raise InputError(
                f"an epoch needs a whole batch: got {len(splits.train)} training images for batches of "
                f"{config.batch_size}; take more images or a smaller batch_size"
            )
        self.epoch_updates = len(splits.train) // config.batch_size
        finest = rmix_grids(*splits.train.image_shape[1:])[0]
        self.trainer = RMixTrainer(config, splits)
        self._side = PUBLISHED_SIDE if grid == "published" else finest
        self._levels = torch.tensor(THRESHOLDS)
        self._started = self._diverged = False
        self._left = 0
        self._accuracy = EvalStats.at_chance(splits.num_classes).accuracy
        self.action_space = spaces.MultiDiscrete([len(THRESHOLDS)] * config.batch_size)
        self.observation_space: spaces.Dict = spaces.Dict(
            {
                "saliency": spaces.Box(0.0, 1.0, (config.batch_size, self._side, self._side), np.float32),
                "logits": spaces.Box(-LOGIT_LIMIT, LOGIT_LIMIT, (config.batch_size, splits.num_classes), np.float32),
            }
        )

    @property
    def training_over(self) -> bool:
        """True once the classifier's updates are used up, or it has diverged."""
        return self._diverged or self.trainer.updates_done == self.trainer.config.updates

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start the next epoch, or a new classifier; see the class. `options` is not used."""
        super().reset(seed=seed)
        if seed is not None or not self._started or self.training_over:
            self.trainer.reset(int(self.np_random.integers(2**31)) if seed is None else seed)
            self._started, self._diverged = True, False
            self._accuracy = EvalStats.at_chance(self.trainer.num_classes).accuracy
        self._left = min(self.epoch_updates, self.trainer.config.updates - self.trainer.updates_done)
        _, observation = self._observe()
        return observation, {"classifier_seed": self.trainer.seed, "updates_done": self.trainer.updates_done}

    def step(self, action: NDArray[np.int64] | Sequence[int]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Train one batch, mixed with the thresholds that `action` names; see the class."""
        if not self._left:
            raise RuntimeError("there is no episode to step: call reset() first, also after the end of an episode")
        given = np.asarray(action)
        # Torch indexes by int64: of smaller types it refuses most, and takes uint8 for a mask.
        levels = given.astype(np.int64) if given.dtype.kind in "iu" else None
        if levels is None or not self.action_space.contains(levels):
            raise ValueError(
                f"an action must be {self.trainer.config.batch_size} whole numbers from 0 to {len(THRESHOLDS) - 1}, "
                f"got {np.array2string(given, threshold=10)}"
            )
        grid, clean = self.trainer.next_clean().grid, self._saliency
        mixed = self.trainer.train_mixed(self._levels[torch.from_numpy(levels)], lam=self._lam)
        similarity = cosine(clean, self._pooled(mixed.gradient, grid))
        # One copy from the device for all that this step needs.
        (likeness, loss), observation = self._observe(torch.stack((similarity, mixed.loss)))
        self._left -= 1
        self._diverged = not math.isfinite(loss)
        if self._diverged:
            self._left = 0
        if self.training_over:
            # The last observation, of a batch that is never trained on, started the readers of streamed images again.
            self.trainer.batches.end_readers()
        reward = self._reward(likeness)
        truncated = not self._left and not self._diverged
        info = {
            "loss": loss,
            "updates_done": self.trainer.updates_done,
            "diverged": self._diverged,
            "training_over": self.training_over,
        }
        return observation, reward, self._diverged, truncated, info

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture of the last mixed images with their targets, `[H, W, 3]`; white before the first."""
        if self.render_mode != "rgb_array":
            return None
        if self.trainer.last_mixed is None:
            return blank_picture()
        images, targets = self.trainer.last_mixed
        data = self.trainer.data
        return mixed_picture(images, targets, class_names=data.class_names, mean=data.mean, std=data.std)

    def close(self) -> None:
        """End the processes that read streamed images; a new epoch starts them again."""
        self.trainer.batches.end_readers()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the classifier's training, including the batch that was observed."""
        return {
            "trainer": self.trainer.state_dict(),
            "left": self._left,
            "diverged": self._diverged,
            "accuracy": self._accuracy,
        }

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Resume from `state_dict` of an environment with the same arguments; return its last observation."""
        self.trainer.load_state_dict(state["trainer"])
        self._started = True
        self._left, self._diverged, self._accuracy = state["left"], state["diverged"], state["accuracy"]
        _, observation = self._observe()
        return observation

    def _reward(self, likeness: float) -> float:
        if self.reward == "saliency":
            return likeness if math.isfinite(likeness) else 0.0
        if self._left:
            return 0.0
        accuracy = EvalStats.at_chance(self.trainer.num_classes).accuracy
        if not self._diverged:
            accuracy = self.trainer.evaluate("validation", limit=self.validation_limit).accuracy
        reward, self._accuracy = accuracy - self._accuracy, accuracy
        return reward

    def _observe(self, *numbers: Tensor) -> tuple[list[float], Observation]:
        """Return `numbers`, `[n]` each, and the observation of the next batch, in one copy from the device."""
        batch = self.trainer.next_clean()
        self._saliency = self._pooled(batch.gradient, batch.grid)
        logits = batch.logits.nan_to_num(nan=0.0).clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
        parts = (summing_to_one(self._saliency).flatten(), logits.flatten(), *numbers)
        saliency, flat, *rest = np.split(torch.cat(parts).cpu().numpy(), np.cumsum([len(part) for part in parts[:2]]))
        observation = {"saliency": saliency.reshape(self._saliency.shape), "logits": flat.reshape(logits.shape)}
        return rest[0].tolist(), observation

    def _pooled(self, gradient: Tensor, grid: int) -> Tensor:
        """Return a gradient's saliency on the agent's patches, `[B, side, side]`, for a batch mixed on `grid`."""
        if self.grid == "published":
            return pooled_saliency(gradient, PUBLISHED_SIDE)
        repeats = self._side // grid
        return pooled_saliency(gradient, grid).repeat_interleave(repeats, 1).repeat_interleave(repeats, 2)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Return the cosine similarity of two flattened tensors, 0-d; 0 where one of them is 0.

    Args:
        one: tensor of any shape; its values may be very small, as gradients are late in a training.
        other: tensor with as many values.
    """
    # Scaled first: the squares of small values would underflow in float32.
    tiny = torch.finfo(torch.float32).tiny
    one, other = (values.flatten() / values.abs().max().clamp(min=tiny) for values in (one, other))
    return one @ other / (one.norm() * other.norm()).clamp(min=tiny)
