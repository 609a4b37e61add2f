"""The manners of the command line: one answer, progress, plain errors, exit codes.

A verb runs inside a `Door`. Whatever happens in there, standard output carries the answer and
nothing else, standard error carries progress and faults, and the exit code says how it ended:

    0 done · 1 the work failed · 2 the request was wrong · 3 `--fail-on` met its label
    130, 143 stopped by SIGINT or SIGTERM
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from variegate.errors import RequestError, VariegateError
from variegate.signals import Terminated, unwinding_on_signals

PLAIN_SECONDS = 5.0  # between two progress lines where there is no terminal


@runtime_checkable
class Stream(Protocol):
    """As much of a text stream as progress needs."""

    def write(self, text: str, /) -> Any: ...
    def flush(self) -> Any: ...
    def isatty(self) -> bool: ...
    def fileno(self) -> int: ...


class Progress:
    """Tells how far each phase is: a live line on a terminal, a line now and then elsewhere.

    It is the `say` of every verb: `say(phase, done, total, note)`. Rate and time left count from
    where the phase was first heard of, so that a resumed run does not boast. A total of 0 means
    that the end is not known.
    """

    def __init__(self, stream: Stream, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._live = stream.isatty() and not quiet and os.environ.get("TERM") != "dumb"
        self._phase = ""
        self._start = (0.0, 0)
        self._spoke = 0.0
        self._width = 0

    def __call__(self, phase: str, done: int, total: int, note: str = "") -> None:
        if self._quiet:
            return
        now = time.monotonic()
        if phase != self._phase:
            self.rest()
            self._phase, self._start, self._spoke = phase, (now, done), float("-inf")
        finished = total > 0 and done >= total
        pause = 0.1 if self._live else PLAIN_SECONDS
        if now - self._spoke < pause and not finished:
            return
        self._spoke = now
        line = self._line(now, done, total, note)
        if self._live:
            columns = max(20, _columns(self._stream) - 1)
            line = line[:columns]
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def rest(self) -> None:
        """Leave the live line as it stands and go on below it."""
        if self._live and self._width:
            self._stream.write("\n")
            self._stream.flush()
        self._width = 0

    def _line(self, now: float, done: int, total: int, note: str) -> str:
        seconds, steps = now - self._start[0], done - self._start[1]
        parts = [self._phase]
        if total > 0:
            parts.append(f"{done}/{total}")
        elif done > 0:
            parts.append(str(done))
        if steps > 0 and seconds > 0.5:
            rate = steps / seconds
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
            if done < total:
                parts.append(f"{spell_seconds((total - done) / rate)} left")
        if note:
            parts.append(printable(note))
        return "  ".join(parts)


class Door:
    """What every verb goes through. Used as a context; `answer` says what goes to standard output.

    as_json: exactly one JSON document, also for an error: `{"error": {"kind", "message"}}`.
    quiet: no progress; faults are still told.
    debug: the traceback of an unexpected fault, and the log of what was decided.

    Of several processes that were started together (`torchrun`) the first one alone answers and
    tells how far it is; faults are told by all.
    """

    def __init__(self, *, as_json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self.mute = (
            int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"
        )
        self.as_json = as_json and not self.mute
        self.quiet, self.debug = quiet or self.mute, debug
        self.say = Progress(sys.stderr, quiet=self.quiet)
        self.exit_code = 0
        self._document: Any = None
        self._text = ""
        self._stack = contextlib.ExitStack()

    def answer(self, document: Any, text: str, *, exit_code: int = 0) -> None:
        """Set the one answer: a JSON-ready document, and the same for people."""
        self._document, self._text, self.exit_code = document, text, exit_code

    def warn(self, message: str) -> None:
        """Tell people something beside the answer."""
        self.say.rest()
        print(printable(message), file=sys.stderr)

    def tell(self, message: str) -> None:
        """As `warn`, of what is no fault: kept back where no progress is wanted."""
        if not self.quiet:
            self.warn(message)

    def __enter__(self) -> Door:
        _calm_third_parties(self.debug)
        # A library that prints must not spoil the answer.
        self._stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        self._stack.enter_context(unwinding_on_signals())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.say.rest()
        self._stack.close()
        if error is not None:
            if isinstance(error, SystemExit):
                return
            self._tell(error)
        elif self.as_json:
            self._print(json.dumps(self._document, allow_nan=False))
        elif self._text and not self.mute:
            self._print(printable(self._text, keep="\n"))
        raise SystemExit(self.exit_code)

    def _print(self, text: str) -> None:
        try:
            try:
                print(text)
            except UnicodeEncodeError:  # a terminal of other letters
                encoding = sys.stdout.encoding
                print(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
        except BrokenPipeError:
            # The reader left, as `head` does; Python would complain once more while closing.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit_code = 128 + 13
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.exit_code = 1
            print(f"the answer cannot be written: {error.strerror}", file=sys.stderr)

    def _tell(self, error: BaseException) -> None:
        self.exit_code, message = _explain(error)
        if self.debug:
            traceback.print_exception(error)
        print(printable(message, keep="\n"), file=sys.stderr)
        if self.as_json:
            fault = {"kind": type(error).__name__, "message": message}
            self._print(json.dumps({"error": fault}))


def _explain(error: BaseException) -> tuple[int, str]:
    if isinstance(error, VariegateError):
        return error.exit_code, str(error)
    if isinstance(error, Terminated):
        return 128 + signal.SIGTERM, "stopped by SIGTERM"
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT, "stopped by Ctrl-C"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return 1, (
            f"{error.filename}: {error.strerror}; change its permissions, free some space, or name "
            "another place"
        )
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        around = ascii(error.object[max(0, error.start - 40) : error.end + 40])
        return RequestError.exit_code, (
            f"{around} holds bytes that are no UTF-8; name the folder or file anew, or write the "
            "word in UTF-8"
        )
    what = " ".join(str(error).split()) or "no message"
    return 1, (
        f"unexpected {type(error).__name__}: {what}\n"
        "This is a fault in variegate or below it; run again with --debug for the traceback."
    )


def _calm_third_parties(debug: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.DEBUG if debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s" if debug else "%(levelname)s: %(message)s",
    )
    for name in ("PIL", "matplotlib", "urllib3", "filelock", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not debug:
        warnings.simplefilter("ignore")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TQDM_DISABLE", "1")


def _columns(stream: Stream) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns
    except OSError:
        return 80


def spell_seconds(seconds: float) -> str:
    """A time as people say it.

    >>> spell_seconds(42.0), spell_seconds(200.0), spell_seconds(7300.0)
    ('42 s', '3 min 20 s', '2 h 1 min')
    """
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def printable(text: str, *, keep: str = "") -> str:
    """The text with control and direction marks shown, so that a caption cannot drive a terminal.

    >>> printable("a\\x1b[31m owl")
    'a\\\\x1b[31m owl'
    """
    return "".join(
        c if c in keep or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
