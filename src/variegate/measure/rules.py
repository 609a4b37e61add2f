"""The rules of a verdict, as data: read from a file, versioned, the shipped ones among them."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from variegate.errors import RequestError
from variegate.plugins import Entry


class Gate(Entry):
    """When one measurement earns its label.

    The label stands when the measurement's p is below `alpha`, survives Holm's correction over all
    gates, and `edge` of the measurement is `side` of `warn` (of `fail` for the graver severity).
    edge: which number must be past the margin; an interval's near edge asks that the change be
    surely that large, the value that it be that large at the best guess.
    clear: for gates that must be shown to be well and not merely not shown to be ill: the value
    must be on the good side of `warn` and the interval on the good side of `clear`; else the
    verdict is inconclusive. None: absence of evidence will do.
    recoloured: the same measurement beside the base's pictures in the adapter's colours, which is
    judged in its stead where it is well: then the palette alone became alike, as a style may want;
    it is told in a note. Where that cannot be told, a gate with `clear` alarms beside another label
    and no gate does alone.
    agreed: where further encoders were named, all must read `warn` the same way, else the verdict
    is inconclusive.
    """

    label: Literal["narrowed", "trigger-narrowed", "prompt-ignored", "class-forgotten", "copying"]
    measurement: str
    edge: Literal["low", "value", "high"]
    side: Literal["below", "above"]
    warn: float
    fail: float
    clear: float | None = None
    recoloured: str | None = None
    agreed: bool = False

    @model_validator(mode="after")
    def _clear_is_of_what_may_fall(self) -> Gate:
        if self.clear is not None and self.side == "above":
            raise ValueError("`clear` is for gates whose side is below")
        return self


class Rules(Entry):
    """A versioned set of gates. learnt: likeness whose interval lies below this whole is
    `undertrained`. few_prompts: below this many, claims hold for these prompts only."""

    version: str = Field(min_length=1)
    gates: tuple[Gate, ...] = Field(min_length=1)
    alpha: float = Field(0.01, gt=0, lt=1)
    family: float = Field(0.05, gt=0, lt=1)
    learnt: float = 0.25
    few_prompts: int = Field(7, ge=1)

    @model_validator(mode="after")
    def _one_gate_a_measurement(self) -> Rules:
        if len({gate.measurement for gate in self.gates}) < len(self.gates):
            raise ValueError("two gates have one measurement; give each its own")
        return self

    @staticmethod
    def read(file: Path) -> Rules:
        """Raises: RequestError with every fault of the file at once."""
        try:
            text = file.read_text(encoding="utf8")
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"the rules in {file} cannot be read: {error}") from error
        return _parse(text, str(file))


def _parse(text: str, origin: str) -> Rules:
    try:
        return Rules.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"the rules in {origin} are no TOML: {error}") from error
    except ValidationError as error:
        faults = [
            f"  {'.'.join(map(str, f['loc'])) or 'the file'}: {f['msg']}" for f in error.errors()
        ]
        raise RequestError(f"the rules in {origin} do not hold:\n" + "\n".join(faults)) from error


RULES = _parse(
    resources.files("variegate.measure").joinpath("rules.toml").read_text(encoding="utf8"),
    "rules.toml",
)
