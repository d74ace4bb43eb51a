"""Data sets by name, the built-in ones and a user's own."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path

from rlmix.classifier.data import torchvision_arrays, torchvision_sets
from rlmix.classifier.data.cifar import load_cifar10, load_cifar100
from rlmix.classifier.data.csv_labels import load_csv
from rlmix.classifier.data.dataset import Dataset, resized
from rlmix.classifier.data.digits import load_digits
from rlmix.classifier.data.idx import load_fashion_mnist, load_kmnist, load_mnist
from rlmix.classifier.data.image_folder import load_image_folder
from rlmix.classifier.data.image_set import DataError
from rlmix.classifier.data.imagenet import load_imagenet
from rlmix.classifier.data.listing import Listing, load_listing
from rlmix.classifier.data.npz import load_npz
from rlmix.classifier.data.svhn import load_svhn
from rlmix.classifier.data.tiny_imagenet import load_tiny_imagenet

DATASETS: dict[str, Callable[[Path | None], Dataset | Listing]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
    "imagenet": load_imagenet,
    "kmnist": load_kmnist,
    "mnist": load_mnist,
    "svhn": load_svhn,
    "tiny_imagenet": load_tiny_imagenet,
    **torchvision_arrays.READERS,
    **torchvision_sets.READERS,
}

PATHS: dict[str, Callable[..., Dataset]] = {
    ".csv": load_csv,
    ".npz": load_npz,
    ".zip": load_image_folder,
}
"""Readers of files of a user's own, by their ending; each takes the path, and `image_size` by name."""


def load_dataset(name: str, root: str | Path | None = None, *, image_size: int | None = None) -> Dataset:
    """Load a data set by its name.

    Args:
        name: a key of `DATASETS`; or a path (with a `/` in it, or with an ending of `PATHS`, or of a folder that is
            there) of a folder of images or a zip file of one, as `load_image_folder` describes it, or of another file
            of `PATHS`; or "package.module:function" for a data set of your own. The module is imported and the function
            called without arguments; it returns a `Dataset`. What it raises itself is passed on.
        root: folder to look for the files in first; a path or a function of your own is not given it.
        image_size: side of the images in pixels, to which they are resized; None leaves them as they are.

    Raises:
        DataError: no such name, path, module or function, no `Dataset` returned, files missing or damaged, or an
            image_size below 1.
    """
    if name in DATASETS:
        try:
            found = DATASETS[name](None if root is None else Path(root).expanduser())
        except OSError as error:
            raise DataError(
                f"data set {name!r}: its files cannot be read ({error!s:.200}); let this user read them, "
                "or give another data_root"
            ) from error
        if isinstance(found, Listing):
            return load_listing(found, image_size=image_size)
        dataset = found
    elif (ending := os.path.splitext(name)[1].lower()) in PATHS:
        return PATHS[ending](os.path.expanduser(name), image_size=image_size)
    elif os.sep in name or (name and os.path.isdir(os.path.expanduser(name))):
        return load_image_folder(name, image_size=image_size)
    elif ":" in name:
        dataset = _load_own(name)
    else:
        raise DataError(
            f"data set {name!r:.200}: expected one of {', '.join(sorted(DATASETS))}, the path of a folder of images "
            f"(./NAME for one that lies here) or of a file ({', '.join(PATHS)}), or package.module:function for your "
            "own; check the spelling"
        )
    return dataset if image_size is None else resized(dataset, image_size)


def _load_own(name: str) -> Dataset:
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise DataError(
            f"data set {name!r}: expected package.module:function, got something else; "
            "write it as in an import, my_package.my_data:load"
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise DataError(
            f"data set {name!r}: expected to import {module_name}, got {error}; "
            "install it or put its folder on PYTHONPATH"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(
            f"data set {name!r}: expected a function {function_name} in {module_name}, got {function!r}; "
            "check the spelling"
        )
    dataset = function()
    if not isinstance(dataset, Dataset):
        raise DataError(
            f"data set {name!r}: expected it to return a rlmix.classifier.data.Dataset, got {type(dataset).__name__}; "
            "build one from two ImageSets, as classifier/data/digits.py does"
        )
    return dataset
