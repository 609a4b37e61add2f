"""Docstrings as the site shows them: what a line begins anew starts a paragraph.

In the source a docstring is text: `Raises:`, `Source:` and the names of arguments open a line of
their own. Markdown would join these lines into one.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

OPENS = re.compile(r"(?<=[^\n])\n(?=(?:Raises|Source|Sources|Returns|[a-z_]+(?:, [a-z_]+)*): )")


class Paragraphs(Extension):
    """Parts the lines of every docstring that begin with a name and a colon."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = OPENS.sub("\n\n", obj.docstring.value)
