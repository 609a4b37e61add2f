"""Text from outside, made fit to show: no control characters, no reordering, no endless lines."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

MOST = 1000  # characters of one piece of text
MINUS = "\N{MINUS SIGN}"
# Marks that reorder or hide what follows them; shown by their code instead.
_HIDDEN = {
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
    *(0x061C, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, 0x2060, 0xFEFF, 0x00AD),
    *range(0xFFF9, 0xFFFC),
}


def plain(value: Any, most: int = MOST) -> str:
    """The value's text with control and reordering characters made visible, cut at `most`.

    >>> plain("a\\x1b[31mb\\u202ec")
    'a␛[31mb⟨U+202E⟩c'
    """
    text = str(value)
    cut = len(text) > most
    return "".join(map(_visible, text[:most])) + (f" … ({len(text):,} characters)" if cut else "")


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return character if character in "\n\t" else chr(0x2400 + code)
    if code < 0x7F:
        return character
    if code in _HIDDEN or 0xE0000 <= code <= 0xE007F:
        return f"⟨U+{code:04X}⟩"
    if code < 0xA0 or 0xD800 <= code <= 0xDFFF:
        return "\N{REPLACEMENT CHARACTER}"
    return character


def long(value: Any) -> Markup:
    """The same for a whole file's text."""
    return escape(plain(value, 20_000))


def percent(value: float, *, signed: bool = False) -> str:
    """A share as people say it: 0.42 is `42 %`, 0.004 is `0.4 %`."""
    hundredths = value * 100
    digits = 1 if 0 < abs(hundredths) < 0.95 else 0
    text = f"{abs(hundredths):.{digits}f}"
    sign = "" if float(text) == 0 else MINUS if value < 0 else "+" if signed else ""
    return f"{sign}{text}\N{NO-BREAK SPACE}%"


def number(value: Any) -> str:
    """A number for the technical line."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.4g}".replace("-", MINUS) if math.isfinite(value) else str(value)


def moment(value: Any) -> datetime | None:
    """A journal's time: seconds since 1970 or ISO text; None when it is neither."""
    try:
        if isinstance(value, str):
            found = datetime.fromisoformat(value)
            return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
        return datetime.fromtimestamp(float(value), UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def when(value: Any) -> str:
    """`20 November 2025, 14:03 UTC`, or nothing when the time is unknown."""
    found = moment(value)
    return f"{found.day} {found:%B %Y, %H:%M} UTC" if found else ""


def lasted(start: Any, end: Any) -> str:
    """How long something took, in the largest two units that fit."""
    first, last = moment(start), moment(end)
    if first is None or last is None or last < first:
        return ""
    seconds = round((last - first).total_seconds())
    minutes, hours = seconds // 60, seconds // 3600
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def opening(value: Any) -> str:
    """The text with a capital at its start, as a sentence of its own."""
    text = str(value)
    return text[:1].upper() + text[1:]
