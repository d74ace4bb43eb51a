"""What RLMixTrainer says of inputs and of a mixer that it cannot use."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlmix import RLMix
from rlmix.classifier.errors import InputError

transformers = pytest.importorskip("transformers")


def train(folder: Path, names: tuple[str, str], mix: Any, **named: str) -> None:
    """Train on two batches, whose images and labels have these names."""
    from rlmix.huggingface import RLMixTrainer

    def collate(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        images, labels = zip(*rows, strict=True)
        return dict(zip(names, (torch.stack(images), torch.tensor(labels)), strict=True))

    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=2, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    RLMixTrainer(
        transformers.ResNetForImageClassification(config), arguments, mix=mix, data_collator=collate,
        train_dataset=[(torch.randn(1, 8, 8), number % 3) for number in range(8)], **named,
    ).train()  # fmt: skip


def test_inputs_of_other_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looks for labels among the model's inputs, got pixel_values, label;"):
        train(tmp_path, ("pixel_values", "label"), RLMix("mixup", num_classes=3))
    mix = RLMix("mixup", num_classes=3)
    train(tmp_path, ("pixel_values", "label"), mix, labels="label")
    assert mix.policy is not None


def test_something_else_than_a_mixer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mix must be an RLMix, got 'mixup'"):
        train(tmp_path, ("pixel_values", "labels"), "mixup")
