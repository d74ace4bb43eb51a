"""RMixTrainer: a Trainer whose caller chooses each image's R-Mix threshold, one update at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.data import Splits
from rlmix.classifier.mixing.method import MixInput
from rlmix.classifier.mixing.policy import LamDistribution, MixPolicy
from rlmix.classifier.mixing.rmix import rmix_grids
from rlmix.classifier.mixing.targets import one_hot
from rlmix.classifier.training.batches import Batch
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer


@dataclass(frozen=True)
class CleanBatch:
    """The next update's images before they are mixed, as the current network sees them.

    Attributes:
        images: `[B, C, H, W]` float32, normalised.
        gradient: `[B, C, H, W]`, of the mean cross-entropy at the images, with batch statistics as R-Mix takes it.
        logits: `[B, K]` float32, of the same pass.
        grid: patches per side of the grid on which they will be mixed.
    """

    images: Tensor
    gradient: Tensor
    logits: Tensor
    grid: int


@dataclass(frozen=True)
class MixedUpdate:
    """Results of an update under given thresholds, still on the device.

    Attributes:
        gradient: `[B, C, H, W]`, of the update's own loss at the mixed images.
        loss: 0-d, mean cross-entropy against the mixed targets, in nats.
    """

    gradient: Tensor
    loss: Tensor


class RMixTrainer(Trainer):
    """Trains one classifier by exact R-Mix with thresholds from outside: `next_clean`, then `train_mixed`.

    Args:
        config: setting of the training; its `saliency` is not read by `train_mixed`.
        data: the images; copied to the device.
        seed: RNG seed for weights, data order and every other draw.

    Raises:
        ValueError: the network does not fit the images, or the setting is out of range.
    """

    def __init__(self, config: TrainConfig, data: Splits, *, seed: int = 0) -> None:
        self._clean: Batch | None = None
        super().__init__(config, data, seed=seed)

    def reset(
        self, seed: int, *, data: Splits | None = None, updates: int | None = None, lr: float | None = None
    ) -> None:
        """Start a new training; see `Trainer.reset`."""
        super().reset(seed, data=data, updates=updates, lr=lr)
        self._clean = None

    def next_clean(self) -> CleanBatch:
        """Look at the batch that `train_mixed` will mix, by an exact pass; the same until it has been trained on.

        Raises:
            ValueError: R-Mix has no grid for images of this size.
        """
        grids = rmix_grids(*self.data.train.image_shape[1:])
        batch = self._looked_at()
        assert batch.gradient is not None and batch.logits is not None
        grid = grids[int(self.batches.draw(self.updates_done).choice * len(grids))]
        return CleanBatch(batch.images, batch.gradient, batch.logits, grid)

    def train_mixed(self, threshold: Tensor, *, lam: LamDistribution) -> MixedUpdate:
        """Make one update of exact R-Mix on the batch of `next_clean`, with given thresholds.

        With the thresholds that the Trainer would draw itself, it is to the last bit an update of
        `train(MixPolicy({"rmix": 1.0}), ...)` with exact saliency.

        Args:
            threshold: `[B]` float32 in [0, 1), each image's saliency quantile.
            lam: distribution of the batch's mixing ratio.

        Raises:
            ValueError: the training is over, or the thresholds are not one for each image.
        """
        if self.updates_done >= self.config.updates:
            raise ValueError(f"the training of {self.config.updates} updates is over; reset it")
        if threshold.shape != (self.config.batch_size,):
            raise ValueError(f"threshold must be [{self.config.batch_size}], got {tuple(threshold.shape)}")
        batch = self._looked_at()
        draw = replace(self.batches.draw(self.updates_done), threshold=threshold.to(self.device))
        targets = one_hot(self.batches.labels(batch), self.num_classes)
        one = torch.ones((), device=self.device)
        self.model.train()
        with self._reproducibly():
            mixed = MixInput(batch.images, targets, batch.gradient)
            images, targets = MixPolicy({"rmix": 1.0}, lam=lam).mix("rmix", mixed, draw)
            self.last_mixed = (images, targets)
            leaf = images.detach().requires_grad_()
            loss, stats, _ = self._training_loss(leaf, targets, one, one)
            loss.backward()
            self._end_update()
        assert leaf.grad is not None
        return MixedUpdate(leaf.grad, stats[0])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from `state_dict`; see `Trainer.load_state_dict`."""
        super().load_state_dict(state)
        clean = state["processes"][self.rank].get("next_clean")
        self._clean = None if clean is None else Batch.from_state(clean, self.device)

    def _end_update(self) -> None:
        super()._end_update()
        self._clean = None  # stale: its gradient is that of the weights before this update

    def _looked_at(self) -> Batch:
        """Return the next batch with its gradient and logits, taken once."""
        if self._clean is None:
            batch = self._fresh_batch()
            with self._reproducibly():
                self._take_gradient(batch, "rmix")
            self._clean = batch
        return self._clean

    def _own_state(self) -> dict[str, Any]:
        return super()._own_state() | {"next_clean": None if self._clean is None else self._clean.state()}
