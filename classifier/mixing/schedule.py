"""PolicySchedule: the mixing policy at each progress of a training, as readable JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlmix.classifier.files import write_atomic
from rlmix.classifier.mixing.policy import MixPolicy, PolicyError, require_fields

FORMAT = "rl-mix policy schedule"
VERSION = 3  # of a schedule with a method's own options, which version 2 did not know
PLAIN_VERSION = 2  # of every other schedule, so that an older RL-Mix reads it
MAX_BYTES = 1 << 20  # a schedule is some kilobytes; anything much larger is not one
MAX_SEGMENTS = 10_000


@dataclass(frozen=True)
class PolicySchedule:
    """Mixing policies over the progress of a training; a fixed policy is a schedule of one segment.

    Attributes:
        segments: pairs of the progress in (0, 1] until which a policy holds, rising to exactly 1, and the policy.
        provenance: origin, e.g. how and on which data it was learned, and its validation score; any JSON object.

    Raises:
        PolicyError: the progress values do not rise to 1.
    """

    segments: tuple[tuple[float, MixPolicy], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.segments) <= MAX_SEGMENTS:
            raise PolicyError(f"segments must hold 1 to {MAX_SEGMENTS:,} entries, got {len(self.segments):,}")
        before = 0.0
        for index, (until, _) in enumerate(self.segments):
            if isinstance(until, bool) or not isinstance(until, int | float) or not before < until <= 1:
                raise PolicyError(f"segments[{index}].until must be a number in ({before:g}, 1], got {until!r:.80}")
            before = float(until)
        if before != 1:
            raise PolicyError(f"segments[{len(self.segments) - 1}].until must be 1 for the last one, got {before:g}")

    @classmethod
    def fixed(cls, policy: MixPolicy) -> PolicySchedule:
        """Return the schedule that keeps one policy from start to end."""
        return cls(((1.0, policy),))

    def ends(self, updates: int) -> list[tuple[int, MixPolicy]]:
        """Return the schedule in updates: pairs of a number `end` and the policy of the updates before it.

        Updates count from 0, so a policy holds from the previous pair's `end` to `end - 1`, and the last `end` is
        `updates`. Segments too short for an update are left out.

        Args:
            updates: length of the training, at least 1.
        """
        ends: list[tuple[int, MixPolicy]] = []
        for until, policy in self.segments:
            end = round(until * updates)
            if end > (ends[-1][0] if ends else 0):
                ends.append((end, policy))
        return ends

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that `json` can write and `from_json` reads back."""
        return {
            "format": FORMAT,
            "version": VERSION if any(policy.options for _, policy in self.segments) else PLAIN_VERSION,
            "segments": [{"until": until, "policy": policy.to_json()} for until, policy in self.segments],
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: Any) -> PolicySchedule:
        """Return the schedule that `to_json` wrote.

        Raises:
            PolicyError: a field is missing, unknown or out of range, or the version is not known; the message names it.
        """
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            beside = isinstance(value, dict) and "schedule" in value
            hint = "; that of a run lies beside its summary, in policy.json" if beside else ""
            raise PolicyError(f"format must be {FORMAT!r}, got {value!r:.80}: this is not a policy schedule{hint}")
        if value.get("version") not in (1, PLAIN_VERSION, VERSION):
            hint = "; another RL-Mix wrote it" if "version" in value else ": the field is missing"
            raise PolicyError(
                f"version must be 1, {PLAIN_VERSION} or {VERSION}, got {value.get('version')!r:.80}{hint}"
            )
        require_fields("schedule", value, ["format", "version", "segments", "provenance"])
        if not isinstance(value["segments"], list):
            raise PolicyError(f"segments must be a list, got {value['segments']!r:.80}")
        if not isinstance(value["provenance"], dict):
            raise PolicyError(f"provenance must be an object, got {value['provenance']!r:.80}")
        segments = []
        for index, segment in enumerate(value["segments"]):
            require_fields(f"segments[{index}]", segment, ["until", "policy"])
            try:
                policy = segment["policy"]
                if value["version"] == 1 and isinstance(policy, dict):
                    policy = {"label_detach": False, **policy}  # what version 2 added
                segments.append((segment["until"], MixPolicy.from_json(policy)))
            except PolicyError as error:
                raise PolicyError(f"segments[{index}].{error}") from None
        return cls(tuple(segments), value["provenance"])

    def save(self, path: str | Path) -> None:
        """Write the schedule to a JSON file, atomically.

        Raises:
            PolicyError: the provenance holds a number that JSON has not (NaN, infinity).
        """
        try:
            text = json.dumps(self.to_json(), indent=2, allow_nan=False)
        except ValueError as error:
            raise PolicyError(f"provenance must hold finite numbers only ({error})") from None
        write_atomic(Path(path), (text + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> PolicySchedule:
        """Read a schedule; runs no code from the file.

        Raises:
            PolicyError: the file is missing, not JSON, or not a valid schedule; the message names file and field.
        """
        try:
            with open(path, "rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except IsADirectoryError:
            inside = Path(path) / "policy.json"
            hint = f"; did you mean {inside}?" if inside.exists() else ""
            raise PolicyError(f"{path!s:.300}: expected a file, got a folder{hint}") from None
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            raise PolicyError(f"{path!s:.300}: cannot be read ({getattr(error, 'strerror', error)})") from None
        if len(raw) > MAX_BYTES:
            raise PolicyError(f"{path}: larger than {MAX_BYTES:,} bytes, which no policy schedule is")
        try:
            value = json.loads(raw, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
            return cls.from_json(value)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from None
        except (ValueError, RecursionError) as error:
            reason = "it is empty" if not raw.strip() else f"{type(error).__name__}: {error}"
            raise PolicyError(
                f"{path}: not a JSON file ({reason:.120}); a schedule is the policy.json that a search, a training or "
                "RLMix.save has written"
            ) from None


def _refuse_constant(name: str) -> Any:
    raise PolicyError(f"numbers must be finite, got {name}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, entry in pairs:
        if name in value:
            raise PolicyError(f"the field {name!r:.80} appears twice")
        value[name] = entry
    return value
