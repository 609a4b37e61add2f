"""One number that knows itself, and the verdict that rests on such numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower", "neither"]
Label = Literal[
    "healthy",
    "narrowed",
    "trigger-narrowed",
    "prompt-ignored",
    "class-forgotten",
    "copying",
    "undertrained",
    "inconclusive",
]
Severity = Literal["warn", "fail"]


@dataclass(frozen=True)
class Measurement:
    """A value with its interval (low, high: 95 % unless `source` says otherwise), the number n of
    independent units behind it, its direction, unit, the optimizer step it was taken at (None
    when it belongs to a finished adapter), how it was computed, and the plainest single case of it,
    in words, where there is one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    better: Better = "neither"
    unit: str = ""
    step: int | None = None
    source: str = ""
    example: str = ""

    def __post_init__(self) -> None:
        for key in ("value", "low", "high"):
            number = getattr(self, key)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{self.name}: {key} is {number}; use Missing instead")

    def to_json(self) -> dict[str, Any]:
        left_out = {"step": None, "example": ""}
        return {k: v for k, v in vars(self).items() if not (k in left_out and v == left_out[k])}


@dataclass(frozen=True)
class Missing:
    """A number that could not be had, and why."""

    name: str
    why: str

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "missing": self.why}


def measurement_from_json(data: dict[str, Any]) -> Measurement | Missing:
    if "missing" in data:
        return Missing(data["name"], data["missing"])
    return Measurement(**{k: data[k] for k in Measurement.__dataclass_fields__ if k in data})


@dataclass(frozen=True)
class Reason:
    """Why a label stands: the measurement, and one plain sentence that names the evidence."""

    label: Label
    severity: Severity
    measurement: str
    sentence: str


@dataclass(frozen=True)
class Advice:
    """What to try, with which setting, what it is expected to do, and how that is known."""

    strategy: str
    setting: str
    expected: str
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """Labels, reasons and advice: a pure function of the measurements under one rules version.

    sentence: the gravest finding and what else was found, in one sentence; the reasons name the
    evidence. notes: what weakens the claims (what was not tested, an encoder out of its depth).
    """

    labels: tuple[Label, ...]
    sentence: str
    reasons: tuple[Reason, ...]
    advice: tuple[Advice, ...]
    measurements: tuple[Measurement | Missing, ...]
    rules: str
    encoders: tuple[str, ...] = ()
    weak_encoder: bool = False
    plan: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def find(self, name: str) -> Measurement | None:
        """The measurement of that name, or None when it is missing."""
        for m in self.measurements:
            if m.name == name and isinstance(m, Measurement):
                return m
        return None

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "sentence": self.sentence,
            "reasons": [vars(r) for r in self.reasons],
            "advice": [vars(a) for a in self.advice],
            "measurements": [m.to_json() for m in self.measurements],
            "rules": self.rules,
            "encoders": list(self.encoders),
            "weak_encoder": self.weak_encoder,
            "plan": self.plan,
            "notes": list(self.notes),
        }

    @staticmethod
    def from_json(data: dict[str, Any]) -> Verdict:
        return Verdict(
            labels=tuple(data["labels"]),
            sentence=data["sentence"],
            reasons=tuple(Reason(**r) for r in data["reasons"]),
            advice=tuple(Advice(**a) for a in data["advice"]),
            measurements=tuple(measurement_from_json(m) for m in data["measurements"]),
            rules=data["rules"],
            encoders=tuple(data.get("encoders", ())),
            weak_encoder=bool(data.get("weak_encoder", False)),
            plan=dict(data.get("plan", {})),
            notes=tuple(data.get("notes", ())),
        )
