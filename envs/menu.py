"""Menu: the choices of an agent, and the MixPolicy of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, LamDistribution, MixPolicy
from rlmix.classifier.mixing.policy import require_fields

MAX_ACTIONS = 10_000


@dataclass(frozen=True)
class Dimension:
    """One dimension of an action; its choices are a field of `Menu`.

    Attributes:
        field: name of the field of `Menu`, and of its JSON.
        name: name of a choice in tables and plots.
        settings: arguments of `MixPolicy` for a choice and shares; empty where it has no effect on these.
        to_json: JSON value of a choice.
        from_json: choice of a JSON value.
    """

    field: str
    name: Callable[[Any], str]
    settings: Callable[[Any, Mapping[str, float]], dict[str, Any]]
    to_json: Callable[[Any], Any] = lambda choice: choice
    from_json: Callable[[Any], Any] = lambda value: value


def _source_from_json(value: Any) -> tuple[str, dict[str, float]]:
    name, shares = value
    return str(name), dict(shares)


def _threshold_settings(threshold: float | None, shares: Mapping[str, float]) -> dict[str, Any]:
    return {"threshold": threshold} if any(METHODS[method].needs_threshold for method in shares) else {}


def _label_name(label: tuple[float, float]) -> str:
    beta, smoothing = label
    return f"β {beta:g}" + (f", smoothing {smoothing:g}" if smoothing else "")


def _label_from_json(value: Any) -> tuple[float, float]:
    beta, smoothing = value
    return beta, smoothing


_TABLE = {
    "source": Dimension(
        "sources",
        name=lambda source: source[0],
        settings=lambda source, shares: {"shares": shares},
        to_json=lambda source: [source[0], dict(source[1])],
        from_json=_source_from_json,
    ),
    "threshold": Dimension(
        "thresholds",
        name=lambda threshold: "drawn" if threshold is None else f"{threshold:g}",
        settings=_threshold_settings,
    ),
    "label": Dimension(
        "labels",
        name=_label_name,
        settings=lambda label, shares: {"label_beta": label[0], "label_smoothing": label[1]},
        to_json=list,
        from_json=_label_from_json,
    ),
    "lam": Dimension(
        "lams",
        name=lambda lam: lam,
        settings=lambda lam, shares: {"lam": LamDistribution.parse(lam)} if set(shares) != {"clean"} else {},
    ),
}
DIMENSIONS = tuple(_TABLE)


@dataclass(frozen=True)
class Menu:
    """Choices of each dimension of an action.

    Attributes:
        sources: name and shares of each method mixture.
        thresholds: R-Mix's τ; None draws one for each image.
        labels: pairs of LaMix's β and label smoothing.
        lams: λ distributions, as text (`beta(1)`, `uniform`, `fixed(0.5)`).
    """

    sources: tuple[tuple[str, dict[str, float]], ...] = (
        ("clean", {"clean": 1.0}),
        ("mixup half", {"clean": 0.5, "mixup": 0.5}),
        ("cutmix half", {"clean": 0.5, "cutmix": 0.5}),
        ("average half", {"clean": 0.5, "average": 0.5}),
        ("rmix half", {"clean": 0.5, "rmix": 0.5}),
        ("cutmix + rmix half", {"clean": 0.5, "cutmix": 0.25, "rmix": 0.25}),
        ("cutmix all", {"cutmix": 1.0}),
    )
    thresholds: tuple[float | None, ...] = (None, 0.3, 0.6, 0.9)
    labels: tuple[tuple[float, float], ...] = ((1.0, 0.0), (0.5, 0.0), (1.0, 0.1), (1.0, 0.3))
    lams: tuple[str, ...] = ("beta(1)", "beta(0.2)", "fixed(0.5)")

    def __post_init__(self) -> None:
        for dimension, size in zip(_TABLE.values(), self.sizes, strict=True):
            if size == 0:
                raise InputError(f"a menu needs at least one choice in {dimension.field}, got none")
        if math.prod(self.sizes) > MAX_ACTIONS:
            raise InputError(f"a menu holds at most {MAX_ACTIONS:,} combinations of choices, got {self.sizes}")
        for action in self.combinations():
            self.policy(action)  # raises PolicyError for a choice that is out of range

    def including(self, methods: Sequence[str]) -> Menu:
        """Return this menu with more sources: methods of `rlmix.classifier.mixing.METHODS` on half of the updates each.

        Raises:
            ValueError: a method is not known, or is offered already.
        """
        sources = list(self.sources)
        for method in methods:
            half = (f"{method} half", {"clean": 0.5, method: 0.5})
            if half in sources or method == "clean":
                offered = ", ".join(name for name, _ in sources)
                raise InputError(f"the menu offers {method!r} already; it has {offered}")
            sources.append(half)
        return replace(self, sources=tuple(sources))

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of choices in each dimension of `DIMENSIONS`."""
        return tuple(len(getattr(self, dimension.field)) for dimension in _TABLE.values())

    @property
    def varied(self) -> list[str]:
        """Dimensions in which there is a choice."""
        return [dimension for dimension, size in zip(DIMENSIONS, self.sizes, strict=True) if size > 1]

    def names(self, dimension: str) -> list[str]:
        """Return what the choices of a dimension are called in tables and plots.

        Raises:
            ValueError: there is no such dimension.
        """
        if dimension not in _TABLE:
            raise InputError(f"dimension must be one of {', '.join(DIMENSIONS)}, got {dimension!r}")
        entry = _TABLE[dimension]
        return [entry.name(choice) for choice in getattr(self, entry.field)]

    def policy(self, action: Sequence[int]) -> MixPolicy:
        """Return the policy of an action; settings without effect keep their defaults, so that equal effects are equal.

        Args:
            action: index into each dimension of `DIMENSIONS`.

        Raises:
            ValueError: the menu has no such choice.
        """
        choice = tuple(int(index) for index in action)
        if len(choice) != len(DIMENSIONS) or any(not 0 <= i < n for i, n in zip(choice, self.sizes, strict=True)):
            raise ValueError(f"an action must be one index for each of {self.sizes} choices, from 0, got {choice}")
        shares = MixPolicy(self.sources[choice[0]][1]).shares  # as far as they have an effect
        settings: dict[str, Any] = {}
        for dimension, index in zip(_TABLE.values(), choice, strict=True):
            settings |= dimension.settings(getattr(self, dimension.field)[index], shares)
        return MixPolicy(**settings)

    def combinations(self) -> list[tuple[int, ...]]:
        """Return every combination of choices as an action, the last dimension running fastest."""
        return list(itertools.product(*map(range, self.sizes)))

    def actions(self) -> list[tuple[int, ...]]:
        """Return one action for each distinct policy, the first of those with equal effect."""
        first: dict[MixPolicy, tuple[int, ...]] = {}
        for action in self.combinations():
            first.setdefault(self.policy(action), action)
        return list(first.values())

    def find(self, policy: MixPolicy) -> tuple[int, ...]:
        """Return the action that stands for `policy`.

        Raises:
            ValueError: no action does.
        """
        for action in self.actions():
            if self.policy(action) == policy:
                return action
        if policy.threshold is not None and not any(METHODS[method].needs_threshold for method in policy.shares):
            raise InputError(
                f"{policy} has a threshold, {policy.threshold:g}, that none of its methods reads; leave it None"
            )
        lists = ", ".join(dimension.field for dimension in _TABLE.values())
        raise InputError(
            f"the menu does not offer {policy}; add what it lacks to its lists ({lists}) or choose another"
        )

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write and `from_json` reads back."""
        return {
            dimension.field: [dimension.to_json(choice) for choice in getattr(self, dimension.field)]
            for dimension in _TABLE.values()
        }

    @classmethod
    def from_json(cls, value: Any) -> Menu:
        """Return the menu that `to_json` wrote.

        Raises:
            ValueError: a field is missing or unknown, or a choice is out of range.
        """
        require_fields("menu", value, [dimension.field for dimension in _TABLE.values()])
        try:
            return cls(
                **{
                    dimension.field: tuple(dimension.from_json(choice) for choice in value[dimension.field])
                    for dimension in _TABLE.values()
                }
            )
        except TypeError as error:
            raise ValueError(f"menu: expected a list ({error})") from None
