"""The one error for a user's mistakes, and what most of its messages need."""

import difflib
from collections.abc import Iterable, Mapping


class InputError(ValueError):
    """Something that the user gave cannot be used; the message says what was expected, what came, and what to do.

    Commands turn it, and nothing else, into one line without a traceback.
    """


class DataWarning(UserWarning):
    """Something odd about data that can be used all the same."""


def near_matches(name: str, known: Iterable[str], spelling: Mapping[str, str] | None = None) -> str:
    """Return `; did you mean a, b?` for the names most similar to `name`, or an empty text.

    Args:
        name: what was given.
        known: the names.
        spelling: how names are written in the text, where it is otherwise; optional.
    """
    close = [(spelling or {}).get(one, one) for one in difflib.get_close_matches(name, list(known))]
    return f"; did you mean {', '.join(close)}?" if close else ""


def require_at_least(config: object, **minimum: float) -> None:
    """Refuse a configuration that has a field below its minimum.

    Args:
        config: the configuration; a field that is None is not checked.
        minimum: the smallest value allowed, by the field's name.

    Raises:
        InputError: a field is too small, or not a number.
    """
    for name, least in minimum.items():
        value = getattr(config, name)
        if value is not None and not value >= least:
            raise InputError(f"{name} must be at least {least:g}, got {value}")


def require_numpy_seed(seed: int) -> None:
    """Refuse a seed that NumPy's global generator, which Stable-Baselines3 seeds, does not take.

    Raises:
        InputError: it is 2**32 or more.
    """
    require_below_2_32(seed, where="where PPO learns")


def require_below_2_32(seed: int, *, where: str) -> None:
    """Refuse a seed of more than 32 bits.

    Args:
        seed: the seed.
        where: place where it would not fit, for the message.

    Raises:
        InputError: it is 2**32 or more.
    """
    if seed >= 2**32:
        raise InputError(f"seed must be below 2**32, {2**32:,}, {where}, got {seed}")
