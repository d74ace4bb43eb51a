"""Data: a name gives images as uint8 tensors; fixed splits, seeded training sets, batched augmentation.

splits = split(load_dataset("fashion_mnist")).draw(5_000, data_seed=0, label_noise=0.2)
"""

from classifier.data.augmentation import augment, normalise, pad_images
from classifier.data.image_set import DataError, Dataset, ImageSet
from classifier.data.registry import DATASETS, load_dataset
from classifier.data.splits import Splits, split

__all__ = [
    "DATASETS",
    "DataError",
    "Dataset",
    "ImageSet",
    "Splits",
    "augment",
    "load_dataset",
    "normalise",
    "pad_images",
    "split",
]
