"""Grey images from colour ones."""

from dataclasses import replace

import torch

from rlmix.classifier.data.dataset import Dataset, Images
from rlmix.classifier.data.image_set import DataError, ImageSet
from rlmix.classifier.data.listing import mean_and_std

LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]  # weights of red, green and blue (ITU-R BT.601)


def in_grey(dataset: Dataset) -> Dataset:
    """Return the data set with one channel, the luma of its colours; mean and std are the new images'.

    Raises:
        DataError: the images are streamed from files, or have neither one channel nor three.
    """
    if dataset.pool.image_shape[0] == 1:
        return dataset

    def part(images: Images) -> ImageSet:
        if not isinstance(images, ImageSet) or images.image_shape[0] != 3:
            raise DataError(f"{dataset.name}: expected images in memory of 1 or 3 channels to make grey, got others")
        return ImageSet((images.images * LUMA).sum(dim=1, keepdim=True).round().to(torch.uint8), images.labels)

    pool, own = part(dataset.pool), None if dataset.validation is None else part(dataset.validation)
    mean, std = mean_and_std(pool.images)
    return replace(dataset, pool=pool, test=part(dataset.test), validation=own, mean=mean, std=std)
