"""Errors of a user, told in one line, and the exit status of a command."""

import errno
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rlmix.classifier.errors import InputError


class RunError(InputError):
    """A run that cannot start or go on; the message says what was expected, what came, and what to do."""


STORAGE = {  # what is wrong with a disk, not with the program
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}


@contextmanager
def user_errors(resume_hint: str | None = None) -> Iterator[None]:
    """Turn what a user can mend into one line on standard error and exit status 2, and an interrupt into status 130.

    Args:
        resume_hint: how to go on after an interrupt or a full disk; none = nothing to go on with.
    """
    hook, threading.excepthook = threading.excepthook, _thread_error
    try:
        yield
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"\nstopped{'' if resume_hint is None else '; go on with: ' + resume_hint}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if error.errno not in STORAGE:
            raise
        print(
            f"error: {error.filename or 'a file of this run'}: {error.strerror}; make room there or give permission, "
            f"then {'start again' if resume_hint is None else 'go on with: ' + resume_hint}",
            file=sys.stderr,
        )
        sys.exit(2)
    finally:
        threading.excepthook = hook


def _thread_error(failed: threading.ExceptHookArgs) -> None:
    """TensorBoard writes in a thread; a disk that fails there is told in one line, as elsewhere."""
    if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in STORAGE:
        print(f"warning: TensorBoard's events cannot be written: {failed.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


@contextmanager
def fitting(what: object) -> Iterator[None]:
    """Turn what goes wrong while a program takes over something that it has stored into one line.

    Args:
        what: the file or folder that it was read from.

    Raises:
        RunError: what was stored is whole, but not what this run would have stored.
    """
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise RunError(
            f"{what}: does not fit this run ({reason}); it was changed, or is another run's: restore or delete it"
        ) from error
