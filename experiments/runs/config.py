"""A run's configuration, read back from its `config.json` with every type checked.

pydantic was tried and left: it takes an unknown name and an integer of any size in a plain dataclass, so that both
checks would stay, and its messages name the class where these name the option.
"""

from dataclasses import is_dataclass
from typing import Any, TypeVar, get_type_hints

from rlmix.experiments.runs.errors import RunError
from rlmix.experiments.runs.options import nest

Config = TypeVar("Config")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


def _require_numbers(value: Any, hint: Any) -> None:
    """Refuse values that Python takes for numbers and a configuration does not: booleans, and integers beyond 64 bits.

    Raises:
        TypeError: there is one.
    """
    if isinstance(value, tuple):
        for entry in value:
            _require_numbers(entry, hint)
    elif isinstance(value, bool) and hint is not bool:
        raise TypeError(f"expected a number, got the boolean {value}")
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TypeError(f"expected an integer of at most 64 bits, got one of {value.bit_length()}")


def stored_config(kind: type[Config], stored: dict[str, Any]) -> Config:
    """Return the configuration of a run's `config.json`.

    Args:
        kind: a dataclass whose fields are numbers, texts, tuples, or further such dataclasses.
        stored: what `asdict` made of it, or the same options without parts, as earlier versions wrote them.

    Raises:
        RunError: it does not fit this version.
    """
    try:
        return _checked(kind, nest(kind, stored))
    except (TypeError, ValueError, RecursionError) as error:
        raise RunError(f"config.json does not fit this version of RL-Mix ({error!s:.300}); start a new run") from None


def _checked(kind: type[Config], stored: dict[str, Any]) -> Config:
    """Return the dataclass, with every value of the type that it declares.

    Raises:
        TypeError: a name is not known, or a value has another type.
        ValueError: a value is out of range.
    """
    # Takes half a second, and only a run that is resumed or looked at needs it.
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    types, values = get_type_hints(kind), {}
    for name, value in stored.items():
        if name not in types:
            raise TypeError(f"unknown option {name}")
        if is_dataclass(types[name]) and isinstance(value, dict):
            values[name] = _checked(types[name], value)
            continue
        try:
            every = CollectionCheckStrategy.ALL_ITEMS
            values[name] = check_type(_tuples(value), types[name], collection_check_strategy=every)
            _require_numbers(values[name], types[name])
        except (TypeCheckError, TypeError) as error:
            raise TypeError(f"{name}: {error}") from None
    return kind(**values)
