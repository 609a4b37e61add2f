"""Captions in parts: words and commas, with the trigger's words known."""

from __future__ import annotations

import re


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
