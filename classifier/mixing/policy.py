"""MixPolicy: the mixing policy of a segment of training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from numbers import Real
from typing import Any

from rlmix.classifier.errors import InputError
from rlmix.classifier.mixing.draw import MixDraw
from rlmix.classifier.mixing.method import Mixed, MixInput, MixSettings
from rlmix.classifier.mixing.methods import METHODS

SHARE_TOLERANCE = 1e-6


class PolicyError(InputError):
    """A policy that cannot be used; the message names the field, what it must be and what it is."""


@dataclass(frozen=True)
class LamDistribution:
    """Distribution of the mixing ratio λ, written `beta(A)`, `uniform` or `fixed(V)`.

    Attributes:
        kind: `beta` (Beta(A, A)), `uniform` (on [0, 1)) or `fixed`.
        parameter: A in [0.01, 100] for `beta`, V in [0, 1] for `fixed`, None for `uniform`.
    """

    kind: str = "beta"
    parameter: float | None = 1.0

    def __post_init__(self) -> None:
        if self.kind == "uniform":
            valid = self.parameter is None
        elif self.parameter is None or not math.isfinite(self.parameter):
            valid = False
        else:
            valid = (self.kind == "beta" and 0.01 <= self.parameter <= 100) or (
                self.kind == "fixed" and 0 <= self.parameter <= 1
            )
        if not valid:
            raise PolicyError(
                "lam must be beta(A) with A in [0.01, 100], uniform, or fixed(V) with V in [0, 1], "
                f"got {self.kind}({self.parameter})"
            )

    @classmethod
    def parse(cls, text: str) -> LamDistribution:
        """Return the distribution that `text` names; `str()` gives the text back.

        Raises:
            PolicyError: `text` is none of the three forms.
        """
        match = re.fullmatch(r"(beta|fixed)\(([0-9.eE+-]{1,32})\)|(uniform)", text) if isinstance(text, str) else None
        if match is None:
            raise PolicyError(f"lam must read beta(A), uniform or fixed(V), got {text!r:.80}")
        if match[3]:
            return cls("uniform", None)
        try:
            parameter = float(match[2])
        except ValueError:
            raise PolicyError(f"lam must read beta(A), uniform or fixed(V), got {text!r:.80}") from None
        return cls(match[1], parameter)

    def __str__(self) -> str:
        # All digits, or a policy would come back from its file as another one.
        return self.kind if self.parameter is None else f"{self.kind}({float(self.parameter)!r})".replace(".0)", ")")

    def quantile(self, probability: float) -> float:
        """Return λ at `probability` in [0, 1]: a uniform draw becomes a draw of λ."""
        if self.kind == "uniform":
            return probability
        assert self.parameter is not None
        if self.kind == "fixed":
            return self.parameter
        if self.parameter == 1:  # uniform: SciPy returns the probability itself
            return probability
        from scipy.special import betaincinv  # takes half a second to import, and few policies need it

        return float(betaincinv(self.parameter, self.parameter, probability))


@dataclass(frozen=True)
class MixPolicy:
    """Mixing policy for a segment of a training.

    Attributes:
        shares: share of the updates that each method of `METHODS` gets, above 0 and summing to 1, e.g.
            `{"clean": 0.5, "cutmix": 0.5}`; updates are interleaved evenly by these shares.
        lam: distribution of the mixing ratio λ.
        threshold: R-Mix's saliency quantile τ in [0, 1); None draws one for each image from `linspace(0, 0.99, 10)`.
        label_beta: LaMix's β in [0, 1], weight of the local label (eq. 10); 1 leaves the global label out.
        label_smoothing: share of each target that is spread over all classes, in [0, 1].
        label_detach: whether the global label is a constant for the gradient (an ablation of LaMix: its head is then
            never trained).
        options: settings of a method's own, e.g. `{"fmix": {"decay": 4}}`; the `Method` declares names, ranges and
            defaults. A default that is set is left out, so that policies of equal effect are equal.

    Raises:
        PolicyError: a field is out of range; the message names it.
    """

    shares: Mapping[str, float]
    lam: LamDistribution = field(default_factory=LamDistribution)
    threshold: float | None = None
    label_beta: float = 1.0
    label_smoothing: float = 0.0
    label_detach: bool = False
    options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.shares, Mapping) or not self.shares:
            raise PolicyError(f"shares must name at least one method of {', '.join(METHODS)}, got {self.shares!r:.80}")
        shares = {}
        for method, share in self.shares.items():
            if method not in METHODS:
                raise PolicyError(f"shares: unknown method {method!r:.80}; known are {', '.join(METHODS)}")
            shares[method] = float(_number(f"shares[{method}]", share, 0, 1))
        total = math.fsum(shares.values())
        if abs(total - 1) > SHARE_TOLERANCE:
            raise PolicyError(f"shares must sum to 1, got a sum of {total:g}")
        object.__setattr__(self, "options", _changed_options(self.options, shares))
        positive = {method: shares[method] for method in METHODS if shares.get(method, 0) > 0}
        object.__setattr__(self, "shares", positive)
        if not isinstance(self.lam, LamDistribution):
            raise PolicyError(f"lam must be a LamDistribution, got {self.lam!r:.80}; LamDistribution.parse reads text")
        if self.threshold is not None:
            object.__setattr__(self, "threshold", _number("threshold", self.threshold, 0, 1))
            if self.threshold == 1:
                raise PolicyError("threshold must be below 1, got 1")
        for name in ("label_beta", "label_smoothing"):
            object.__setattr__(self, name, _number(name, getattr(self, name), 0, 1))
        if not isinstance(self.label_detach, bool):
            raise PolicyError(f"label_detach must be true or false, got {self.label_detach!r:.80}")

    def __hash__(self) -> int:
        rest = (self.lam, self.threshold, self.label_beta, self.label_smoothing, self.label_detach)
        options = tuple((method, *values.items()) for method, values in self.options.items())
        return hash((tuple(self.shares.items()), *rest, options))

    def settings(self, method: str, draw: MixDraw) -> MixSettings:
        """Return the settings that `method` mixes a batch with."""
        defaults = {name: option.default for name, option in METHODS[method].options.items()}
        lam = self.lam.quantile(draw.lam_quantile)
        return MixSettings(lam, self.threshold, {**defaults, **self.options.get(method, {})})

    def mix(self, method: str, batch: MixInput, draw: MixDraw) -> Mixed:
        """Mix a batch by a method of `METHODS`.

        Args:
            method: name of the method: `Interleaver().next(policy.shares)`.
            batch: batch with what the method needs; left unchanged.
            draw: everything random about it.

        Returns:
            Mixed images `[B, C, H, W]` and targets `[B, K]`.

        Raises:
            ValueError: the batch lacks something that the method needs, or has a size that does not fit it.
        """
        return METHODS[method].mix(batch, self.settings(method, draw), draw)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write and `from_json` reads back."""
        options = {method: dict(values) for method, values in self.options.items()}
        return {
            "shares": dict(self.shares),
            "lam": str(self.lam),
            "threshold": self.threshold,
            "label_beta": self.label_beta,
            "label_smoothing": self.label_smoothing,
            "label_detach": self.label_detach,
            **({"options": options} if options else {}),
        }

    @classmethod
    def from_json(cls, value: Any) -> MixPolicy:
        """Return the policy that `to_json` wrote.

        Raises:
            PolicyError: a field is missing, unknown or out of range; the message names it.
        """
        required = [entry.name for entry in fields(cls) if entry.name != "options"]
        require_fields("policy", value, required, optional=["options"])
        return cls(**{**value, "lam": LamDistribution.parse(value["lam"])})

    def __str__(self) -> str:
        """Short name for tables and pictures, e.g. `clean 50 % + cutmix 50 %, λ beta(1)`."""
        text = " + ".join(f"{method} {100 * share:.3g} %" for method, share in self.shares.items())
        if set(self.shares) != {"clean"}:
            text += f", λ {self.lam}"
        if any(METHODS[method].needs_threshold for method in self.shares):
            text += ", τ drawn" if self.threshold is None else f", τ {self.threshold:g}"
        if self.label_beta != 1:
            text += f", β {self.label_beta:g}" + (" detached" if self.label_detach else "")
        if self.label_smoothing:
            text += f", smoothing {self.label_smoothing:g}"
        for method, options in self.options.items():
            text += "".join(f", {method} {name} {value:g}" for name, value in options.items())
        return text


