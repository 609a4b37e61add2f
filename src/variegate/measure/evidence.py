"""What the measures look at: features of an adapter's and its base's pictures, line by line.

Numbers only. Nothing here opens a picture or runs a network, so one gathering can be measured
again tomorrow under other rules.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

GROUPS = ("class", "trigger", "unrelated", "caption")


@dataclass(frozen=True)
class Line:
    """One prompt as the adapter and the base were asked it, and which rows answer it.

    The rows of both run in one order of seeds as far as `paired` of them go.
    """

    group: str
    prompt: str
    base_prompt: str
    adapter_rows: tuple[int, ...]
    base_rows: tuple[int, ...]
    paired: int = 0


@dataclass(frozen=True)
class View:
    """All pictures through one encoder. `train` and `held_out` are the training pictures and
    those kept from training, when there are any; `texts` has one row per line."""

    encoder: str
    adapter: Float[Tensor, "n d"]
    base: Float[Tensor, "m d"]
    train: Float[Tensor, "t d"] | None = None
    held_out: Float[Tensor, "h d"] | None = None
    texts: Float[Tensor, "l d"] | None = None

    def of_adapter(self, line: Line) -> Float[Tensor, "k d"]:
        return self.adapter[list(line.adapter_rows)]

    def of_base(self, line: Line) -> Float[Tensor, "k d"]:
        return self.base[list(line.base_rows)]

    def columns(self, some: slice) -> View:
        """Of the pictures' features, some columns alone."""

        def of(rows: Tensor | None) -> Tensor | None:
            return None if rows is None else rows[:, some]

        pictures = (self.train, self.held_out)
        return View(self.encoder, self.adapter[:, some], self.base[:, some], *map(of, pictures))


@dataclass(frozen=True)
class Evidence:
    """Everything a verdict rests on.

    views: one per named encoder; the first decides. identity: who is in the picture, by the first
    encoder if it can tell that apart, else the first view again. layout: what surrounds it.
    axes: parts of the composition by name (palette, background, the subject's place and size), to
    say what became alike.
    recoloured, recoloured_identity, recoloured_layout: view, identity and layout with the base's
    pictures in the colours of the adapter's, to tell a narrower palette from narrower pictures; the
    first two only where the palettes of class pictures vary less than the base's, the last where
    those of trigger pictures do.
    faces: the largest face of each picture that shows one, when a detector was named;
    face_lines: which of them answer which class prompt.
    thumbnails: the pictures themselves, small. (All from layout to thumbnails are there when
    pictures were, not features alone.) copies: SSCD's view, when it was named.
    pictures, trained_on: what to call each adapter picture and training picture; captions: of
    the training pictures, "" where there is none.
    plan: facts that travel with the verdict (prompts, seeds, trigger, class noun).
    """

    lines: tuple[Line, ...]
    views: tuple[View, ...]
    identity: View
    layout: View | None = None
    recoloured: View | None = None
    recoloured_identity: View | None = None
    recoloured_layout: View | None = None
    faces: View | None = None
    face_lines: tuple[Line, ...] = ()
    thumbnails: View | None = None
    axes: dict[str, View] = field(default_factory=dict)
    copies: View | None = None
    pictures: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    weak_encoder: bool = False
    plan: dict[str, Any] = field(default_factory=dict)

    def of_group(self, group: str) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.group == group)
