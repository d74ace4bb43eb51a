"""Accuracy by class, which the accuracy over all images hides where classes are unequal."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ClassStats:
    """Performance of a network by class.

    Attributes:
        images: number of images of each class.
        accuracy: share of each class's images that are recognised, in [0, 1]; None for a class without an image.
        balanced_accuracy: mean of the accuracies.
        macro_f1: mean over the classes of the harmonic mean of accuracy and precision, the share of right answers among
            those that name the class; over classes with an image or an answer.
    """

    images: tuple[int, ...]
    accuracy: tuple[float | None, ...]
    balanced_accuracy: float
    macro_f1: float

    @classmethod
    def from_confusion(cls, confusion: Tensor) -> "ClassStats":
        """Return the measures of a confusion matrix `[K, K]`: numbers of images by true class (row) and answer."""
        counts = confusion.double().cpu()
        hits, images, answers = counts.diagonal(), counts.sum(dim=1), counts.sum(dim=0)
        there, seen = images > 0, images + answers > 0
        accuracy = hits / images
        f1 = 2 * hits / (images + answers)
        return cls(
            tuple(images.long().tolist()),
            tuple(share if number else None for share, number in zip(accuracy.tolist(), images.tolist(), strict=True)),
            float(accuracy[there].mean()),
            float(f1[seen].mean()),
        )
