"""Images as users have them, made wrong: zip files of folders, MedMNIST's .npz files, tables of file and class."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.soak.mutations import mutate_bytes

NAMES = ("..", "../../a.png", "/etc/passwd", "C:\\a.png", "a/" * 500 + "a.png", "\x00.png", "train/cat/", "", "train")
CELLS = ("", "..", "../../../etc/passwd", "/dev/zero", "0.png", "absent.png", "nan", "9" * 5_000, "1e400", "\ud800")
CELLS += ("a" * 200_000, '"', "\x00", "train", "label", "file", "cat\ndog", "λ", "=cmd()", "1.0", "-1", "images")


def make_zip(folder: Path) -> None:
    """A zip file of a folder of images with train, val and test."""
    with zipfile.ZipFile(folder / "set.zip", "w", zipfile.ZIP_DEFLATED) as target:
        for number, part in enumerate(("train", "val", "test")):
            for label, name in enumerate(("cat", "dog")):
                for image, ending in enumerate(("png", "jpeg", "gif", "bmp")):
                    pixels = np.random.default_rng([number, label, image]).integers(0, 256, (12, 10, 3), np.uint8)
                    content = io.BytesIO()
                    Image.fromarray(pixels).save(content, ending)
                    target.writestr(f"{part}/{name}/{image}.{ending}", content.getvalue())


def mutate_zip(content: bytes, draw: random.Random) -> bytes:
    """A zip file with damaged bytes, headers that lie, or entries of other names, twice, or very large."""
    kind = draw.random()
    if kind < 0.3:
        return mutate_bytes(content, draw)
    if kind < 0.6:
        return _lie(content, draw)
    files = _entries(content)
    name = draw.choice(list(files))
    if draw.random() < 0.5:
        files[name] = draw.choice((b"", mutate_bytes(files[name], draw), files[draw.choice(list(files))]))
    else:
        files[draw.choice((*NAMES, name.upper(), f"{name}/{name}", name.replace("/", "\\")))] = files.pop(name)
    packed = _pack(files)
    return _with_bomb(packed, name) if draw.random() < 0.05 else packed


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        return {name: source.read(name) for name in source.namelist()}


def _pack(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(zipfile.ZipInfo(name), content)
    return packed.getvalue()


def _lie(content: bytes, draw: random.Random) -> bytes:
    """Change a field of a local or central header: flags, method, time, checksum, sizes, lengths of names."""
    changed = bytearray(content)
    signature, fields = draw.choice(((b"PK\x01\x02", range(6, 46, 2)), (b"PK\x03\x04", range(6, 30, 2))))
    places = [place for place in range(len(content) - 46) if content[place : place + 4] == signature]
    place = draw.choice(places) + draw.choice(list(fields))
    struct.pack_into("<H", changed, place, draw.choice((0, 1, 8, 14, 99, 0x7FFF, 0xFFFF, draw.randrange(2**16))))
    return bytes(changed)


@cache
def _zeros() -> bytes:
    """2 GiB of zeros, deflated without a header: some MiB."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    block = bytes(2**24)
    return b"".join(packer.compress(block) for _ in range(128)) + packer.flush()


def _with_bomb(content: bytes, name: str) -> bytes:
    """Put in place of an entry's content 2 GiB of zeros, in a zip file of its own, beside what the other holds."""
    files = _entries(content) if content else {}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as target:
        target.writestr(name, _zeros())
        for other, own in files.items():
            target.writestr(zipfile.ZipInfo(other), own)
    whole = bytearray(packed.getvalue())
    for signature, offset, sizes in ((b"PK\x03\x04", 8, 18), (b"PK\x01\x02", 10, 20)):
        place = whole.index(signature)
        struct.pack_into("<H", whole, place + offset, zipfile.ZIP_DEFLATED)
        struct.pack_into("<II", whole, place + sizes, len(_zeros()), 2**31 - 1)
    return bytes(whole)


def make_npz(folder: Path) -> None:
    """MedMNIST's layout with few images."""
    random = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 20), ("val", 6), ("test", 6)):
        arrays[f"{part}_images"] = random.integers(0, 256, (count, 6, 6), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count, dtype=np.uint8) % 3)[:, None]
    np.savez_compressed(folder / "set.npz", **arrays)


def mutate_npz(content: bytes, draw: random.Random) -> bytes:
    """An .npz file damaged as a zip file, or with an array's header or bytes changed, or with another array."""
    kind = draw.random()
    if kind < 0.3:
        return mutate_zip(content, draw)
    files = _entries(content)
    name = draw.choice(list(files))
    if kind < 0.6:
        shapes = (b"(20,)", b"(-1,)", b"(20, 6, 6, 3)", b"(2**40,)", b"(9999999999, 6)", b"()", b"(0, 6, 6)", b"{}")
        types = (b"'|O'", b"'<f8'", b"'|u1'", b"[('a', '|u1')]", b"'|V99999999'", b"'<U9'", b"'?'", b"1")
        header, rest = files[name][10:128], files[name][128:]
        shape = header[header.index(b"(") : header.index(b")") + 1]
        header = header.replace(
            *((shape, draw.choice(shapes)) if draw.random() < 0.5 else (b"'|u1'", draw.choice(types)))
        )
        files[name] = files[name][:8] + struct.pack("<H", len(header)) + header + rest
    elif kind < 0.8:
        files[name] = mutate_bytes(files[name], draw)
    else:
        odd = (np.zeros((20, 6, 6)), np.zeros(0, np.uint8), np.array(["a"] * 20), np.arange(20) - 5, np.uint64(2**63))
        array = io.BytesIO()
        np.save(array, draw.choice((*odd, np.full(20, 2**62), np.array([None] * 3, dtype=object))), allow_pickle=True)
        files[name] = array.getvalue()
    return _pack(files)


def make_table(folder: Path) -> None:
    """A table of file and class with its images."""
    lines = ["file,label,split"]
    for number in range(12):
        Image.new("RGB", (8, 8), (20 * number, 0, 0)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{('cat', 'dog')[number % 2]},{('train', 'train', 'val', 'test')[number // 2 % 4]}")
    (folder / "set.csv").write_text("\n".join(lines))


def mutate_table(content: bytes, draw: random.Random) -> bytes:
    """A table with damaged bytes, other cells, lines left out or repeated, or another encoding."""
    kind = draw.random()
    if kind < 0.2:
        return mutate_bytes(content, draw)
    if kind < 0.25:
        return content.decode().encode(draw.choice(("utf-16", "utf-32", "utf-8-sig")))
    rows = [line.split(",") for line in content.decode().split("\n")]
    for _ in range(draw.choice((1, 1, 2, 5))):
        row = draw.choice(rows)
        match draw.randrange(6):
            case 0:
                rows.remove(row)
            case 1:
                rows.insert(draw.randrange(len(rows) + 1), row)
            case 2:
                row.append(draw.choice(CELLS))
            case _ if row:
                row[draw.randrange(len(row))] = draw.choice(CELLS)
    delimiter = draw.choice((",", ",", ";", "\t"))
    text = draw.choice(("\n", "\r\n", "\n\n")).join(delimiter.join(row) for row in rows)
    return text.encode("utf-8", "surrogatepass")
