"""Data sets by name, the built-in ones and a user's own."""

import importlib
from collections.abc import Callable
from pathlib import Path

from classifier.data.cifar import load_cifar10, load_cifar100
from classifier.data.digits import load_digits
from classifier.data.fashion_mnist import load_fashion_mnist
from classifier.data.image_set import DataError, Dataset

DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "digits": load_digits,
    "fashion_mnist": load_fashion_mnist,
}


def load_dataset(name: str, root: str | Path | None = None) -> Dataset:
    """Load a data set by its name.

    Args:
        name: a key of `DATASETS`, or "package.module:function" for a data set of your own. The module is imported and
            the function called without arguments; it returns a `Dataset`. What it raises itself is passed on.
        root: folder to look for the files in first; a function of your own is not given it.

    Raises:
        DataError: no such name, module or function, no `Dataset` returned, or files missing or damaged.
    """
    if ":" in name:
        return _load_own(name)
    if name not in DATASETS:
        raise DataError(
            f"data set {name!r}: expected one of {', '.join(sorted(DATASETS))}, or package.module:function for your "
            "own; check the spelling"
        )
    return DATASETS[name](None if root is None else Path(root).expanduser())


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
            f"data set {name!r}: expected it to return a classifier.data.Dataset, got {type(dataset).__name__}; "
            "build one from two ImageSets, as classifier/data/digits.py does"
        )
    return dataset
