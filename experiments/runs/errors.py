"""Errors of a user, reported in one line, and the exit status of a command."""

import errno
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rlmix.classifier.errors import InputError


class RunError(InputError):
    """A run cannot start or be resumed; the message says what was expected, what came, and what to do."""


STORAGE = {  # errors of a disk, not of the program
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
}
# Raised where a value that was read back is not of the type, or has not the entries, that this program stores.
UNEXPECTED_VALUE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


@contextmanager
def exit_on_user_error(resume: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Turn a user's mistake into one line on standard error and exit status 2, and an interrupt into status 130.

    Everything else is a bug and keeps its traceback; with RLMIX_DEBUG=1 in the environment a mistake has one too.

    Args:
        resume: gives the command that resumes after an interrupt or a full disk, or None.
    """
    hook, threading.excepthook = threading.excepthook, _thread_error
    try:
        yield
    except InputError as error:
        _print_traceback(error)
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt as error:
        _print_traceback(error)
        hint = resume()
        print(f"\ninterrupted{'' if hint is None else '; resume with: ' + hint}", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(128 + signal.SIGPIPE)  # as other programs end, in a pipe to `head` for instance
        if error.errno not in STORAGE:
            raise
        _print_traceback(error)
        hint = resume()
        print(
            f"error: {error.filename or 'a file of this run'}: {error.strerror}; make room there or give permission, "
            f"then {'start again' if hint is None else 'resume with: ' + hint}",
            file=sys.stderr,
        )
        sys.exit(2)
    finally:
        threading.excepthook = hook


def _nobody_reads() -> bool:
    """Return whether standard output is a pipe that has been closed; what is still to be written there is dropped."""
    try:
        place = sys.stdout.fileno()
    except OSError:  # a test's
        return False
    poll = select.poll()
    poll.register(place, 0)
    closed = any(events & select.POLLERR for _, events in poll.poll(0))
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return closed


def _print_traceback(error: BaseException) -> None:
    if os.environ.get("RLMIX_DEBUG", "0") in ("", "0"):
        return
    cause: BaseException | None = error
    while cause is not None:  # what a message replaced is what a developer looks for
        cause.__suppress_context__ = False
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)


def _thread_error(failed: threading.ExceptHookArgs) -> None:
    """Report a disk error of TensorBoard's writing thread in one line, as elsewhere."""
    if isinstance(failed.exc_value, OSError) and failed.exc_value.errno in STORAGE:
        print(f"warning: TensorBoard's events cannot be written: {failed.exc_value}", file=sys.stderr)
    else:
        threading.__excepthook__(failed)


@contextmanager
def reject_incompatible(what: object) -> Iterator[None]:
    """Convert errors raised while stored state is restored into a `RunError` with a one-line message.

    Only for blocks that read and restore: in any other code such an error is a bug of this program.

    Args:
        what: file or folder that the state was read from.

    Raises:
        RunError: the file is whole, but holds other state than this run would have stored.
    """
    try:
        yield
    except InputError:
        raise
    except UNEXPECTED_VALUE as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split()):.200}"
        raise RunError(
            f"{what}: does not fit this run ({reason}); it was changed, or is another run's: restore or delete it"
        ) from error


@contextmanager
def reject_unfinished(path: Path) -> Iterator[None]:
    """Convert errors raised while a run's files are read into a `RunError` with a one-line message.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, *UNEXPECTED_VALUE) as error:
        raise RunError(
            f"{path}: expected the files of a finished run, got {type(error).__name__}: {error}; let it end first "
            "(--resume), or restore what is missing"
        ) from error
