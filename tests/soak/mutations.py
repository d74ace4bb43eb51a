"""Files made wrong: bytes, JSON by its structure, safetensors by their headers, IDX files by their numbers.

Every function takes a whole file and a generator of random numbers and gives a file that may or may not be valid.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

Mutation = Callable[[bytes, random.Random], bytes]

DEEP = 100_000  # nested lists; Python's own limit is about 1,000
LONG = 5_000  # digits; Python's own limit for reading a number is 4,300

# What stands in JSON for text that `json.dumps` would not write.
PLACEHOLDERS = {
    '"<deep list>"': "[" * DEEP + "]" * DEEP,
    '"<deep object>"': '{"a":' * DEEP + "1" + "}" * DEEP,
    '"<long number>"': "9" * LONG,
    '"<infinite>"': "1e999",
    '"<lone surrogate>"': '"\\ud800"',
    '"<raw control>"': '"\x01"',
}
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, -0.0, 0.5, 1e-320, 1e308, -1e308, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400),
    *(math.nan, math.inf, -math.inf, "", " ", "0", "1e9", "nan", "λ\u2028τ\u0000", "\U0001f4a5" * 50, "a" * 100_000),
    *("../../../../etc/passwd", "/dev/zero", "..", "<script>alert(1)</script>", "{{7*7}}", "os:abort", "__class__"),
    *([], {}, [[]], [None], {"": None}, {"tensor": "tensor0"}, {"pairs": 3}, {"pairs": [[[], 1]]}, [0] * 10_000),
    *(json.loads(name) for name in PLACEHOLDERS),
)


class _Twice(dict[str, Any]):
    """An object whose first field stands in the file twice."""

    def items(self) -> Any:
        pairs = list(super().items())
        return [*pairs, *pairs[:1]]


def mutate_value(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one to three places changed, by structure."""
    value = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return draw.choice(ODD)
        parent, key = draw.choice(places)
        match draw.randrange(9):
            case 0 | 1 | 2:
                parent[key] = copy.deepcopy(draw.choice(ODD))
            case 3:
                del parent[key]
            case 4:
                other, place = draw.choice(places)
                parent[key] = copy.deepcopy(other[place])  # both are there: nothing is deleted in between
            case 5:
                parent[key] = draw.choice(([parent[key]], {"value": parent[key]}, str(parent[key])))
            case 6:
                if isinstance(parent, dict):
                    parent[draw.choice((f"{key} ", f"{key}".upper(), "unknown", "__proto__", ""))] = parent[key]
                else:
                    parent.insert(key, copy.deepcopy(parent[key]))
            case 7:
                if isinstance(parent[key], dict):
                    parent[key] = _Twice(parent[key])
                elif isinstance(parent[key], list):
                    parent[key] = parent[key] * draw.choice((0, 2, 1000))
            case 8:
                number = parent[key]
                if isinstance(number, int | float) and not isinstance(number, bool):
                    parent[key] = draw.choice((-number, number + 1, number * 10**9))
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key below a value."""
    entries: Any = ()
    if isinstance(value, dict):
        entries = dict.items(value)
    elif isinstance(value, list):
        entries = enumerate(value[:50])
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry)


def dump(value: Any) -> bytes:
    """A mutated value as JSON, with what JSON does not allow."""
    text = json.dumps(value, ensure_ascii=False)
    for placeholder, instead in PLACEHOLDERS.items():
        text = text.replace(placeholder, instead)
    return text.encode("utf-8", "surrogatepass")


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes cut, flipped, overwritten, left out, repeated or added."""
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        start = draw.randrange(len(changed) + 1)
        length = draw.choice((1, 1, 2, 4, 8, 64, 1024))
        match draw.randrange(8):
            case 0:
                del changed[start:]
            case 1 | 2 if start < len(changed):
                changed[start] ^= 1 << draw.randrange(8)
            case 3:
                changed[start : start + length] = draw.randbytes(length)
            case 4:
                changed[start : start + length] = bytes([draw.choice((0, 0x7F, 0x80, 0xFF))]) * length
            case 5:
                del changed[start : start + length]
            case 6:
                changed[start:start] = changed[start : start + length]
            case 7:
                changed += draw.choice((b"\n", b"\x00" * 4096, b"{}", draw.randbytes(16)))
    return bytes(changed)


def mutate_json(content: bytes, draw: random.Random) -> bytes:
    """A JSON file changed by structure, or by bytes."""
    return mutate_bytes(content, draw) if draw.random() < 0.3 else dump(mutate_value(json.loads(content), draw))


def mutate_lines(content: bytes, draw: random.Random) -> bytes:
    """A file of one JSON object a line: lines changed, left out, repeated, exchanged, or bytes changed."""
    if draw.random() < 0.2:
        return mutate_bytes(content, draw)
    lines = content.splitlines()
    place, other = draw.randrange(len(lines)), draw.randrange(len(lines))
    match draw.randrange(6):
        case 0:
            del lines[place]
        case 1:
            lines.insert(other, lines[place])
        case 2:
            lines[place], lines[other] = lines[other], lines[place]
        case 3:
            lines[place] = dump(draw.choice(ODD)).replace(b"\n", b" ")
        case _:
            lines[place] = dump(mutate_value(json.loads(lines[place]), draw)).replace(b"\n", b" ")
    return b"\n".join(lines) + draw.choice((b"\n", b"\n", b""))


def mutate_tensors(content: bytes, draw: random.Random) -> bytes:
    """A safetensors file whose header is changed by structure, or whose bytes are."""
    if draw.random() < 0.4:
        return mutate_bytes(content, draw)
    length = int.from_bytes(content[:8], "little")
    header = dump(mutate_value(json.loads(content[8 : 8 + length]), draw))
    told = draw.choice((len(header), len(header), len(header), 0, 2**40, 2**64 - 1))
    return told.to_bytes(8, "little") + header + content[8 + length :]


def mutate_numbers(content: bytes, draw: random.Random) -> bytes:
    """A binary file one of whose first big-endian 32-bit numbers is changed, as IDX files begin with, or bytes."""
    if draw.random() < 0.4:
        return mutate_bytes(content, draw)
    place = 4 * draw.randrange(4)
    number = draw.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, draw.randrange(2**32)))
    return content[:place] + number.to_bytes(4, "big") + content[place + 4 :]
