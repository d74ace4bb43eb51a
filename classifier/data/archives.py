"""Folders and files, on disk or inside a zip file: `set.zip/train/cat/1.png` names a file in `set.zip`.

Files are read straight from the zip; nothing is unpacked to disk. Hidden names are passed over: those that begin with a
dot, and the `__MACOSX` folder of zips that macOS makes.
"""

import os
import stat
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

from rlmix.classifier.data.image_set import DataError

MAX_BYTES = 2**28  # of a file, unpacked
MAX_DEPTH = 64  # folders in a zip within each other
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError)


@dataclass(frozen=True)
class Entries:
    """Names of a folder's visible folders and files, each in alphabetical order."""

    folders: tuple[str, ...]
    files: tuple[str, ...]


def printable(path: str | Path) -> str:
    """Return a path that can be printed, with \\x.. for line ends and bytes that are not UTF-8."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return text.replace("\n", "\\x0a").replace("\r", "\\x0d")


def same_name(name: str) -> str:
    """Return what names have in common that people read as one: in any case, as macOS or others write accents."""
    return unicodedata.normalize("NFC", name).casefold().strip()


def list_folder(path: str | Path) -> Entries:
    """List a folder; links are followed.

    Raises:
        DataError: a zip file that cannot be used.
        OSError: it cannot be read, or is no folder.
    """
    zipped = _in_zip(path)
    if zipped is not None:
        archive, inside = zipped
        if inside not in archive.folders:
            raise FileNotFoundError(2, "no such folder in the zip file", os.fspath(path))
        return archive.folders[inside]
    with os.scandir(path) as entries:
        visible = [(entry.name, _is_folder(entry)) for entry in entries if _visible(entry.name)]
    folders = sorted(name for name, is_folder in visible if is_folder)
    return Entries(tuple(folders), tuple(sorted(name for name, is_folder in visible if not is_folder)))


def open_file(path: str | Path) -> IO[bytes]:
    """Open a file for reading.

    Raises:
        DataError: it has more than `MAX_BYTES`, or lies in a zip file that cannot be used.
        OSError, and any of `ZIP_ERRORS`: it cannot be read.
    """
    zipped = _in_zip(path)
    if zipped is None:
        file: IO[bytes] = open(path, "rb")
        size = os.fstat(file.fileno()).st_size
    else:
        archive, inside = zipped
        if inside not in archive.files:
            raise FileNotFoundError(2, "no such file in the zip file", os.fspath(path))
        entry = archive.files[inside]
        if entry.compress_size > archive.length:  # as many bytes would be asked for
            raise zipfile.BadZipFile(f"{entry.compress_size:,} bytes in a zip file of {archive.length:,}")
        file, size = archive.source.open(entry), entry.file_size  # which never gives more than this size
    if size > MAX_BYTES:
        file.close()
        raise DataError(f"{printable(path)}: expected a file of at most {MAX_BYTES:,} bytes; make it smaller")
    return file


def is_file(path: str | Path) -> bool:
    """Return whether there is a file of this name.

    Raises:
        DataError: it would lie in a zip file that cannot be used.
    """
    zipped = _in_zip(path)
    return os.path.isfile(path) if zipped is None else zipped[1] in zipped[0].files


def is_zip(path: str | Path) -> bool:
    """Return whether a path is that of a zip file, by its ending, or lies in one."""
    return _in_zip(path) is not None


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads back to itself
        return False


@dataclass(frozen=True)
class _Archive:
    """A zip file's visible files and folders, by their paths inside it; the folder "" is the whole."""

    source: zipfile.ZipFile
    length: int  # bytes
    files: dict[str, zipfile.ZipInfo]
    folders: dict[str, Entries]


def _in_zip(path: str | Path) -> tuple[_Archive, str] | None:
    """Return the zip file that a path leads into, and the rest of the path; None for a path on disk."""
    text = os.fspath(path)
    lower = text.lower()
    end = lower.find(".zip")
    while end >= 0:
        end += len(".zip")
        if end == len(text) or text[end] == "/":
            try:
                status = os.stat(text[:end])
            except (OSError, ValueError):
                return None
            if stat.S_ISREG(status.st_mode):
                # Once per process: forked ones would share one place in the file.
                key = (status.st_size, status.st_mtime_ns, status.st_ino, os.getpid())
                return _open_zip(text[:end], key), text[end:].strip("/")
        end = lower.find(".zip", end)
    return None


@lru_cache(maxsize=4)
def _open_zip(path: str, key: tuple[int, ...]) -> _Archive:
    try:
        source = zipfile.ZipFile(path)
    except (OSError, *ZIP_ERRORS) as error:
        raise DataError(
            f"{printable(path)}: expected a whole zip file, got {type(error).__name__}: {printable(str(error)):.300}; "
            "copy or download it again"
        ) from error
    files: dict[str, zipfile.ZipInfo] = {}
    content: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
    for entry in source.infolist():
        name = entry.filename.replace("\\", "/")  # as some programs on Windows write them
        parts = [part for part in name.split("/") if part not in ("", ".")]
        drive = bool(parts) and len(parts[0]) == 2 and parts[0].endswith(":")
        if name.startswith("/") or ".." in parts or drive or len(parts) > MAX_DEPTH:
            source.close()
            raise DataError(
                f"{printable(path)}: expected paths inside the zip file, at most {MAX_DEPTH} folders deep, got "
                f"{printable(name)!r:.200}; pack the folder again, from within it"
            )
        if not parts or not all(map(_visible, parts)) or stat.S_ISLNK(entry.external_attr >> 16):
            continue
        folder = ""
        for part in parts if entry.is_dir() or name.endswith("/") else parts[:-1]:
            inner = f"{folder}/{part}" if folder else part
            if inner not in content:
                content[folder][0].add(part)
                content[inner] = (set(), set())
            folder = inner
        if not name.endswith("/"):
            content[folder][1].add(parts[-1])
            files["/".join(parts)] = entry
    folders = {name: Entries(tuple(sorted(inner)), tuple(sorted(own))) for name, (inner, own) in content.items()}
    return _Archive(source, key[0], files, folders)
