"""Folder of downloaded data, and atomic downloads into it."""

import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

from rlmix.classifier.data.image_set import DataError


def user_folder() -> Path:
    """Return the folder of downloaded data: `$RLMIX_DATA`, or `~/.cache/rlmix/data` where that is not set."""
    return Path(os.environ.get("RLMIX_DATA") or "~/.cache/rlmix/data").expanduser()


def download_whole(
    title: str, target: Path, fetch: Callable[[Path], Path], *, complete: Callable[[], bool], otherwise: str
) -> None:
    """Download into a folder beside `target`, then rename it, so that no part of a download is ever used.

    Args:
        title: name of the data, for the error.
        target: folder to create.
        fetch: downloads, checks and unpacks into the folder it is given; returns the one to be renamed to `target`.
        complete: tells whether `target` holds everything, if another process has created it in the meantime.
        otherwise: advice for a user without the network, for the error.

    Raises:
        DataError: no network, no space, no right to write, or other files than the published ones.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            fetched = fetch(Path(temporary))
            try:
                fetched.rename(target)
            except OSError:
                # Another process may have finished the same download; its copy is as good.
                if not complete():
                    raise
    except (RuntimeError, OSError, HTTPException, EOFError, zlib.error, BadZipFile) as error:
        raise DataError(
            f"{title}: expected its files in a known folder or a download to {target}, got no files and "
            f"{type(error).__name__}: {' '.join(str(error).split())}; run again when the network is there, or "
            f"{otherwise}"
        ) from error


def torchvision_root(
    title: str, kind: Callable[..., Any], folder: str, arguments: Iterable[Mapping[str, Any]], root: Path | None
) -> Path:
    """Return the folder to give one of torchvision's data sets, downloading its files if they are not found.

    Args:
        title: name of the data set, for the error.
        kind: its class in `torchvision.datasets`; it checks MD5 when it downloads.
        folder: folder of its unpacked files, below the one that is returned.
        arguments: arguments of the class for each part of the data set.
        root: folder to look in first; optional.

    Raises:
        DataError: the download failed.
    """
    places = [user_folder()] if root is None else [root, user_folder()]
    for place in places:
        if (place / folder).is_dir():
            return place
    place, top = user_folder(), folder.split("/")[0]

    def fetch(temporary: Path) -> Path:
        for part in arguments:
            kind(temporary, download=True, **part)
        return temporary / top

    complete, otherwise = (place / folder).is_dir, f"put the unpacked folder {folder} in {place}"
    download_whole(title, place / top, fetch, complete=complete, otherwise=otherwise)
    return place
