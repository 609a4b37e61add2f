"""Signals are raised in processes of their own: the tests' own process keeps its handlers."""

import subprocess
import sys
import textwrap

import pytest
from tests.train.test_resume import CHILD

AHEAD = """
import signal, sys, time
from variegate import signals
now = [0.0]
signals.time.monotonic = lambda: now[0]
"""


def run(code: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", AHEAD + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=CHILD,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("apart", "ends"), [(0.4, (0, "still here\n")), (1.0, (130, ""))])
def test_a_second_signal_ends_the_process_at_once_unless_it_belongs_to_the_first(
    apart: float, ends: tuple[int, str]
) -> None:
    """As where a launcher passes on the Ctrl-C that the terminal has sent to all."""
    code = f"""
    with signals.stop_on_signals() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            now[0] += {apart / 2}
        assert stop.signal == signal.SIGTERM
    print("still here")
    """
    assert run(code) == ends


def test_what_unwinds_is_not_torn_by_the_same_signal_again() -> None:
    code = """
    try:
        with signals.unwinding_on_signals():
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:
                signal.raise_signal(signal.SIGTERM)
                print("closed")
    except signals.Terminated:
        print("unwound")
    """
    assert run(code) == (0, "closed\nunwound\n")


@pytest.mark.parametrize("ignored", [False, True])
def test_in_the_background_ctrl_c_stays_ignored(ignored: bool) -> None:
    code = f"""
    signal.signal(signal.SIGINT, signal.SIG_IGN if {ignored} else signal.default_int_handler)
    try:
        with signals.unwinding_on_signals():
            signal.raise_signal(signal.SIGINT)
            print("went on")
    except KeyboardInterrupt as error:
        print("unwound", type(error).__name__)
    signal.raise_signal(signal.SIGINT) if {ignored} else None
    """
    assert run(code) == (0, "went on\n" if ignored else "unwound KeyboardInterrupt\n")
