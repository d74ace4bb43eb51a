"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels that need no download; for tests and first steps."""

from pathlib import Path

import numpy as np
import torch

from classifier.data.image_set import Dataset, ImageSet
from classifier.data.stratify import apportion, interleave, positions_by_class, random_stream

# scikit-learn names no test set. A fixed fifth of each class is taken, by a seed that is part of this data set.
TEST_SEED = 1_797
TEST_SHARE = 0.2

# Of the pool's images, computed once.
MEAN = (0.3054,)
STD = (0.3759,)


def load_digits(root: Path | None = None) -> Dataset:
    """Load the digits that come with scikit-learn; `root` is not needed."""
    # Here, not above: it takes two seconds, which whoever trains on something else should not pay.
    from sklearn import datasets

    source = datasets.load_digits()
    images = torch.from_numpy(np.rint(source.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(source.target.astype(np.int64))

    random = random_stream(TEST_SEED)
    by_class = [random.permutation(positions) for positions in positions_by_class(labels.numpy(), 10)]
    for_test = apportion(round(TEST_SHARE * len(labels)), np.array([len(positions) for positions in by_class]))
    test = torch.from_numpy(interleave([group[:end] for group, end in zip(by_class, for_test, strict=True)]))
    pool = torch.from_numpy(
        np.sort(np.concatenate([group[end:] for group, end in zip(by_class, for_test, strict=True)]))
    )
    return Dataset(
        name="digits",
        pool=ImageSet(images[pool], labels[pool]),
        test=ImageSet(images[test], labels[test]),
        class_names=tuple(str(digit) for digit in range(10)),
        mean=MEAN,
        std=STD,
        flip=False,
        crop_padding=1,
    )