def _changed_options(options: Any, shares: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Return the options that differ from their defaults, of methods with a share, in the order declared."""
    if not isinstance(options, Mapping) or not all(isinstance(values, Mapping) for values in options.values()):
        raise PolicyError(f"options must map methods to their options, got {options!r:.80}")
    for method, values in options.items():
        if method not in METHODS:
            raise PolicyError(f"options: unknown method {method!r:.80}; known are {', '.join(METHODS)}")
        if method not in shares:
            raise PolicyError(f"options: {method} is not among the shares, {', '.join(shares)}")
        known = METHODS[method].options
        for name, value in values.items():
            if name not in known:
                offered = f"{method} has {', '.join(known)}" if known else f"{method} has none"
                raise PolicyError(f"options[{method}]: unknown option {name!r:.80}; {offered}")
            if not _is_number(value) or not known[name].allows(value):
                raise PolicyError(f"options[{method}][{name}] must be {known[name]}, got {_found(value)}")
    changed = {
        method: {
            name: float(options[method][name])
            for name, option in METHODS[method].options.items()
            if options[method].get(name, option.default) != option.default
        }
        for method in METHODS
        if method in options and shares[method] > 0
    }
    return {method: values for method, values in changed.items() if values}


def require_fields(where: str, value: Any, names: Sequence[str], *, optional: Sequence[str] = ()) -> None:
    """Raise unless the value is a dictionary with the fields `names`, and no others but those of `optional`.

    Raises:
        PolicyError: a field is missing or unknown; the message names it.
    """
    if not isinstance(value, dict):
        raise PolicyError(f"{where} must be an object with the fields {', '.join(names)}, got {value!r:.80}")
    for name in names:
        if name not in value:
            raise PolicyError(f"{where}: the field {name!r} is missing")
    for name in value:
        if name not in names and name not in optional:
            raise PolicyError(f"{where}: unknown field {name!r:.80}; known are {', '.join(names)}")


def _number(name: str, value: Any, low: float, high: float) -> float:
    """Return a number in [low, high]: Python's own as it is, 1 or 1.0, and NumPy's as Python's."""
    if not _is_number(value) or not low <= value <= high:
        raise PolicyError(f"{name} must be a number in [{low:g}, {high:g}], got {_found(value)}")
    return value if isinstance(value, int | float) else float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _found(value: Any) -> str:
    """Return a value for an error, with its type where that is what is wrong: `tensor(0.5)` looks like a number."""
    return f"{value!r:.80}" if _is_number(value) else f"{value!r:.80} of type {type(value).__name__}"


class Interleaver:
    """Choice of the method for each update, so that shares are kept evenly and never in clumps.

    Each update gives every method its share as credit; the one with the most credit is used and pays 1. Shares of one
    half alternate strictly, clean first. From the first update on, every share is kept to within one update with up to
    three methods, and to within two with more.

    Args:
        credit: `credit` of an earlier Interleaver, to continue from there.
    """

    def __init__(self, credit: Mapping[str, float] | None = None) -> None:
        self.credit = dict(credit or {})

    def next(self, shares: Mapping[str, float]) -> str:
        """Return the method of the next update, forgetting the credit of methods that `shares` does not name."""
        # Rounded so that ties stay ties after many additions of, say, 0.1; a tie goes to the first method named.
        self.credit = {method: round(self.credit.get(method, 0.0) + share, 9) for method, share in shares.items()}
        method = max(self.credit, key=lambda name: self.credit[name])
        self.credit[method] = round(self.credit[method] - 1, 9)
        return method

    def ahead(self, shares: Mapping[str, float], updates: int, *, clean: int) -> list[str]:
        """Return the methods of updates to come, without taking them.

        Args:
            shares: shares of the methods.
            updates: number of updates, at most.
            clean: number of clean updates after which no more are told; where there are none, nothing is.
        """
        methods: list[str] = []
        looking, left = Interleaver(self.credit), clean if shares.get("clean") else 0
        while left > 0 and len(methods) < updates:
            methods.append(looking.next(shares))
            left -= methods[-1] == "clean"
        return methods
