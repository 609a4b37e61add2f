"""Whether the pictures all face one way: each is compared with what its mirror image would be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from variegate import seeds
from variegate.audit.descriptors import UNRELATED, Look
from variegate.audit.finding import Finding

LEAST = 8  # pictures; with fewer, chance alone puts them on one side too often to tell
ONE_SIDED = 0.3  # of what left and right differ by is common to all
UNEVEN = 0.25  # how far a picture is from its mirror image, in units of unrelated pictures
SURE = 0.01
DRAWS = 2000  # of which pictures chance mirrors
# What must not be mirrored, by what captions say: a side that would no longer hold, or lettering.
_HANDED = re.compile(
    r"\b(left|right|clockwise|text|letters?|lettering|logo|words?|writing|written|numbers?|digits?"
    r"|sign|signs|label|poster|book|newspaper|title|clock|watch|map|flag)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sides:
    """share: of what differs between left and right, how much the pictures have in common: about 0
    where they face either way, 1 where all face one way. p: how often it comes to as much when
    chance mirrors each of them. uneven: the median distance of a picture from its mirror image, in
    units of unrelated pictures. lean: how much each adds to the common side; negative on the other.
    """

    share: float
    p: float
    uneven: float
    lean: Float[np.ndarray, "n"]

    @property
    def one_sided(self) -> bool:
        return (
            len(self.lean) >= LEAST
            and self.share >= ONE_SIDED
            and self.uneven >= UNEVEN
            and self.p <= SURE
        )

    def to_mirror(self) -> list[int]:
        """The pictures that, mirrored, leave no common side: at each, from the most one-sided on,
        whatever brings the sum nearer to none."""
        total, chosen = 0.0, []
        for i in sorted(range(len(self.lean)), key=lambda i: (-abs(self.lean[i]), i)):
            side = float(self.lean[i])
            if side > 0 and abs(total - side) < abs(total + side):
                chosen.append(i)
                side = -side
            total += side
        return sorted(chosen)


def measure_sides(looks: Sequence[Look], hashes: Sequence[str]) -> Sides:
    """How one-sided a set is, by its coarse grids of colour. hashes: of the files' bytes, by which
    chance goes, so that the order of the pictures changes nothing.

    With a the half of what a picture differs from its mirror image, the share is the sum of a_i a_j
    over pairs, against what it would be if all were alike. Mirroring a picture turns the sign of
    its a; the test is that of all pictures having been mirrored by chance.
    """
    if not looks:
        return Sides(0.0, 1.0, 0.0, np.zeros(0))
    odd = np.stack([(x.composition - x.mirrored_composition).ravel() / 2 for x in looks])
    cells = odd.shape[1] / 3
    uneven = 2 * np.sqrt((odd**2).sum(1) / cells) / UNRELATED["composition"]
    energy, common = float((odd**2).sum()), odd.sum(0)
    n = len(odd)
    if energy <= 0 or n < 2:
        return Sides(0.0, 1.0, float(np.median(uneven)), np.zeros(n))
    signs = seeds.numpy_at(0, "sides", n).choice([-1.0, 1.0], size=(DRAWS, n))
    drawn = ((signs @ odd[np.argsort(hashes, kind="stable")]) ** 2).sum(1)
    found = float((common**2).sum())
    lean = odd @ common / np.sqrt(found) if found > 0 else np.zeros(n)
    return Sides(
        share=(found - energy) / ((n - 1) * energy),
        p=float((1 + (drawn >= found * (1 - 1e-9)).sum()) / (1 + DRAWS)),
        uneven=float(np.median(uneven)),
        lean=lean,
    )


def is_handed(captions: Sequence[str | None]) -> bool:
    """Whether captions name a side or lettering, so that mirroring would make them, or the
    pictures, wrong."""
    return any(_HANDED.search(c) for c in captions if c)


def judge_sides(sides: Sides, *, handed: bool) -> list[Finding]:
    if not sides.one_sided:
        return []
    advice = (
        "Add some from the other side. Do not mirror them: captions name a side, or lettering "
        "that would be read backwards."
        if handed
        else "Add some from the other side, or mirror some, unless left and right differ in "
        "the subject, as lettering and a parting do."
    )
    return [
        Finding(
            "The pictures all face one way",
            f"{100 * sides.share:.0f} % of what left and right differ by is common to them "
            f"(by chance so much in {100 * sides.p:.2g} % of cases)",
            advice,
        )
    ]
