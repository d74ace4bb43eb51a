"""Menu: what an agent can choose from, and the MixPolicy that a choice stands for."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing import METHODS, LamDistribution, MixPolicy
from rlmix.classifier.mixing.policy import require_fields

MOST_ACTIONS = 10_000
DIMENSIONS = ("source", "threshold", "label", "lam")


@dataclass(frozen=True)
class Menu:
    """The choices of each dimension of an action.

    Attributes:
        sources: name and shares of each method mixture.
        thresholds: R-Mix's τ; none = drawn for each image.
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
        for size, name in zip(self.sizes, ("sources", "thresholds", "labels", "lams"), strict=True):
            if size == 0:
                raise InputError(f"a menu needs at least one choice in {name}, got none")
        if math.prod(self.sizes) > MOST_ACTIONS:
            raise InputError(f"a menu holds at most {MOST_ACTIONS:,} combinations of choices, got {self.sizes}")
        for action in itertools.product(*(range(size) for size in self.sizes)):
            self.policy(action)  # raises PolicyError for a choice that is out of range

    def including(self, methods: Sequence[str]) -> Menu:
        """This menu and, as further sources, methods of `classifier.mixing.METHODS` on half of the updates each.

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
    def sizes(self) -> tuple[int, int, int, int]:
        """Number of choices in each dimension of `DIMENSIONS`."""
        return len(self.sources), len(self.thresholds), len(self.labels), len(self.lams)

    def names(self, dimension: str) -> list[str]:
        """What the choices of a dimension are called in tables and pictures."""
        match dimension:
            case "source":
                return [name for name, _ in self.sources]
            case "threshold":
                return ["drawn" if value is None else f"{value:g}" for value in self.thresholds]
            case "label":
                return [f"β {beta:g}" + (f", smoothing {smooth:g}" if smooth else "") for beta, smooth in self.labels]
            case "lam":
                return list(self.lams)
        raise InputError(f"dimension must be one of {', '.join(DIMENSIONS)}, got {dimension!r}")

    def policy(self, action: Sequence[int]) -> MixPolicy:
        """The policy of an action; dimensions without effect are left at their defaults, so equal effect is equal.

        Args:
            action: an index into each dimension of `DIMENSIONS`.

        Raises:
            ValueError: the menu has no such choice.
        """
        choice = tuple(int(index) for index in action)
        if len(choice) != len(DIMENSIONS) or any(not 0 <= i < n for i, n in zip(choice, self.sizes, strict=True)):
            raise ValueError(f"an action must be one index for each of {self.sizes} choices, from 0, got {choice}")
        source, threshold, label, lam = choice
        shares = MixPolicy(self.sources[source][1]).shares  # as far as they have an effect
        beta, smoothing = self.labels[label]
        return MixPolicy(
            shares,
            lam=LamDistribution.parse(self.lams[lam]) if set(shares) != {"clean"} else LamDistribution(),
            threshold=self.thresholds[threshold] if any(METHODS[method].needs_threshold for method in shares) else None,
            label_beta=beta,
            label_smoothing=smoothing,
        )

    def actions(self) -> list[tuple[int, ...]]:
        """One action for each distinct policy, the first of those with equal effect."""
        first: dict[MixPolicy, tuple[int, ...]] = {}
        for action in itertools.product(*(range(size) for size in self.sizes)):
            first.setdefault(self.policy(action), action)
        return list(first.values())

    def find(self, policy: MixPolicy) -> tuple[int, ...]:
        """The action that stands for `policy`.

        Raises:
            ValueError: no action does.
        """
        for action in self.actions():
            if self.policy(action) == policy:
                return action
        raise InputError(f"the menu does not offer {policy}; add it to the menu or choose another")

    def to_json(self) -> dict[str, Any]:
        """A dictionary that `json` can write and `from_json` reads back."""
        return {
            "sources": [[name, dict(shares)] for name, shares in self.sources],
            "thresholds": list(self.thresholds),
            "labels": [list(pair) for pair in self.labels],
            "lams": list(self.lams),
        }

    @classmethod
    def from_json(cls, value: Any) -> Menu:
        """The menu that `to_json` wrote.

        Raises:
            ValueError: a field is missing or unknown, or a choice is out of range.
        """
        require_fields("menu", value, ["sources", "thresholds", "labels", "lams"])
        try:
            return cls(
                sources=tuple((str(name), dict(shares)) for name, shares in value["sources"]),
                thresholds=tuple(value["thresholds"]),
                labels=tuple((beta, smoothing) for beta, smoothing in value["labels"]),
                lams=tuple(value["lams"]),
            )
        except TypeError as error:
            raise ValueError(f"menu: a list is expected where something else stands ({error})") from None
