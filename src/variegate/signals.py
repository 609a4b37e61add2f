"""Stopping when asked: what SIGINT (Ctrl-C) and SIGTERM do.

A verb that can stop at a point to go on from takes the first one as a flag (`stop_on_signals`);
elsewhere it unwinds, so that files close and locks open (`unwinding_on_signals`). Launchers pass on
what the terminal has sent to all of its processes already: what comes within `ONE` second of the
first belongs to it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

ONE = 1.0  # seconds
BOTH = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM came. Like Ctrl-C it is no `Exception`: libraries that catch those while they import
    would otherwise turn it into a fault of their own."""

    number = signal.SIGTERM


class StopFlag:
    """The signal that asked for a stop, or None; `by` is what is told of it."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.by = ""

    def ask(self) -> None:
        """Ask for a stop without a signal; it ends as after Ctrl-C."""
        if self.signal is None:
            self.signal, self.by = signal.SIGINT, "request"

    def raise_flag(self, number: int) -> None:
        """In a signal handler: no reading, no writing, so that nothing is torn by it."""
        if self.signal is not None:
            os._exit(128 + number)
        self.signal, self.by = number, signal.Signals(number).name


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Answer SIGINT or SIGTERM with a flag while the block runs, and the next one by ending the
    process at once.

    Outside of the main thread Python cannot take signals; then the flag is never raised.
    """
    flag = StopFlag()
    with _answering(flag.raise_flag):
        yield flag


@contextmanager
def unwinding_on_signals() -> Iterator[None]:
    """SIGTERM unwinds as Ctrl-C does while the block runs, unless a block within it answers.

    Whoever was started in the background, with SIGINT ignored, goes on ignoring it.
    """

    def unwind(number: int) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    with _answering(unwind, [n for n in BOTH if signal.getsignal(n) != signal.SIG_IGN]):
        yield


@contextmanager
def _answering(
    answer: Callable[[int], None], numbers: Sequence[signal.Signals] = BOTH
) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    answered = -ONE

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal answered
        if (now := time.monotonic()) - answered >= ONE:
            answered = now
            answer(number)

    before = {number: signal.signal(number, hear) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
