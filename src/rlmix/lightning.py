"""RL-Mix in Lightning: a callback that mixes the batches of training and asks the agent."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlmix.agent.any_agent import AnyAgent
from rlmix.agent.own_loop import RLMix
from rlmix.classifier.errors import InputError

HOOK = "on_after_batch_transfer"


class RLMixCallback(Callback):
    """Mixes every training batch on its device, before `training_step` sees it.

    Batches are pairs of images and labels. The step's loss has to take targets `[B, K]`, as `cross_entropy` does. A
    callback cannot replace a batch: the `on_after_batch_transfer` that Lightning calls, the module's or the data
    module's, is wrapped while the module is trained, and given back at the end, after an error too.

    The agent sees the gradient of the step's loss as it was before a scaler and `accumulate_grad_batches`; a step that
    multiplies its loss itself, as one with manual optimisation may, is not seen through.

    Args:
        mix: the mixer; its optimiser is set to the first one of the training.
        accuracy: name under which the module logs its validation accuracy; optional.
        loss: name under which it logs its validation loss; optional.
        network: name of the submodule whose output are the logits; optional, defaults to the module itself.
    """

    def __init__(
        self, mix: RLMix, *, accuracy: str | None = None, loss: str | None = None, network: str | None = None
    ) -> None:
        if not isinstance(mix, RLMix):
            raise InputError(f"mix must be an RLMix, got {mix!r:.80}; make one: RLMix('cutmix', num_classes=10)")
        self.mix = mix
        self._accuracy, self._loss, self._network = accuracy, loss, network
        self._wrapped: LightningModule | LightningDataModule | None = None
        self._handle: RemovableHandle | None = None
        self._called = False  # whether the wrapped hook was, in a batch of training
        self._targets: Tensor | None = None
        self._warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wrap the hook that Lightning calls."""
        network = self._network_of(pl_module)
        self._compare_lengths(trainer)
        self._wrapped, self._called = _owner_of_hook(trainer, pl_module), False
        before = getattr(self._wrapped, HOOK)

        def mixed(batch: Any, dataloader_idx: int) -> Any:
            batch = before(batch, dataloader_idx)
            if not trainer.training:
                return batch
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise InputError(
                    f"RLMixCallback needs batches (images, labels), got {type(batch).__name__}; return a pair from "
                    "the collate_fn, or call the mixer in training_step"
                )
            self._targets = None  # a second pass of the mixer's own is not to be noted
            images, self._targets = self.mix(batch[0], batch[1], network)
            self._called = True
            return images, self._targets

        def note(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
            targets, self._targets = self._targets, None  # the first output of a batch
            if trainer.training and targets is not None:
                self.mix.note(logits, targets, scale=_scale_of_loss(trainer))

        self.mix.optimizer = trainer.optimizers[0]
        self._wrapped.__dict__[HOOK] = mixed
        self._handle = network.register_forward_hook(note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Log what holds now.

        Raises:
            InputError: nothing was mixed.
        """
        if not self._called:
            raise InputError(
                f"RLMixCallback: no batch was mixed, since the trainer did not call {HOOK}; leave the callback out, "
                "and call the mixer in training_step"
            )
        if self._targets is not None and not self._warned and isinstance(self.mix.source, AnyAgent):
            self._warned = True
            warnings.warn(
                "RLMixCallback: training_step did not call the module itself, so the agent sees no training losses; "
                "name the submodule that gives the logits, RLMixCallback(mix, network='net')",
                stacklevel=2,
            )
        pl_module.log_dict(self.mix.scalars())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the agent how the network does."""
        found = trainer.callback_metrics
        if self._accuracy is None:
            return
        if missing := [name for name in (self._accuracy, self._loss) if name is not None and name not in found]:
            raise InputError(
                f"RLMixCallback: validation logged {', '.join(sorted(found)) or 'nothing'}, not {', '.join(missing)}; "
                "log it in validation_step, or name what is logged"
            )
        if trainer.sanity_checking:
            return
        loss = None if self._loss is None else float(found[self._loss])
        self.mix.observe(val_accuracy=float(found[self._accuracy]), val_loss=loss)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the hook back."""
        self._unwrap()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the hook back."""
        self._unwrap()

    def state_dict(self) -> dict[str, Any]:
        """Return the state for Lightning's checkpoint."""
        return self.mix.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from Lightning's checkpoint."""
        self.mix.load_state_dict(state_dict)

    def _network_of(self, pl_module: LightningModule) -> nn.Module:
        """Return the module whose output are the logits.

        Raises:
            InputError: there is no submodule of the name.
        """
        if self._network is None:
            return pl_module
        try:
            return pl_module.get_submodule(self._network)
        except AttributeError:
            names = ", ".join(name for name, _ in pl_module.named_children()) or "none"
            raise InputError(
                f"RLMixCallback: network={self._network!r} is no submodule of {type(pl_module).__name__}, which has: "
                f"{names}"
            ) from None

    def _compare_lengths(self, trainer: Trainer) -> None:
        """Warn where the trainer is to make another number of batches than the mixer was told."""
        told, batches, epochs = self.mix.total_updates, trainer.num_training_batches, trainer.max_epochs
        if told is None or epochs is None or epochs < 1 or math.isinf(batches):
            return
        planned = int(batches) * epochs
        if trainer.max_steps > 0:
            planned = min(planned, trainer.max_steps * trainer.accumulate_grad_batches)
        if planned != told and not getattr(trainer, "fast_dev_run", False):
            warnings.warn(
                f"RLMixCallback: the trainer makes {planned:,} batches on each device, RLMix was made with "
                f"total_updates={told:,}; pass total_updates={planned}, or choices come at the wrong time",
                stacklevel=2,
            )

    def _unwrap(self) -> None:
        if self._wrapped is not None:
            self._wrapped.__dict__.pop(HOOK, None)
        if self._handle is not None:
            self._handle.remove()
        self._wrapped = self._handle = None


def _owner_of_hook(trainer: Trainer, pl_module: LightningModule) -> LightningModule | LightningDataModule:
    """Return the one whose hook Lightning calls: a data module with its own, or else the module.

    Where neither has its own it is the data module: Lightning would warn of one in the module beside it.
    """
    data = getattr(trainer, "datamodule", None)
    return data if data is not None and (is_overridden(HOOK, data) or not is_overridden(HOOK, pl_module)) else pl_module


def _scale_of_loss(trainer: Trainer) -> Tensor:
    """Return by what the trainer multiplies the loss of a step before its backward pass."""
    scale = torch.ones((), device=trainer.strategy.root_device) / trainer.accumulate_grad_batches
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scale if scaler is None else scaler.scale(scale)
