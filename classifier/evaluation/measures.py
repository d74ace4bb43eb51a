"""What is measured of a trained network beyond its accuracy, by name: for one run, and for comparisons."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rlmix.classifier.data import ImageFiles, Images, ImageSet, evaluation_chunks
from rlmix.classifier.errors import InputError
from rlmix.classifier.evaluation import (
    BoxedImages,
    PixelNetwork,
    Predictions,
    accuracy,
    attacked_accuracy,
    calibration,
    class_distances,
    corrupted_accuracy,
    load_boxed_folder,
    localise,
    on_canvas,
    predict,
    trained_network,
)
from rlmix.classifier.evaluation.attacks import EPSILON, PGD_STEP, PGD_STEPS
from rlmix.classifier.evaluation.corruptions import CORRUPTIONS
from rlmix.classifier.training.trainer import Trainer


class NotMeasurable(InputError):
    """A measure that cannot be taken of this network or these images; the message says why."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network and the images that it is measured on.

    Attributes:
        network: takes pixels.
        part: a split; its first `count` images are used.
        count: how many of them.
        class_names: K of them.
        device: where the network is.
        seed: of PGD's random start, noise, and places of occlusion and of items.
        batch_size: images at a time.
        boxes: folder of images with boxes in the layout of CUB-200-2011; none = items on larger canvases.
        readers: processes that read images from files; 0 reads in this one.
    """

    network: PixelNetwork
    part: Images
    count: int
    class_names: tuple[str, ...]
    device: torch.device
    seed: int = 0
    batch_size: int = 500
    boxes: str | None = None
    readers: int = 0

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The images `[B, C, H, W]`, uint8, and their labels `[B]`, on the device."""
        return evaluation_chunks(
            self.part, count=self.count, batch_size=self.batch_size, device=self.device, workers=self.readers
        )

    @functools.cached_property
    def predictions(self) -> Predictions:
        """What the network makes of the images."""
        return predict(self.network, self.chunks())


def subject_of(trainer: Trainer, split: str, *, count: int | None = None, seed: int = 0) -> Subject:
    """The network that a Trainer has, and images of a split.

    Args:
        trainer: where its training stands.
        split: name of the split.
        count: how many images, from its start; none = all.
        seed: of what is measured.
    """
    data = trainer.data
    part = getattr(data, split)
    network = trained_network(
        trainer.network_state(),
        trainer.config.model,
        num_classes=data.num_classes,
        image_shape=part.image_shape,
        mean=data.mean,
        std=data.std,
    )
    network.to(trainer.device).to(memory_format=torch.channels_last)
    return Subject(network, part, min(count or len(part), len(part)), data.class_names, trainer.device, seed=seed)


def measure_accuracy(subject: Subject) -> dict[str, Any]:
    """Top-1, top-5, expected calibration error and reliability diagram."""
    seen = subject.predictions
    reliability = calibration(seen.logits, seen.labels)
    return {**asdict(accuracy(seen.logits, seen.labels)), "calibration": asdict(reliability)}


def measure_attacks(subject: Subject) -> dict[str, Any]:
    """Accuracy under FGSM and PGD."""
    left = attacked_accuracy(subject.network, subject.chunks(), seed=subject.seed)
    setting = {"norm": "Linf", "epsilon": EPSILON, "pgd_step": PGD_STEP, "pgd_steps": PGD_STEPS}
    return {"accuracy": left, "setting": setting}


def measure_corruptions(subject: Subject) -> dict[str, Any]:
    """Accuracy under each corruption, from the weakest strength to the strongest, and its mean over all."""
    left = corrupted_accuracy(subject.network, subject.chunks(), seed=subject.seed)
    values = [value for row in left.values() for value in row]
    strengths = {name: list(levels) for name, (_, levels) in CORRUPTIONS.items()}
    return {"accuracy": left, "mean_accuracy": sum(values) / len(values), "strengths": strengths}


def measure_embeddings(subject: Subject) -> dict[str, Any]:
    """Distances within and between classes."""
    seen = subject.predictions
    try:
        return asdict(class_distances(seen.embeddings, seen.labels))
    except ValueError as error:
        raise NotMeasurable(str(error)) from error


def measure_localisation(subject: Subject) -> dict[str, Any]:
    """Localisation by class activation maps, on canvases or on a folder with boxes."""
    channels, height, width = subject.part.image_shape
    if subject.boxes is not None:
        if channels != 3 or height != width:
            raise NotMeasurable(
                f"--boxes holds squares in colour, and the network takes {channels} x {height} x {width}"
            )
        # As held-out images are seen: what is streamed is cut out of a somewhat larger square.
        shorter = round(height * 256 / 224) if isinstance(subject.part, ImageFiles) else height
        boxed = load_boxed_folder(subject.boxes, subject.class_names, size=height, shorter=shorter)
        batches = iter(boxed.split(subject.batch_size))
    else:
        batches = _canvases(subject)
    try:
        found = localise(subject.network, batches)
    except ValueError as error:
        raise NotMeasurable(str(error)) from error
    return {**asdict(found), "on": subject.boxes or "items on canvases with fragments of others"}


def _canvases(subject: Subject) -> Iterator[BoxedImages]:
    """The images of each chunk on canvases, among fragments of the first ones."""
    pool: ImageSet | None = None
    generator = torch.Generator().manual_seed(subject.seed)
    for images, labels in subject.chunks():
        items = ImageSet(images.cpu(), labels.cpu())
        pool = items if pool is None else pool
        yield on_canvas(items, pool, generator=generator)


MEASURES: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "accuracy": measure_accuracy,
    "attacks": measure_attacks,
    "corruptions": measure_corruptions,
    "embeddings": measure_embeddings,
    "localisation": measure_localisation,
}

# Of each measure, the single numbers that a table of several networks shows: heading, and where they are found. All
# are shares that are shown in %, but for the ratio of distances.
FIGURES: dict[str, dict[str, Callable[[Mapping[str, Any]], float | None]]] = {
    "accuracy": {"calibration error": lambda seen: seen["calibration"]["error"]},
    "attacks": {
        "FGSM": lambda seen: seen["accuracy"]["fgsm"],
        "PGD": lambda seen: seen["accuracy"]["pgd"],
    },
    "corruptions": {"corruptions": lambda seen: seen["mean_accuracy"]},
    "embeddings": {"within / between": lambda seen: seen["ratio"]},
    "localisation": {"localised": lambda seen: seen["known_class"]},
}
