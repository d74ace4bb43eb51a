"""What RLMixTrainer says of inputs and of a mixer that it cannot use."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlmix import RLMix
from rlmix.classifier.errors import InputError

transformers = pytest.importorskip("transformers")


def trainer(folder: Path, names: Sequence[str], mix: Any, *, saves: str = "no", steps: int = 2, **named: Any) -> Any:
    """Return a trainer for two batches, whose images and labels, and perhaps masks, have these names."""
    from rlmix.huggingface import RLMixTrainer

    def collate(rows: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
        images, labels = zip(*rows, strict=True)
        return dict(zip(names, (torch.stack(images), torch.tensor(labels), torch.ones(len(rows), 1)), strict=False))

    class Masked(transformers.ResNetForImageClassification):  # type: ignore[name-defined,misc]
        def forward(self, mask: Any = None, **inputs: Any) -> Any:
            return super().forward(**inputs)

    config = transformers.ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3
    )
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=steps, per_device_train_batch_size=4, use_cpu=True, report_to="none",
        save_strategy=saves, save_steps=1, disable_tqdm=True,
    )  # fmt: skip
    return RLMixTrainer(
        Masked(config), arguments, mix=mix, data_collator=collate,
        train_dataset=[(torch.randn(1, 8, 8), number % 3) for number in range(8)], **named,
    )  # fmt: skip


NAMES = ("pixel_values", "labels")


def test_inputs_of_other_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="looks for labels among the model's inputs, got pixel_values, label;"):
        trainer(tmp_path, ("pixel_values", "label"), RLMix("mixup", num_classes=3)).train()
    mix = RLMix("mixup", num_classes=3)
    trainer(tmp_path, ("pixel_values", "label"), mix, labels="label").train()
    assert mix.policy is not None


def test_something_else_than_a_mixer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mix must be an RLMix, got 'mixup'"):
        trainer(tmp_path, NAMES, "mixup")


def test_resuming_without_a_checkpoint_raises_as_trainer_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No valid checkpoint found"):
        trainer(tmp_path, NAMES, RLMix("mixup", num_classes=3)).train(resume_from_checkpoint=True)
    mix = RLMix("mixup", num_classes=3)
    trainer(tmp_path, NAMES, mix).train(resume_from_checkpoint=False)
    assert mix.state_dict()["done"] == 2


def test_no_checkpoint_is_whole_without_its_mixer(tmp_path: Path) -> None:
    """It is written before anything else, so that a kill leaves none that only lacks it."""
    made = trainer(tmp_path, NAMES, RLMix("mixup", num_classes=3), saves="steps", steps=1)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    made._save = killed
    with pytest.raises(KeyboardInterrupt):
        made.train()
    assert [path.name for path in (tmp_path / "checkpoint-1").iterdir()] == ["rlmix.safetensors"]
    trainer(tmp_path, NAMES, RLMix("mixup", num_classes=3), saves="steps", steps=1).train()
    mix = RLMix("mixup", num_classes=3)
    trainer(tmp_path, NAMES, mix).train(resume_from_checkpoint=True)
    assert mix.state_dict()["done"] == 2
    (tmp_path / "checkpoint-1/rlmix.safetensors").unlink()
    with pytest.raises(InputError, match=r"checkpoint-1/rlmix.safetensors: .*; resume from another checkpoint"):
        trainer(tmp_path, NAMES, mix).train(resume_from_checkpoint=True)


def test_a_saved_model_has_no_mixer(tmp_path: Path) -> None:
    trainer(tmp_path, NAMES, RLMix("mixup", num_classes=3)).save_model(str(tmp_path / "model"))
    assert not (tmp_path / "model/rlmix.safetensors").exists()


def test_inputs_that_belong_to_other_images_are_refused(tmp_path: Path) -> None:
    """R-Mix with recycled saliency mixes an earlier batch, whose mask is gone."""
    names = (*NAMES, "mask")
    with pytest.raises(InputError, match=r"mask belong to the images that came.*saliency='exact'"):
        trainer(tmp_path, names, RLMix("rmix", num_classes=3)).train()
    for mix in RLMix("rmix", num_classes=3, saliency="exact"), RLMix("mixup", num_classes=3):
        trainer(tmp_path, names, mix).train()
        assert mix.state_dict()["done"] == 2
