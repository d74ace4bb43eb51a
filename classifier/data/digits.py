"""scikit-learn's handwritten digits: 1,797 images of 8x8 pixels that need no download; for tests and first steps."""

from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch

from rlmix.classifier.data.dataset import Dataset
from rlmix.classifier.data.image_set import ImageSet
from rlmix.classifier.data.stratify import set_apart

FILE = "sklearn/datasets/data/digits.csv.gz"  # 64 values from 0 to 16 and the class in each row
# scikit-learn names no test set. A fixed fifth of each class is taken, by a seed that is part of this data set.
TEST_SEED = 1_797
TEST_SHARE = 0.2

# Of the pool's images, computed once.
MEAN = (0.3054,)
STD = (0.3759,)


def load_digits(root: Path | None = None) -> Dataset:
    """Load the digits that come with scikit-learn; `root` is not needed."""
    # The file alone: scikit-learn takes almost as long to import as torch, and each worker would import it.
    table = np.loadtxt(str(distribution("scikit-learn").locate_file(FILE)), delimiter=",")
    images = torch.from_numpy(np.rint(table[:, :64] * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, 64].astype(np.int64))

    pool, test = map(torch.from_numpy, set_apart(labels.numpy(), 10, share=TEST_SHARE, seed=TEST_SEED))
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
