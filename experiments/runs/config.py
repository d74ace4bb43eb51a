"""A run's configuration, read back from its `config.json` with every type checked."""

from dataclasses import is_dataclass
from typing import Any, TypeVar, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from rlmix.experiments.runs.errors import RunError

Config = TypeVar("Config")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _require_numbers(value: Any, hint: Any) -> None:
    """Refuse what Python takes for numbers and a configuration does not: truth values, and integers beyond 64 bits.

    Raises:
        TypeError: there is one.
    """
    if isinstance(value, tuple):
        for entry in value:
            _require_numbers(entry, hint)
    elif isinstance(value, bool) and hint is not bool:
        raise TypeError(f"expected no truth value, got {value}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TypeError(f"expected an integer of 64 bits, got one of {value.bit_length()}")


def stored_config(kind: type[Config], stored: dict[str, Any]) -> Config:
    """The configuration of a run's `config.json`, as a dataclass that may hold another one.

    Args:
        kind: a dataclass whose fields are numbers, texts, tuples, or a dataclass made by its default factory.
        stored: what `asdict` made of it.

    Raises:
        RunError: it does not fit this version.
    """
    types, values = get_type_hints(kind), {}
    try:
        for name, value in stored.items():
            if name not in types:
                raise TypeError(f"{name} is not known")
            if is_dataclass(types[name]) and isinstance(value, dict):
                values[name] = stored_config(types[name], value)
                continue
            try:
                every = CollectionCheckStrategy.ALL_ITEMS
                values[name] = check_type(_tuples(value), types[name], collection_check_strategy=every)
                _require_numbers(values[name], types[name])
            except (TypeCheckError, TypeError) as error:
                raise TypeError(f"{name}: {error}") from None
        return kind(**values)
    except RunError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"config.json does not fit this version of RL-Mix ({error!s:.300}); start a new run") from None
