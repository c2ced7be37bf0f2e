"""Ctrl-C and SIGTERM: once finishes what runs, twice stops now."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopLevel(IntEnum):
    NONE = 0
    DRAIN = 1
    """Start nothing new, finish what runs."""
    NOW = 2
    """Abandon what runs; it is run again at resume."""


class StopRequest:
    """A request to stop that only rises; safe to raise from a signal handler and to read from any thread."""

    def __init__(self) -> None:
        self._level = StopLevel.NONE

    @property
    def level(self) -> StopLevel:
        return self._level

    def raise_to(self, level: StopLevel) -> None:
        """Ask for at least `level`."""
        self._level = max(level, self._level)

    def rise(self) -> None:
        """One level up: what a further Ctrl-C asks for."""
        self.raise_to(StopLevel(min(self._level + 1, StopLevel.NOW)))


@contextmanager
def signals_raise(stop: StopRequest) -> Iterator[None]:
    """SIGINT and SIGTERM raise `stop` by a level each while this is open; the old handlers come back after.

    One more when it is at NOW already raises KeyboardInterrupt wherever the main thread is.

    Only the main thread can receive signals; elsewhere (a notebook's worker, a test) this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(_signum: int, _frame: FrameType | None) -> None:
        if stop.level is StopLevel.NOW:
            raise KeyboardInterrupt
        stop.rise()

    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def endings_interrupt() -> Iterator[None]:
    """SIGTERM and a closed terminal (SIGHUP) raise KeyboardInterrupt while this is open, as Ctrl-C does.

    Without it they end the process at once, and what it has started lives on. Only the main thread can receive signals;
    elsewhere this does nothing. A signal that was ignored before (`nohup`) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    endings = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in endings}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
