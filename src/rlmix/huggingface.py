"""RL-Mix in Hugging Face's Trainer, whose image models refuse soft labels: the loss is computed here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from rlmix.agent.own_loop import RLMix
from rlmix.classifier.errors import InputError
from rlmix.classifier.files import load_state, save_state

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
        self.add_callback(_SaveMixer(mix))

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
        network = _Logits(self.accelerator.unwrap_model(model), self._images)
        images, targets = self.mix(rest.pop(self._images), rest.pop(self._labels), network)
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
        """Train, from a checkpoint with its mixer if there is one."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(str(self.args.output_dir))
        if folder:
            self.mix.load_state_dict(load_state(Path(str(folder)) / STATE))
        return super().train(folder or None, *arguments, **options)


class _Logits(nn.Module):
    """A model whose output are the logits alone."""

    def __init__(self, model: nn.Module, images: str) -> None:
        super().__init__()
        self.model, self._images = model, images

    def forward(self, images: Tensor) -> Tensor:
        return self.model(**{self._images: images}).logits


class _SaveMixer(TrainerCallback):
    """Writes the mixer's state beside every checkpoint."""

    def __init__(self, mix: RLMix) -> None:
        self._mix = mix

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            save_state(folder / STATE, self._mix.state_dict())
