"""Every error that variegate raises on purpose, drawn as a tree.

    VariegateError
    ├── RequestError        the request was wrong (exit 2)
    │   ├── RecipeError     a recipe with unknown, missing or impossible entries
    │   ├── ImagesError     a folder or picture that cannot be used
    │   ├── BaseError       a base model that cannot be found or read
    │   ├── AdapterError    an adapter file that cannot be read or does not fit
    │   ├── EncoderError    an encoder that cannot be found or does not fit
    │   ├── CaptionerError  a captioning model that cannot be found or read, or fails
    │   ├── FeaturesError   a table of features that cannot be measured
    │   ├── RunError        a run folder that is missing, foreign or changed
    │   │   └── RunLocked   another process is at work in the folder
    │   └── EmptyImageSet   a measure was asked of no pictures
    ├── WorkError           the work failed (exit 1)
    │   ├── NotFinite       a NaN or infinity where a number must stand
    │   ├── NoSpace         the disk is full or not writable
    │   ├── WorkerLost      a process at work on a piece died more than once
    │   └── NoMemory        a batch that does not fit, in parts either
    └── Interrupted         a signal stopped the work at a resumable point (exit 130 or 143)

A message is made of facts: what is wrong, where, what was found, what was expected, what to try.
"""

from __future__ import annotations


class VariegateError(Exception):
    """The root; `exit_code` is what the command line returns for it."""

    exit_code = 1


class RequestError(VariegateError):
    exit_code = 2


class RecipeError(RequestError):
    pass


class ImagesError(RequestError):
    pass


class BaseError(RequestError):
    pass


class AdapterError(RequestError):
    pass


class EncoderError(RequestError):
    pass


class CaptionerError(RequestError):
    pass


class FeaturesError(RequestError):
    pass


class RunError(RequestError):
    pass


class RunLocked(RunError):
    pass


class EmptyImageSet(RequestError):
    pass


class WorkError(VariegateError):
    pass


class NotFinite(WorkError):
    pass


class NoSpace(WorkError):
    pass


class NoMemory(WorkError):
    pass


class WorkerLost(WorkError):
    pass


class Interrupted(VariegateError):
    """Stopped by a signal after saving; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return Interrupted, (str(self), self.signal_number)  # it comes home from other processes
