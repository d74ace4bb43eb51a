"""Libraries that only evaluation needs, imported when they are first used."""

import importlib
from types import ModuleType


def library(name: str, purpose: str) -> ModuleType:
    """Import a library of the extra `rl-mix[evaluation]`.

    Args:
        name: name of the module.
        purpose: the measure that needs it, for the error.

    Raises:
        ImportError: it is not installed; the message tells how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{purpose}: needs the library {name.partition('.')[0]}, which cannot be imported ({error}); "
            "pip install 'rl-mix[evaluation]' brings it"
        ) from None
