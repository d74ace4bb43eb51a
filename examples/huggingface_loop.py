"""RL-Mix in Hugging Face's Trainer: `RLMixTrainer` in its place.

python examples/huggingface_loop.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import digits
import torch
from torch import Tensor
from transformers import EvalPrediction, ResNetConfig, ResNetForImageClassification, TrainerCallback, TrainingArguments

from rlmix import RLMix
from rlmix.huggingface import RLMixTrainer


def network() -> ResNetForImageClassification:
    """Return a small network with new weights."""
    config = ResNetConfig(
        num_channels=1, embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=10
    )
    return ResNetForImageClassification(config)


def collate(examples: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """Return a batch under the names that the model has for it."""
    images, labels = zip(*examples, strict=True)
    return {"pixel_values": torch.stack(images), "labels": torch.stack(labels)}


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Return the share of right answers."""
    return {"accuracy": float((prediction.predictions.argmax(1) == prediction.label_ids).mean())}


class StopAfter(TrainerCallback):
    """Stops after an epoch, as if interrupted."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop if this is the epoch."""
        control.should_training_stop = round(state.epoch) >= self._epoch


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the example."""
    options = digits.options(__doc__, "huggingface_loop", arguments)
    dataset, held_out = digits.load()
    updates = options.epochs * -(-len(dataset) // 64)
    mix = RLMix(options.policy, num_classes=10, total_updates=updates, train_size=len(dataset))
    torch.manual_seed(0)
    trainer = RLMixTrainer(
        network(),
        TrainingArguments(
            output_dir=str(options.out),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=64,
            per_device_eval_batch_size=256,
            learning_rate=0.003,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="epoch",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        ),
        mix=mix,
        data_collator=collate,
        train_dataset=dataset,
        eval_dataset=held_out,
        compute_metrics=accuracy,
        callbacks=[StopAfter(options.last)],
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(options.out))
    trainer.save_state()
    print(*mix.choices, sep="\n")


if __name__ == "__main__":
    main()
