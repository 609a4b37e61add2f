"""One thing that an audit found out about a set as a whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """What was found, the numbers behind it, and what an artist can do about it."""

    what: str
    evidence: str
    advice: str

    def to_json(self) -> dict[str, str]:
        return {"what": self.what, "evidence": self.evidence, "advice": self.advice}
