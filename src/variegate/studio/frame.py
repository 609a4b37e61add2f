"""What all pages share: the studio as they see it, how one is rendered, how a fault is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from variegate.errors import NoSpace, VariegateError
from variegate.report.text import opening, plain, when
from variegate.studio.desk import Desk
from variegate.studio.static import Assets
from variegate.studio.texts import Texts, texts
from variegate.studio.walls import Keys

MOST_FORM = 2 * 2**20  # bytes of a form; pictures come another way
Form = Mapping[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Studio:
    """verbs: those that this installation has; a screen whose verb is not there is not shown."""

    desk: Desk
    keys: Keys
    verbs: frozenset[str]
    assets: Assets

    @property
    def words(self) -> Texts:
        return texts("en")

    @property
    def free(self) -> int:
        """Bytes free where the home folder lies."""
        return shutil.disk_usage(self.desk.home).free


class NotHere(Exception):
    """There is nothing by that id."""


class Refused(Exception):
    """What was asked cannot be done; the text says why, in an artist's words."""


def found(thing: T | None) -> T:
    """The thing, or an end of the request with 404."""
    if thing is None:
        raise NotHere
    return thing


View = Callable[[Studio, Request, Form], Response]


def view(function: View) -> Callable[[Request], Any]:
    """An endpoint from a plain function, run beside the event loop, with the form already read."""

    async def endpoint(request: Request) -> Response:
        studio: Studio = request.app.state.studio
        try:
            form: dict[str, str] = {}
            if request.method not in ("GET", "HEAD"):
                async with request.form(
                    max_files=0, max_fields=4000, max_part_size=MOST_FORM
                ) as sent:
                    form = {k: v for k, v in sent.multi_items() if isinstance(v, str)}
            return await run_in_threadpool(function, studio, request, form)
        except NotHere:
            return fault(studio, request, studio.words("faults.not_here"), 404)
        except (Refused, VariegateError) as error:
            status = 507 if isinstance(error, NoSpace) else 422
            return fault(studio, request, str(error), status)

    endpoint.__name__ = getattr(function, "__name__", "endpoint")
    return endpoint


def fault(studio: Studio, request: Request, text: str, status: int) -> Response:
    """A fault as a page, or as plain text where a part of a page was asked for."""
    if "hx-request" in request.headers or request.method != "GET":
        return Response(plain(text, 4000), status, media_type="text/plain; charset=utf-8")
    return page(studio, request, "fault.html", status=status, text=text, code=status)


def page(
    studio: Studio, request: Request, template: str, *, status: int = 200, **context: Any
) -> HTMLResponse:
    """A rendered template."""
    return HTMLResponse(render(studio, template, csrf=request.state.csrf, **context), status)


def render(studio: Studio, template: str, **context: Any) -> str:
    return (
        environment()
        .get_template(template)
        .render(t=studio.words, studio=studio, show=studio.desk.show, **{"csrf": "", **context})
    )


def go(path: str) -> Response:
    """Send the browser to another page after something was done."""
    return Response(status_code=204, headers={"HX-Redirect": path})


@cache
def environment() -> Environment:
    """Templates whose every output is made plain, then escaped."""
    jinja = Environment(
        loader=PackageLoader("variegate.studio"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value, 8000),
    )
    jinja.filters.update(
        opening=opening, when=when, bytes=say_bytes, seconds=say_seconds, percent=say_percent
    )
    return jinja


def say_bytes(value: int | float) -> str:
    """A size as people say it.

    >>> say_bytes(1_500_000), say_bytes(4.2e9)
    ('1.5 MB', '4.2 GB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{max(1, round(value / 1000))} kB"


def say_seconds(value: int | float) -> str:
    """A time as people guess it.

    >>> say_seconds(42), say_seconds(200), say_seconds(7300)
    ('42 s', '3 min', '2 h 2 min')
    """
    whole = max(0, round(value))
    if whole < 90:
        return f"{whole} s"
    if whole < 3600:
        return f"{round(whole / 60)} min"
    return f"{whole // 3600} h {round(whole % 3600 / 60)} min"


def say_percent(value: int | float) -> str:
    return f"{100 * value:.0f} %"


def number_in(
    form: Form, name: str, least: int | float, most: int | float, default: int | float
) -> int | float:
    """A number from a form, kept within its ends."""
    try:
        return min(most, max(least, float(form.get(name, ""))))
    except ValueError:
        return default


def folder_name(words: str, taken: Callable[[str], bool]) -> str:
    """A folder's name out of somebody's words: letters, digits and dashes, not yet taken."""
    kept = "".join(c if c.isascii() and c.isalnum() else "-" for c in words.lower())
    stem = "-".join(part for part in kept.split("-") if part)[:40] or "run"
    names = (stem if n == 1 else f"{stem}-{n}" for n in range(1, 10_000))
    return next(n for n in names if not taken(n))


def inside(home: Path, path: Path) -> bool:
    return path.resolve().is_relative_to(home)
