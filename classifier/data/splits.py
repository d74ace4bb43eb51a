"""Training, validation, development and test images that never mix, and training sets drawn from them by a seed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from rlmix.classifier.data.dataset import Dataset, Images
from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.image_set import DataError, ImageSet
from rlmix.classifier.data.stratify import (
    IntArray,
    apportion,
    interleave,
    positions_by_class,
    random_stream,
    tail_shares,
)

# Never to be changed or made a setting: one task's validation images would be another's training images, and an agent
# that learns over many tasks would have seen the images that it is evaluated on.
SPLIT_SEED = 20_221_204

MAX_VALIDATION_SIZE = 5_000
MAX_DEVELOPMENT_SIZE = 10_000
MAX_HELD_OUT_SHARE = 0.2  # of the pool, for each of the two
NOISES = ("symmetric", "pair")


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set's images by what they may be used for, with what is needed to train on them.

    `train` is learned from; `validation` steers searches and choices; `development` is what comparisons report; `test`
    is read once, at the very end. The other fields are the `Dataset`'s.
    """

    train: Images
    validation: Images
    development: Images
    test: Images
    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    crop_padding: int

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_names)

    def to(self, device: torch.device | str) -> "Splits":
        """Return the splits with images and labels on `device`; image files and their labels stay on the host."""
        return replace(
            self,
            train=self.train.to(device),
            validation=self.validation.to(device),
            development=self.development.to(device),
            test=self.test.to(device),
        )

    def trained_on_validation(self) -> "Splits":
        """Return splits that train on the validation images too; these must then not be used for selection."""
        train, validation = self.train, self.validation
        if isinstance(train, ImageFiles) and isinstance(validation, ImageFiles):
            labels = torch.cat((train.labels, validation.labels))
            return replace(self, train=replace(train, paths=(*train.paths, *validation.paths), labels=labels))
        assert isinstance(train, ImageSet) and isinstance(validation, ImageSet), "both come from one pool"
        images = torch.cat((train.images, validation.images))
        return replace(self, train=ImageSet(images, torch.cat((train.labels, validation.labels))))

    def only(self, classes: Sequence[int]) -> "Splits":
        """Return splits with the images of these classes alone, which are numbered anew in this order.

        Args:
            classes: at least two different classes, by their number.

        Raises:
            DataError: they are fewer, not different, or not classes of these splits.
        """
        if not 2 <= len(set(classes)) == len(classes) or not set(classes) <= set(range(self.num_classes)):
            raise DataError(
                f"{self.name}: expected 2 or more different classes from 0 to {self.num_classes - 1}, "
                f"got {classes!s:.80}"
            )
        number = torch.full((self.num_classes,), -1)
        number[list(classes)] = torch.arange(len(classes))

        def part(images: Images) -> Images:
            anew = number.to(images.labels.device)[images.labels]
            kept = (anew >= 0).nonzero()[:, 0]
            return replace(images.take(kept.cpu().numpy()), labels=anew[kept])

        return replace(
            self,
            train=part(self.train),
            validation=part(self.validation),
            development=part(self.development),
            test=part(self.test),
            class_names=tuple(self.class_names[label] for label in classes),
        )

    def draw(
        self,
        train_size: int | None,
        *,
        data_seed: int,
        label_noise: float = 0.0,
        noise: str = "symmetric",
        confusions: NDArray[np.float64] | None = None,
        imbalance: float = 1.0,
    ) -> "Splits":
        """Return splits whose training set is a stratified subset of this one's, with some wrong labels.

        The images keep their order. The same seed draws the same on every device. For one seed the
        images do not depend on `label_noise`, and less noise spoils a part of the labels that more noise spoils.
        Unchanged parts are shared, not copied: with all images and no noise these splits themselves are returned.

        Args:
            train_size: number of training images, at least K; None for all.
            data_seed: RNG seed for the choice of images and wrong labels, at least 0.
            label_noise: share of the training images, in [0, 1), whose label is replaced by another class.
            noise: kind of wrong labels. `symmetric`: each of the K - 1 other classes is equally likely; `pair`: the
                next class, or the first one for the last.
            confusions: `[K, K]`, how likely an image of a row's class gets each other label; optional, replaces
                `noise`. Rows need not sum to 1 and the diagonal is not read.
            imbalance: number of images of the first class over that of the last, falling exponentially between them;
                optional, defaults to 1, which keeps each class's share.

        Raises:
            DataError: an argument out of range.
        """
        available = len(self.train)
        if train_size is not None and not self.num_classes <= train_size <= available:
            raise DataError(
                f"{self.name}: expected a train_size from {self.num_classes} (one image of each class) to {available} "
                f"(all training images), got {train_size}; choose one in between"
            )
        if not 0 <= label_noise < 1:
            raise DataError(
                f"{self.name}: expected a label_noise in [0, 1), got {label_noise}; "
                "it is the share of wrong training labels, 0.2 for every fifth"
            )
        if noise not in NOISES:
            raise DataError(f"{self.name}: expected noise to be one of {', '.join(NOISES)}, got {noise!r}; choose one")
        if data_seed < 0:
            raise DataError(f"{self.name}: expected a data_seed of 0 or above, got {data_seed}; choose another")
        if imbalance < 1 or (imbalance > 1 and train_size is None):
            raise DataError(f"{self.name}: expected an imbalance from 1, with a train_size, got {imbalance}")

        random = random_stream(data_seed)
        train = self.train
        if train_size is not None:
            chosen = [
                random.permutation(positions)[:count]
                for positions, count in zip(self._train_by_class, self._counts(train_size, imbalance), strict=True)
            ]
            train = train.take(np.sort(np.concatenate(chosen)))
        wrong = round(label_noise * len(train))
        if wrong:
            train = _with_wrong_labels(train, wrong, self.num_classes, noise, confusions, random)
        return self if train is self.train else replace(self, train=train)

    def _counts(self, train_size: int, imbalance: float) -> IntArray:
        """Return how many images of each class a training set of `train_size` has, `[K]`."""
        there = np.array([len(positions) for positions in self._train_by_class])
        if imbalance == 1:
            return apportion(train_size, there, at_least=1)
        shares = (tail_shares(self.num_classes, imbalance) * 1e6).astype(np.int64)
        counts = apportion(train_size, shares, at_least=1)
        if (counts > there).any():
            short = int(np.argmax(counts - there))
            raise DataError(
                f"{self.name}: expected {counts[short]} training images of {self.class_names[short]} for a train_size "
                f"of {train_size} with imbalance {imbalance:g}, got {there[short]}; lower one of them"
            )
        return counts

    @cached_property
    def _train_by_class(self) -> tuple[IntArray, ...]:
        # Cached: finding each class's images would take most of the time of a draw.
        return positions_by_class(self.train.labels.cpu().numpy(), self.num_classes)


