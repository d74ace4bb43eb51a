"""Ctrl-C and SIGTERM."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import NoReturn


class StopSignal:
    """Ctrl-C and SIGTERM as a question that a loop asks when it can stop; a second one interrupts at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "StopSignal":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interrupt_later() -> Iterator[None]:
    """Put Ctrl-C and SIGTERM off while processes are started; Ctrl-C never reaches these, whatever they are doing."""
    resource_tracker.ensure_running()  # starting it, as the first spawned process does, would let Ctrl-C through again
    with StopSignal() as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            yield
        except (EOFError, ConnectionError):
            if not stop.asked:  # else a SIGTERM to all ended what was started
                raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if stop.asked:
        raise KeyboardInterrupt


def interrupt_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
