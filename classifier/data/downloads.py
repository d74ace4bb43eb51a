"""Folder of downloaded data, and atomic downloads into it."""

import os
import tempfile
import zlib
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
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
