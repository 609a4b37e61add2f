"""Stopping when asked: the first signal sets a flag, the second ends the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """The signal that asked for a stop, or None; `by` is what is told of it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.by = ""

    def ask(self) -> None:
        """Ask for a stop without a signal; it ends as after Ctrl-C."""
        if self.signal is None:
            self.signal, self.by = signal.SIGINT, "request"

    def raise_flag(self, number: int, frame: FrameType | None) -> None:
        """A signal handler: no reading, no writing, so that nothing is torn by it."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal, self.by = number, signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Answer SIGINT and SIGTERM with a flag while the block runs.

    Outside of the main thread Python cannot take signals; then the flag is never raised.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {n: signal.signal(n, flag.raise_flag) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
