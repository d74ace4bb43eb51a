"""Data: a name gives images as uint8 tensors, or their files; fixed splits, seeded training sets, augmentation.

splits = split(load_dataset("fashion_mnist")).draw(5_000, data_seed=0, label_noise=0.2)
"""

from rlmix.classifier.data.augmentation import augment, normalise, pad_images
from rlmix.classifier.data.dataset import Dataset, Images, resized
from rlmix.classifier.data.evaluation import evaluation_chunks
from rlmix.classifier.data.grey import in_grey
from rlmix.classifier.data.image_files import ImageFiles
from rlmix.classifier.data.image_folder import load_image_folder
from rlmix.classifier.data.image_set import DataError, ImageSet
from rlmix.classifier.data.listing import Labelled, Listing, load_listing
from rlmix.classifier.data.registry import DATASETS, load_dataset
from rlmix.classifier.data.splits import NOISES, Splits, split
from rlmix.classifier.data.streaming import StreamDraw, stream_batches, stream_evaluation

__all__ = [
    "DATASETS",
    "NOISES",
    "DataError",
    "Dataset",
    "ImageFiles",
    "ImageSet",
    "Images",
    "Labelled",
    "Listing",
    "Splits",
    "StreamDraw",
    "augment",
    "evaluation_chunks",
    "in_grey",
    "load_dataset",
    "load_image_folder",
    "load_listing",
    "normalise",
    "pad_images",
    "resized",
    "split",
    "stream_batches",
    "stream_evaluation",
]