def split(dataset: Dataset, *, validation_size: int | None = None, development_size: int | None = None) -> Splits:
    """Split a data set's pool into training, validation and development images, stratified by class.

    The split depends on nothing but the images and the two sizes. Validation and development hold each class's share to
    within one image; training is what remains. Every prefix of validation and of development is nearly stratified,
    so that a first part of either can stand for the whole. The test set is passed on untouched. Validation images are
    the data set's own where it has some, and then nothing is taken from the pool for them.

    Args:
        dataset: the data set.
        validation_size: number of validation images, at least 1; defaults to all of the data set's own, or to 5,000 of
            the pool, but at most a fifth of it.
        development_size: number of development images; defaults to 10,000, but at most a fifth of the pool.

    A size that is not given is lowered where it would leave a class without a training image: few-shot sets keep at
    least one image of every class to train on.

    Raises:
        DataError: a size out of range, or sizes that leave a class without a training image.
    """
    if (validation_size is not None and validation_size < 1) or (development_size is not None and development_size < 0):
        raise DataError(
            f"{dataset.name}: expected a validation_size of 1 or more and a development_size of 0 or more, "
            f"got {validation_size} and {development_size}; leave them out for the usual sizes"
        )
    random = random_stream(SPLIT_SEED)
    by_class = _shuffled(dataset.pool, dataset.num_classes, random)
    counts = np.array([len(positions) for positions in by_class])
    own = None
    if dataset.validation is not None:
        own = _own_validation(dataset.name, dataset.validation, validation_size, dataset.num_classes)
        validation_size = 0
    for_validation, for_development = _held_out(dataset, counts, validation_size, development_size)
    # Taken from the two ends, so that the size of one does not change the other.
    ends = counts - for_development
    validation = interleave([group[:end] for group, end in zip(by_class, for_validation, strict=True)])
    development = interleave([group[start:] for group, start in zip(by_class, ends, strict=True)])
    train = [group[start:end] for group, start, end in zip(by_class, for_validation, ends, strict=True)]
    return Splits(
        train=dataset.pool.take(np.sort(np.concatenate(train))),
        validation=dataset.pool.take(validation) if own is None else own,
        development=dataset.pool.take(development),
        test=dataset.test,
        name=dataset.name,
        class_names=dataset.class_names,
        mean=dataset.mean,
        std=dataset.std,
        flip=dataset.flip,
        crop_padding=dataset.crop_padding,
    )


