"""Draw the same images under the mixing methods, with their targets: the picture in the README.

python experiments/studies/methods_picture.py --out docs/methods.png
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import matplotlib
import torch
from matplotlib.figure import Figure

from rlmix.classifier.data import evaluation_chunks
from rlmix.classifier.mixing import MixPolicy, mix_batch, one_hot
from rlmix.classifier.mixing.picture import mixed_picture
from rlmix.classifier.mixing.saliency import input_gradient
from rlmix.classifier.mixing.targets import soft_cross_entropy
from rlmix.classifier.training.config import TrainConfig
from rlmix.classifier.training.trainer import Trainer
from rlmix.experiments.runs.command import command
from rlmix.experiments.runs.options import UNPREFIXED, DataConfig

IMAGES = 8
# Without Manifold Mixup, which mixes hidden states, and without variants that look like another method.
DRAWN = ("clean", "mixup", "cutmix", "average", "rmix", "saliencymix", "puzzlemix", "fmix", "resizemix")


@dataclass(frozen=True)
class DrawConfig:
    """Draw the same images under the mixing methods, with their targets."""

    data: Annotated[DataConfig, UNPREFIXED] = field(default_factory=lambda: DataConfig(train_size=2000))
    train: Annotated[TrainConfig, UNPREFIXED] = field(default_factory=lambda: TrainConfig(updates=200, device="cpu"))
    seed: int = 1501
    """RNG seed for the images, the network and the mixing draws."""
    out: str = "docs/methods.png"
    """File of the picture, PNG."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    with command("studies/methods_picture", arguments) as call:
        config = call.parse(DrawConfig, __doc__)
        draw(config, Trainer(config.train, config.data.draw(config.seed), seed=config.seed))
    print(f"written: {config.out}")


def draw(config: DrawConfig, trainer: Trainer) -> None:
    """Train the network, mix the first development images with each method, and save the picture."""
    trainer.train(MixPolicy({"clean": 1.0}), config.train.updates)
    data, model, classes = trainer.data, trainer.model.train(), trainer.num_classes
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    pixels, labels = next(
        evaluation_chunks(data.development, count=IMAGES, batch_size=IMAGES, device=trainer.device, workers=0)
    )
    images = (pixels / 255 - mean[:, None, None]) / std[:, None, None]
    targets = one_hot(labels, classes)

    def gradient(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return input_gradient(lambda leaf: soft_cross_entropy(model(leaf)[:, :classes], labels).mean(), inputs, model)

    figure = Figure(figsize=(10.5, 1.72 * len(DRAWN)), layout="constrained")
    for panel, method in zip(figure.subplots(len(DRAWN), 1), DRAWN, strict=True):
        mixed = mix_batch(
            images,
            targets,
            MixPolicy({method: 1.0}),
            method=method,
            generator=torch.Generator().manual_seed(config.seed),
            gradient=gradient,
            mean=mean,
            std=std,
        )
        panel.imshow(mixed_picture(*mixed, class_names=data.class_names, mean=data.mean, std=data.std))
        panel.set_title(method, loc="left", fontsize=11, fontweight="bold")
        panel.axis("off")
    Path(config.out).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"savefig.facecolor": "white"}):
        figure.savefig(config.out, dpi=100)


if __name__ == "__main__":
    main()
