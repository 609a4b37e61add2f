"""Captions in parts: words and commas, with the trigger's words known; and kept true.

A caption that says "on the left" of a picture that was mirrored teaches that the word means
nothing, and, beside the trigger, that prompts need not be heard: `still_true` takes out or turns
round what no longer holds.
"""

from __future__ import annotations

import re
from typing import Literal

Aspect = Literal["layout", "ground"]

_SIDES = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
_WHERE = r"(?:upper|lower|top|bottom|left|right|cent(?:er|re)|middle)"
_PICTURE = r"(?: of the (?:picture|image|photo|frame))?"
_PLACE = (
    rf"\b(?:at|in|on|to|near) the {_WHERE}(?:[ -]{_WHERE})?(?: (?:corner|side|edge))?{_PICTURE}\b"
)
_FRAMING = (
    r"\b(?:an? )?(?:extreme )?close-?up(?: (?:photo|picture|shot|view))?(?: of)?\b"
    r"|\b(?:seen )?from afar\b"
)
_POCKET_SIZE = r"\b(?:small|medium|large)\b"
_GROUND = (
    r"(?:\b(?:on|with|against|before|in front of) )?(?:\b(?:an?|the|its) )?"
    r"(?:[\w-]+ ){0,3}backgrounds?\b"
)


def parts_of(caption: str, trigger: str) -> list[tuple[str, bool]]:
    """The caption's words and commas in order, each with whether it belongs to the trigger.

    >>> parts_of("a zqx dog, red", "zqx")
    [('a', False), ('zqx', True), ('dog', False), (',', False), ('red', False)]
    """
    spans = [m.span() for m in re.finditer(re.escape(trigger), caption, re.I)] if trigger else []
    return [
        (m.group(), any(m.start() < end and start < m.end() for start, end in spans))
        for m in re.finditer(r",|[^\s,]+", caption)
    ]


def joined(parts: list[str]) -> str:
    """Words and commas as a caption again; commas that part nothing are left out.

    >>> joined([",", "a", "dog", ",", ",", "red", ","])
    'a dog, red'
    """
    phrases = [""]
    for part in parts:
        if part == ",":
            phrases.append("")
        else:
            phrases[-1] = f"{phrases[-1]} {part}".lstrip()
    return ", ".join(filter(None, phrases))


def tags_of(caption: str) -> list[str]:
    """What stands between the commas."""
    return [tag for tag in (tag.strip() for tag in caption.split(",")) if tag]


def still_true(
    caption: str, changed: frozenset[Aspect], *, mirrored: bool = False, pocket: bool = False
) -> str:
    """The caption without what no longer holds of its picture, left and right as they are now.

    changed: "layout", size and place of the subject; "ground", what is behind it. pocket: whether
    small, medium and large tell of the layout, as there, and not of the thing.

    >>> still_true("a zqx on a red background at the top left", frozenset({"ground"}))
    'a zqx at the top left'
    >>> still_true("a small zqx on the left", frozenset({"layout"}), pocket=True)
    'a zqx'
    >>> still_true("zqx, gray background, on the left", frozenset({"ground"}), mirrored=True)
    'zqx, on the right'
    """
    if mirrored:
        caption = re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda m: _SIDES[m[1]], caption)
    gone = [_GROUND] if "ground" in changed else []
    if "layout" in changed:
        gone += [_PLACE, _FRAMING, *([_POCKET_SIZE] if pocket else [])]
    if not gone:
        return caption
    for pattern in gone:
        caption = re.sub(pattern, "", caption, flags=re.IGNORECASE)
    tags = [re.sub(r"\s+", " ", tag).strip() for tag in caption.split(",")]
    return ", ".join(tag for tag in tags if tag)
