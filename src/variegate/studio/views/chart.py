"""The variety map: the pictures of a set on a plane, near where they are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from variegate.studio.frame import Form, Studio, found, page
from variegate.studio.sets import PictureSet, Shot
from variegate.studio.views.pictures import seen_set, set_of, shot_of

WIDTH, HEIGHT, EDGE = 1000, 640, 64  # of the drawing, in its own units
# The side of a small picture on it, up to so many pictures, and how far apart two have to be.
SIDES = ((12, 120, 48), (30, 96, 48), (5000, 74, 74))
MOST_THUMBS = 60  # the others are dots
MOST_LISTED = 200
LEAST = 3  # pictures
# How far the nearest other picture is, in units of unrelated ones, for each way to say it.
SAME, NEAR, SOME = 0.25, 0.5, 0.75


@dataclass(frozen=True)
class Point:
    """A picture on the map. alone: how far the nearest other is, 1 for unrelated ones; thumb: shown
    as a picture rather than a dot; group: of look-alikes, 0 for none."""

    id: str
    shown: str
    number: int
    x: int
    y: int
    alone: float
    thumb: bool
    group: int

    @property
    def word(self) -> str:
        """How near the nearest other is, by name in the texts."""
        steps = ((SAME, "same"), (NEAR, "near"), (SOME, "some"))
        return next((word for most, word in steps if self.alone < most), "alone")


def chart(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "map.html", **_context(studio, set_of(studio, request)))


def state(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "map_body.html", **_context(studio, set_of(studio, request)))


def one(studio: Studio, request: Request, form: Form) -> Response:
    """A picture of the map, large, and how near the nearest other is."""
    pictures = set_of(studio, request)
    shot = shot_of(studio, pictures, request.path_params["shot"])
    context = _context(studio, pictures)
    point = found(
        next((p for p in context["points"] if p.id == studio.desk.id_of(shot.file)), None)
    )
    return page(studio, request, "map_one.html", point=point, shot=shot, **context)


def _context(studio: Studio, pictures: PictureSet) -> dict[str, Any]:
    seen, shots = seen_set(studio, pictures), pictures.shots()
    told = (seen.audit or {}).get("map")
    told = told if isinstance(told, dict) else {}
    points = _points(studio, shots, told.get("points") or (), seen.groups)
    places = {p.id: (p.x, p.y) for p in points}
    joins = [
        [places[i] for s in group if (i := studio.desk.id_of(s.file)) in places]
        for group in seen.groups
    ]
    return {
        "set": pictures,
        "id": studio.desk.id_of(pictures.folder),
        "count": len(shots),
        "seen": seen,
        "points": points if len(points) >= LEAST else [],
        "joins": [join for join in joins if len(join) > 1],
        "share": told.get("share"),
        "listed": sorted(points, key=lambda p: (-p.alone, p.number))[:MOST_LISTED],
        "size": (WIDTH, HEIGHT, _side(len(points))[0]),
    }


def _points(
    studio: Studio, shots: Sequence[Shot], told: Sequence[Any], groups: Sequence[Sequence[Shot]]
) -> list[Point]:
    at = {Path(str(file)).name: (float(x), float(y), float(near)) for file, x, y, near in told}
    known = [(i + 1, shot, *at[shot.name]) for i, shot in enumerate(shots) if shot.name in at]
    if not known:
        return []
    places = _fitted([(x, y) for _, _, x, y, _ in known])
    large = _apart(places, [near for *_, near in known], _side(len(known))[1])
    of = {s.name: 1 + number % 6 for number, group in enumerate(groups) for s in group}
    return [
        Point(
            id=studio.desk.id_of(shot.file),
            shown=studio.desk.show(shot.file) if i in large else "",
            number=number,
            x=places[i][0],
            y=places[i][1],
            alone=near,
            thumb=i in large,
            group=of.get(shot.name, 0),
        )
        for i, (number, shot, _, _, near) in enumerate(known)
    ]


def _fitted(places: Sequence[tuple[float, float]]) -> list[tuple[int, int]]:
    """The places on the drawing, one scale for both directions, in its middle."""
    lows = [min(p[i] for p in places) for i in (0, 1)]
    highs = [max(p[i] for p in places) for i in (0, 1)]
    room = (WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE)
    scale = min(r / max(h - low, 1e-9) for r, h, low in zip(room, highs, lows, strict=True))
    scale = min(scale, 10.0 * WIDTH)
    middle = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
    return [
        (
            round(WIDTH / 2 + scale * (x - middle[0])),
            round(HEIGHT / 2 - scale * (y - middle[1])),
        )
        for x, y in places
    ]


def _side(count: int) -> tuple[int, int]:
    """Of so many pictures, the side of each on the drawing, and how far two have to be apart."""
    fits = [(side, apart) for most, side, apart in SIDES if count <= most]
    return fits[0] if fits else SIDES[-1][1:]


def _apart(places: Sequence[tuple[int, int]], alone: Sequence[float], least: int) -> set[int]:
    """Which are shown as pictures: those most unlike the others first, none nearer than `least` to
    another."""
    chosen: list[int] = []
    for i in sorted(range(len(places)), key=lambda i: (-alone[i], i)):
        x, y = places[i]
        if all(max(abs(x - places[j][0]), abs(y - places[j][1])) > least for j in chosen):
            chosen.append(i)
            if len(chosen) == MOST_THUMBS:
                break
    return set(chosen)
