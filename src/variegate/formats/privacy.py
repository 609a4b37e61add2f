"""A header's text without the folders of the machine it was written on.

Trainers note where pictures and models lay, and with that the names of users. Of every absolute
path only the last part is kept, and of a user's own folder `~`; other text stays as it is.
"""

from __future__ import annotations

import json
import re
from typing import Any

# An absolute path up to its last separator, on one line and between quotes, commas and the like:
# C:\..., \\server\..., ~/..., or /folder/... (a lone slash, as in "and/or", is none).
_FOLDERS = re.compile(
    r"(?<![\w:/\\.])(?:file:/*)?"
    r"(?:[A-Za-z]:[\\/]|\\\\(?=[\w.])|~\w*[\\/]|/(?=[\w.~@+-]+[\\/]))"
    r"(?:[^\"'<>|,;\r\n]*[\\/])?"
)
# A user's own folder, whose last part would be the user's name.
_HOME = re.compile(
    r"(?<![\w/\\.])(?:file:/*)?(?:[A-Za-z]:)?[\\/](?:home|Users)[\\/][^\\/\"'<>|,;\r\n]+"
    r"[\\/]?(?=$|[\"'<>|,;\r\n])"
)
_JSON_STARTS = ("{", "[", '"')


def without_folders(text: str) -> str:
    """The text, or JSON, with the last part of every absolute path in the path's place.

    >>> without_folders("trained on C:\\\\Users\\\\ann\\\\owls")
    'trained on owls'
    >>> without_folders('{"dir": "/home/ann/owls/"}')
    '{"dir": "owls"}'
    """
    if text.startswith("data:"):  # an inlined picture, whose letters may look like anything
        return text
    if text.lstrip().startswith(_JSON_STARTS):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return _without(text)
        cleaned = _walk(found)
        return text if cleaned == found else json.dumps(cleaned, ensure_ascii=False)
    return _without(text)


def _walk(value: Any) -> Any:
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, list):
        return [_walk(entry) for entry in value]
    if isinstance(value, dict):
        return {_without(key): _walk(entry) for key, entry in value.items()}
    return value


def _without(text: str) -> str:
    kept = []
    for line in _HOME.sub("~", text).split("\n"):
        stripped = line.rstrip("/\\") if _FOLDERS.match(line) else line
        kept.append(_FOLDERS.sub("", stripped))
    return "\n".join(kept)