def _shuffled(images: Images, num_classes: int, random: np.random.RandomState) -> list[IntArray]:
    return [random.permutation(positions) for positions in positions_by_class(images.labels.cpu().numpy(), num_classes)]


def _own_validation(name: str, images: Images, size: int | None, num_classes: int) -> Images:
    """Return a data set's own validation images, or a stratified part of them, each prefix nearly stratified."""
    if size is not None and size > len(images):
        raise DataError(
            f"{name}: expected a validation_size of at most {len(images)}, the data set's own validation images, got "
            f"{size}; leave it out for all of them"
        )
    by_class = _shuffled(images, num_classes, random_stream(SPLIT_SEED))
    counts = np.array([len(positions) for positions in by_class])
    taken = apportion(len(images) if size is None else size, counts)
    return images.take(interleave([group[:end] for group, end in zip(by_class, taken, strict=True)]))


def _held_out(
    dataset: Dataset, counts: IntArray, validation_size: int | None, development_size: int | None
) -> tuple[IntArray, IntArray]:
    """Return how many of each class's images, `[K]` each, are for validation and for development.

    Raises:
        DataError: a class is left without a training image.
    """
    pool_size = int(counts.sum())
    fixed = validation_size is not None, development_size is not None
    if validation_size is None:
        validation_size = max(1, min(MAX_VALIDATION_SIZE, int(MAX_HELD_OUT_SHARE * pool_size)))
    if development_size is None:
        development_size = min(MAX_DEVELOPMENT_SIZE, int(MAX_HELD_OUT_SHARE * pool_size))
    asked_for = fixed[0] * validation_size + fixed[1] * development_size
    if asked_for + dataset.num_classes > pool_size:
        raise DataError(
            f"{dataset.name}: expected validation_size + development_size of at most {pool_size - dataset.num_classes} "
            f"(a pool of {pool_size} less one training image of each class), "
            f"got {validation_size} + {development_size}; lower one of them"
        )
    for_validation = apportion(validation_size, counts)
    for_development = apportion(development_size, counts)
    if (for_validation + for_development >= counts).any():
        if not fixed[0]:
            for_validation = np.minimum(for_validation, counts - 1)
        if not fixed[1]:
            room = np.maximum(counts - 1 - for_validation, 0)
            for_development = apportion(min(development_size, int(room.sum())), room) if room.any() else 0 * room
        elif not fixed[0]:
            for_validation = np.minimum(for_validation, np.maximum(counts - 1 - for_development, 0))
    if validation_size and not for_validation.any():
        raise DataError(
            f"{dataset.name}: expected a class with 2 or more images in the pool, to take validation images from, got "
            f"{pool_size} images of {dataset.num_classes} classes; bring more, or validation images of their own"
        )
    if (for_validation + for_development >= counts).any():
        short = int(np.argmax(for_validation + for_development - counts))
        raise DataError(
            f"{dataset.name}: expected a training image of every class, got none of {dataset.class_names[short]} "
            f"({counts[short]} in the pool) with validation_size {validation_size} and development_size "
            f"{development_size}; lower one of them, or bring more images of this class"
        )
    return for_validation, for_development


def _with_wrong_labels(
    images: Images,
    wrong: int,
    num_classes: int,
    noise: str,
    confusions: NDArray[np.float64] | None,
    random: np.random.RandomState,
) -> Images:
    labels = images.labels
    index = torch.from_numpy(random.permutation(len(labels))[:wrong]).to(labels.device)
    if confusions is not None:
        others = (confusions + 1e-9) * (1 - np.eye(num_classes))
        reached = np.cumsum(others, axis=1)[labels[index].cpu().numpy()]
        drawn = random.uniform(size=(wrong, 1)) * reached[:, -1:]
        confused = torch.from_numpy((reached <= drawn).sum(axis=1)).to(labels)
        return replace(images, labels=labels.index_copy(0, index, confused))
    # A step of 1 to K - 1 classes reaches each other class equally often and never the true one.
    most = num_classes if noise == "symmetric" else 2
    step = torch.from_numpy(random.randint(1, most, size=wrong)).to(labels.device)
    spoiled = labels.index_copy(0, index, (labels[index] + step) % num_classes)
    return replace(images, labels=spoiled)
