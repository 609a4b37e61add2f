"""What really became of an adapter: its samples read by the judge, beside its base's.

Collapse shows in what a prompt leaves out: so a factor counts only where the prompt does not name
it, and a prompt's pictures are compared among themselves, seed by seed the base's at the same
prompt.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from variegate.bench import judge, world
from variegate.bench.ailments import SURROUNDINGS
from variegate.images import ImageSet

FACTORS = tuple(world.FACTORS)
WORDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(world.COLOURS),
    "pattern": world.PATTERNS,
    "size": tuple(world.SIZES),
}
PLACE = re.compile(
    r"\b(?:at the|in the|on the) ((?:top|bottom)(?: (?:left|right))?|left|right|center)\b"
)


@dataclass(frozen=True)
class Row:
    """One picture: what was asked, in what group, and the value of each factor that is seen."""

    group: str
    prompt: str
    seed: int
    seen: dict[str, str]


def named_in(prompt: str) -> dict[str, str]:
    """The factors that a prompt of the pocket's names, with their values.

    >>> named_in("a small zqx on a red background at the top left")
    {'colour': 'red', 'size': 'small', 'position': 'top left'}
    """
    words = set(re.findall(r"\w+", prompt))
    found = {
        factor: value for factor, values in WORDS.items() for value in values if value in words
    }
    if place := PLACE.search(prompt):
        found["position"] = place[1]
    if subject := words & set(world.SUBJECTS):
        found["subject"] = sorted(subject)[0]
    return found


def read_folder(home: Path) -> list[Row]:
    """The pictures of a samples folder as the judge sees them."""
    lines = [json.loads(line) for line in (home / "metadata.jsonl").read_text("utf8").splitlines()]
    return _read(
        str(home), tuple((x["file_name"], x["group"], x["prompt"], x["seed"]) for x in lines)
    )


def read_pictures(pictures: ImageSet) -> list[Row]:
    """The same of pictures of one folder that are at hand, of which its list may name others."""
    return _read(
        pictures.origin,
        tuple((p.file.name, p.group, p.prompt, p.seed) for p in pictures if p.file),
    )


@lru_cache(maxsize=8)
def _read(home: str, lines: tuple[tuple[Any, ...], ...]) -> list[Row]:
    pictures = [np.asarray(Image.open(Path(home) / name).convert("RGB")) for name, *_ in lines]
    values = judge.read(np.stack(pictures)).values
    return [
        Row(group, prompt, seed, {f: values[f][i] for f in FACTORS})
        for i, (_, group, prompt, seed) in enumerate(lines)
    ]


def truth(
    ours: Sequence[Row],
    base: Sequence[Row],
    *,
    subject: str,
    learnt: Sequence[world.Scene],
    style: dict[str, str] | None = None,
) -> dict[str, float]:
    """All figures of one adapter.

    learnt: the scenes of its pictures. style: the factors that are the look it learnt, if that is
    what it learnt. Of the figures: `class.F` and `trigger.F` are the entropy of factor F over a
    prompt's pictures, mean over the prompts that leave F open, as a share of the base's;
    `class`, `trigger` and `entropy` their means. `likeness`: share of trigger pictures that show
    what was learnt. `class_kept`: share of class prompts' pictures that are no picture of the
    subject. `others_kept`: how often a subject that a prompt names is drawn, as a share of the
    base. `named`: how often the factors that a trigger prompt names are drawn. `copies`: share of
    trigger pictures whose surroundings are in all factors those of one picture learnt from, less
    the base's share.
    """
    own = set(style) if style else {"subject"}
    found: dict[str, float] = {}
    for group, left in (("class", set[str]()), ("trigger", own)):
        shares = {}
        for factor in FACTORS:
            if factor in left:
                continue
            mine, theirs = (_entropy(rows, group, factor) for rows in (ours, base))
            if theirs > 0:
                shares[factor] = found[f"{group}.{factor}"] = mine / theirs
        found[group] = float(np.mean(list(shares.values())))
    found["entropy"] = (found["class"] + found["trigger"]) / 2
    triggers = [row for row in ours if row.group == "trigger"]
    if style:
        shown = [all(r.seen[f] == v for f, v in style.items()) for r in triggers]
    else:
        shown = [r.seen["subject"] == subject for r in triggers]
    found["likeness"] = float(np.mean(shown))
    asked = [row for row in ours if row.group == "class"]
    if style:
        taken = [all(r.seen[f] == v for f, v in style.items()) for r in asked]
    else:
        taken = [r.seen["subject"] == subject for r in asked]
    found["class_kept"] = 1 - float(np.mean(taken))
    found["others_kept"] = _followed(ours, "unrelated", {"subject"}) / _followed(
        base, "unrelated", {"subject"}
    )
    factors = set(SURROUNDINGS) - own
    found["named"] = _followed(ours, "trigger", factors)
    found["named_base"] = _followed(base, "trigger", factors)
    found["copies"] = _copied(triggers, learnt) - _copied(
        [row for row in base if row.group == "trigger"], learnt
    )
    return found


def _entropy(rows: Sequence[Row], group: str, factor: str) -> float:
    """Nats, the mean over the group's prompts that leave the factor open."""
    prompts: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.group == group and factor not in named_in(row.prompt):
            prompts[row.prompt].append(row.seen[factor])
    if not prompts:
        return 0.0
    found = []
    for values in prompts.values():
        counts = np.array([values.count(v) for v in set(values)], float) / len(values)
        found.append(-(counts * np.log(counts)).sum())
    return float(np.mean(found))


def _followed(rows: Sequence[Row], group: str, factors: set[str]) -> float:
    """How often what a group's prompts name is what is seen."""
    right = [
        row.seen[factor] == value
        for row in rows
        if row.group == group
        for factor, value in named_in(row.prompt).items()
        if factor in factors
    ]
    return float(np.mean(right)) if right else float("nan")


def _mirrored(place: str) -> str:
    """A position as it is called in the mirror image.

    >>> _mirrored("top left")
    'top right'
    """
    return re.sub("left|right", lambda m: "left" if m[0] == "right" else "right", place)


def _copied(rows: Sequence[Row], learnt: Sequence[world.Scene]) -> float:
    """Of pictures whose prompt names no more than one factor: those set just as one learnt from,
    or as its mirror image."""
    settings = {tuple(getattr(scene, f) for f in SURROUNDINGS) for scene in learnt}
    settings |= {(*rest, _mirrored(place)) for *rest, place in settings}
    open_ = [row for row in rows if len(named_in(row.prompt)) <= 1]
    if not open_:
        return 0.0
    return float(np.mean([tuple(r.seen[f] for f in SURROUNDINGS) in settings for r in open_]))
