"""RL-Mix in Hugging Face's Trainer, whose image models refuse soft labels: the loss is computed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from rlmix.agent.own_loop import RLMix
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import DamagedFileError, load_state, save_state

STATE = "rlmix.safetensors"  # in each checkpoint's folder


class RLMixTrainer(Trainer):
    """`Trainer` that mixes every training batch and asks the agent.

    It resumes the mixer with `train(resume_from_checkpoint=...)`, logs what holds beside the losses, and shows the
    agent every evaluation whose `compute_metrics` gives `accuracy`.

    Args:
        mix: the mixer; its optimiser is set to the Trainer's.
        images: name of the images among the model's inputs.
        labels: name of the labels among them.
        arguments: as for `Trainer`.
    """

    def __init__(
        self, *arguments: Any, mix: RLMix, images: str = "pixel_values", labels: str = "labels", **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        if not isinstance(mix, RLMix):
            raise InputError(f"mix must be an RLMix, got {mix!r:.80}; make one: RLMix('cutmix', num_classes=10)")
        self.mix, self._images, self._labels = mix, images, labels
        self.model_accepts_loss_kwargs = False  # accumulated losses are averaged by Trainer itself

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a mixed batch in training, the model's own in evaluation."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if missing := [name for name in (self._images, self._labels) if name not in inputs]:
            raise InputError(
                f"RLMixTrainer looks for {' and '.join(missing)} among the model's inputs, got {', '.join(inputs)}; "
                "name them: RLMixTrainer(..., images='pixel_values', labels='labels'), and keep them with "
                "TrainingArguments(remove_unused_columns=False) or a data_collator"
            )
        self.mix.optimizer = self.optimizer
        rest = dict(inputs)
        images, labels = rest.pop(self._images), rest.pop(self._labels)
        others = [name for name, value in rest.items() if isinstance(value, Tensor)]
        if others and self.mix.may_return_earlier_batches:
            raise InputError(
                f"the inputs {', '.join(others)} belong to the images that came, and R-Mix may mix those of an earlier "
                "batch; make RLMix(..., saliency='exact'), or leave these inputs out"
            )
        network = _Logits(self.accelerator.unwrap_model(model), self._images)
        images, targets = self.mix(images, labels, network)
        outputs = model(**{self._images: images}, **rest)
        loss = self.mix.loss(outputs.logits, targets)
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *arguments: Any, **options: Any) -> dict[str, float]:
        """Evaluate, and tell the agent."""
        found = super().evaluate(*arguments, **options)
        if "eval_accuracy" in found:
            self.mix.observe(val_accuracy=found["eval_accuracy"], val_loss=found.get("eval_loss"))
        return found

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """Log what holds now beside everything else."""
        super().log({**logs, **self.mix.scalars()}, *arguments, **options)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any) -> Any:
        """Train, from a checkpoint and its mixer where one is given.

        Raises:
            DamagedFileError: the checkpoint has no mixer, or a damaged one.
        """
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(str(self.args.output_dir))  # without one, Trainer raises
        if folder:
            try:
                self.mix.load_state_dict(load_state(Path(folder) / STATE))
            except DamagedFileError as error:
                raise DamagedFileError(
                    f"{error}; resume from another checkpoint that RLMixTrainer has saved, "
                    "train(resume_from_checkpoint='.../checkpoint-N'), and delete this one"
                ) from None
        return super().train(resume_from_checkpoint, *arguments, **options)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; in a checkpoint the mixer's state comes first, so that no whole one is without it."""
        if output_dir is not None and _internal_call and self.args.should_save:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            save_state(Path(output_dir) / STATE, self.mix.state_dict())
        super().save_model(output_dir, _internal_call)


class _Logits(nn.Module):
    """A model whose output are the logits alone."""

    def __init__(self, model: nn.Module, images: str) -> None:
        super().__init__()
        self.model, self._images = model, images

    def forward(self, images: Tensor) -> Tensor:
        return self.model(**{self._images: images}).logits
