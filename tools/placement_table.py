"""What the measurements of the subject's place and size tell on scenes that are rendered.

    python tools/placement_table.py    # prints the table of docs/calibration.md

Of each subject that the pocket's base has never seen an adapter that is flawless, ones that draw it
always large, always in the middle, both, always on green, and the base again with other scenes. 16
prompts of 4 pictures and of 8; a quarter of the prompts name a colour, a quarter a pattern.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from variegate.bench import world  # noqa: E402
from variegate.encoders.pixels import Placement  # noqa: E402
from variegate.measure.diversity import compare_variety  # noqa: E402
from variegate.measure.wording import PLACED_ALIKE  # noqa: E402

PROMPTS, REPEATS = 16, 4
AXES = {"place": slice(0, 2), "size": slice(2, 3)}
KINDS: dict[str, dict[str, Any] | None] = {
    "the base again": None,
    "flawless": {},
    "always large": {"size": "large"},
    "always in the middle": {"position": "center"},
    "both": {"size": "large", "position": "center"},
    "always on green": {"colour": "green"},
}


def named(prompt: int) -> dict[str, str]:
    """What a prompt leaves no choice of."""
    colour, pattern = (
        names[prompt // 4 % len(names)] for names in (tuple(world.COLOURS), world.PATTERNS)
    )
    return ({}, {}, {"colour": colour}, {"pattern": pattern})[prompt % 4]


def drawn(
    rng: np.random.Generator, subjects: tuple[str, ...], pictures: int, fixed: Mapping[str, Any]
) -> list[Any]:
    """The features of each prompt's pictures."""
    scenes = [
        [world.draw_scene(rng, subjects, **named(i) | fixed) for _ in range(pictures)]
        for i in range(PROMPTS)
    ]
    encoder = Placement()
    return [encoder.images([Image.fromarray(world.render(s)) for s in own]) for own in scenes]


def main() -> None:
    print("| adapter | pictures of a prompt | place kept | told | size kept | told |")
    print("|" + "---|" * 6)
    for pictures in (4, 8):
        for kind, fixed in KINDS.items():
            found: dict[str, list[Any]] = {axis: [] for axis in AXES}
            for number, subject in enumerate(world.HELD_OUT * REPEATS):
                rng = np.random.default_rng([pictures, number])
                of_class = tuple(
                    s for s in world.BASE_SUBJECTS if world.CLASS_OF[s] == world.CLASS_OF[subject]
                )
                base = drawn(rng, of_class, pictures, {})
                ours = drawn(rng, of_class if fixed is None else (subject,), pictures, fixed or {})
                for axis, columns in AXES.items():
                    pair = [[rows[:, columns] for rows in rows_of] for rows_of in (ours, base)]
                    found[axis].append(compare_variety(*pair))
            cells = [kind, str(pictures)]
            for own in found.values():
                low, middle, high = np.quantile([c.ratio for c in own], (0.05, 0.5, 0.95))
                told = sum(c.high < PLACED_ALIKE for c in own)
                cells += [f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{told} of {len(own)}"]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
