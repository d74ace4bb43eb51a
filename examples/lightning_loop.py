"""RL-Mix in Lightning: one callback, `RLMixCallback`.

python examples/lightning_loop.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import digits
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from rlmix import RLMix
from rlmix.lightning import RLMixCallback


class Classifier(LightningModule):
    """A small classifier, as one writes it without RL-Mix."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return logits."""
        return self.layers(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss; `cross_entropy` takes targets `[B, K]` as well as labels."""
        images, targets = batch
        return cross_entropy(self(images), targets)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log accuracy and loss."""
        images, labels = batch
        logits = self(images)
        self.log("val_loss", cross_entropy(logits, labels))
        self.log("val_acc", (logits.argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    options = digits.options(__doc__, "lightning_loop", arguments)
    dataset, held_out = digits.load()
    loader = DataLoader(dataset, batch_size=64, sampler=digits.EpochOrder(len(dataset)))
    updates = options.epochs * len(loader)
    mix = RLMix(options.policy, num_classes=10, total_updates=updates, train_size=len(dataset))
    seed_everything(0, verbose=False)
    trainer = Trainer(
        max_epochs=options.last,
        callbacks=[
            RLMixCallback(mix, accuracy="val_acc", loss="val_loss"),
            ModelCheckpoint(options.out, save_last=True),
        ],
        logger=CSVLogger(str(options.out), name=""),
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    checkpoint = str(options.out / "last.ckpt") if options.resume else None
    trainer.fit(Classifier(), loader, DataLoader(held_out, batch_size=256), ckpt_path=checkpoint)
    print(*mix.choices, sep="\n")


if __name__ == "__main__":
    main()
