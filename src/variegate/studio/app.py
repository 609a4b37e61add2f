"""The studio's server: every route in one table, all of them behind the same wall."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from variegate.studio.desk import Desk
from variegate.studio.frame import MOST_FORM, Studio, fault, view
from variegate.studio.static import Assets
from variegate.studio.thumbs import SIDES, sweep, thumbnail
from variegate.studio.views import (
    blend,
    chart,
    check,
    compare,
    home,
    pictures,
    plan,
    runs,
    share,
    tune,
)
from variegate.studio.walls import Keys, Walls

TICK = 0.5  # seconds between two looks at the queue
LARGE = ("/upload",)  # paths that take files; their bodies are counted where they are written
log = logging.getLogger(__name__)


class Opaque(Convertor[str]):
    """An id of ours, or nothing: no path, no dot, no escape gets past it."""

    regex = "[0-9a-f]{20}"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class JobId(Opaque):
    regex = "[0-9a-f]{16}"


class Word(Opaque):
    regex = "[a-z]{1,20}"


register_url_convertor("id", Opaque())
register_url_convertor("job", JobId())
register_url_convertor("word", Word())


def routes() -> list[BaseRoute]:
    """Every address of the studio. What changes something is asked for by POST alone."""
    get, post = ["GET"], ["POST"]
    table = [
        ("/", get, view(home.home)),
        ("/demo", post, view(home.start_demo)),
        ("/demo/page", get, view(home.demo_page)),
        ("/settings", get, view(home.settings)),
        ("/settings", post, view(home.keep_settings)),
        ("/settings/doctor", post, view(home.ask_doctor)),
        ("/enter", ["GET", "POST"], view(home.enter)),
        ("/pictures", get, view(pictures.listing)),
        ("/pictures", post, view(pictures.new)),
        ("/pictures/{set:id}", get, view(pictures.one)),
        ("/pictures/{set:id}/more", get, view(pictures.more)),
        ("/pictures/{set:id}/findings", get, view(pictures.findings)),
        ("/pictures/{set:id}/upload", post, pictures.upload),
        ("/pictures/{set:id}/look", post, view(pictures.look)),
        ("/pictures/{set:id}/name", post, view(pictures.name)),
        ("/pictures/{set:id}/caption", post, view(pictures.caption)),
        ("/pictures/{set:id}/captions", post, view(pictures.captions)),
        ("/pictures/{set:id}/aside", post, view(pictures.aside)),
        ("/pictures/{set:id}/fix", post, view(pictures.fix)),
        ("/pictures/{set:id}/undo", post, view(pictures.undo)),
        ("/pictures/{set:id}/map", get, view(chart.chart)),
        ("/pictures/{set:id}/map/state", get, view(chart.state)),
        ("/pictures/{set:id}/map/{shot:id}", get, view(chart.one)),
        ("/pictures/{set:id}/plan", get, view(plan.plan)),
        ("/pictures/{set:id}/plan", post, view(plan.start)),
        ("/pictures/{set:id}/plan/estimate", get, view(plan.preview)),
        ("/pictures/{set:id}/plan/entries", get, view(plan.all_entries)),
        ("/runs", get, view(runs.listing)),
        ("/runs/lists", get, view(runs.lists)),
        ("/jobs/{job:job}/{do:word}", post, view(runs.job)),
        ("/runs/{run:id}", get, view(runs.live)),
        ("/runs/{run:id}/events", get, runs.stream),
        ("/runs/{run:id}/ask", post, view(runs.ask)),
        ("/runs/{run:id}/report", get, view(runs.report)),
        ("/runs/{run:id}/report", post, view(runs.write_page)),
        ("/runs/{run:id}/page", get, view(runs.run_page)),
        ("/runs/{run:id}/adapter", get, view(runs.adapter)),
        ("/runs/{run:id}/check", post, view(check.from_run)),
        ("/runs/{run:id}/compare", get, view(compare.compare)),
        ("/runs/{run:id}/compare", post, view(compare.draw)),
        ("/runs/{run:id}/compare/grid", get, view(compare.grid)),
        ("/runs/{run:id}/vote", get, view(compare.ballot)),
        ("/runs/{run:id}/vote", post, view(compare.vote)),
        ("/runs/{run:id}/pick", post, view(compare.pick)),
        ("/runs/{run:id}/picked", get, view(compare.picked_page)),
        ("/runs/{run:id}/share", get, view(share.share)),
        ("/runs/{run:id}/share", post, view(share.make)),
        ("/runs/{run:id}/share/state", get, view(share.state)),
        ("/runs/{run:id}/share/bundle", get, view(share.bundle)),
        ("/check", get, view(check.listing)),
        ("/check/upload", post, check.upload),
        ("/check/{check:id}", get, view(check.one)),
        ("/check/{check:id}/state", get, view(check.state)),
        ("/check/{check:id}/measure", post, view(check.measure)),
        ("/check/{check:id}/repair", post, view(check.repair)),
        ("/check/{check:id}/page/{which:word}", get, view(check.run_page)),
        ("/check/{check:id}/repaired", get, view(check.repaired)),
        ("/blend", get, view(blend.listing)),
        ("/blend", post, view(blend.make)),
        ("/blend/{blend:id}", get, view(blend.one)),
        ("/blend/{blend:id}/state", get, view(blend.state)),
        ("/blend/{blend:id}/check", post, view(check.from_blend)),
        ("/blend/{blend:id}/file", get, view(blend.file)),
        ("/tune", get, view(tune.listing)),
        ("/tune", post, view(tune.start)),
        ("/tune/searches", get, view(tune.searches)),
        ("/tune/{job:job}/page", get, view(tune.search_page)),
        ("/tune/{job:job}/adapter", get, view(tune.adapter)),
        ("/thumb/{picture:id}/{side:int}", get, thumb),
        ("/static/{name}", get, static),
    ]
    return [Route(path, endpoint, methods=methods) for path, methods, endpoint in table]


def make_app(
    desk: Desk, *, keys: Keys, port: int, verbs: Iterable[str], hosts: Iterable[str] = ()
) -> Starlette:
    """The application for one home folder.

    hosts: names under which others may reach it, beside those of this machine alone.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        keeper = asyncio.create_task(_keep(desk))
        # Estimates go by how fast this machine is, so it is looked at once, at the first start.
        await run_in_threadpool(home.call_doctor, app.state.studio, again=False)
        yield
        keeper.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeper
        desk.jobs.leave()

    names = ("127.0.0.1", "localhost", "[::1]", *hosts)
    app = Starlette(
        routes=routes(),
        lifespan=lifespan,
        middleware=[Middleware(Walls, keys=keys, hosts=names, port=port), Middleware(SmallBodies)],
        exception_handlers={HTTPException: _http_fault, Exception: _own_fault},
    )
    app.router.redirect_slashes = False
    app.state.studio = Studio(desk, keys, frozenset(verbs), Assets())
    app.state.session_cookie = Walls(app, keys=keys, hosts=names, port=port).session_cookie()
    return app


async def _keep(desk: Desk) -> None:
    """Start what waits and see what has ended, as long as the server runs."""
    await run_in_threadpool(sweep, desk.home / ".thumbs")
    while True:
        try:
            if await run_in_threadpool(desk.jobs.keep):
                await run_in_threadpool(desk.jobs.tick)
        except Exception:  # a full disk today must not keep tomorrow's jobs waiting
            log.exception("the queue could not be looked at")
        await asyncio.sleep(TICK)


class SmallBodies:
    """Refuses a body larger than any form of ours, claimed or sent."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].endswith(LARGE):
            await self.app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        size, most = 0, MOST_FORM

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
                if size > most:
                    raise HTTPException(413, "too much for a form")
            return message

        if not claimed.isdigit() or int(claimed) > most:
            await PlainTextResponse("too much for a form", 413)(scope, receive, send)
            return
        await self.app(scope, counted, send)


async def thumb(request: Request) -> Response:
    studio: Studio = request.app.state.studio
    side = request.path_params["side"]
    file = studio.desk.shown(request.path_params["picture"])
    if file is None or side not in SIDES:
        return Response(status_code=404)
    data = await run_in_threadpool(thumbnail, file, side, studio.desk.home / ".thumbs")
    if data is None:
        return Response(status_code=404)
    # The id holds what the file was when the page was made.
    kept = {"cache-control": "private, max-age=31536000, immutable"}
    return Response(data, media_type="image/webp", headers=kept)


async def static(request: Request) -> Response:
    studio: Studio = request.app.state.studio
    asset = studio.assets.get(request.path_params["name"])
    if asset is None:
        return Response(status_code=404)
    headers = {"cache-control": "public, max-age=31536000, immutable", "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(
            asset.packed, media_type=asset.kind, headers={**headers, "content-encoding": "gzip"}
        )
    return Response(asset.data, media_type=asset.kind, headers=headers)


async def _http_fault(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    studio: Studio = request.app.state.studio
    name = f"faults.http_{error.status_code}"
    words = studio.words
    text = words(name) if name in words else words("faults.not_here")
    return fault(studio, request, text, error.status_code)


async def _own_fault(request: Request, error: Exception) -> Response:
    """A fault of ours: told without its insides, which are in the log."""
    studio: Studio = request.app.state.studio
    return fault(studio, request, studio.words("faults.ours"), 500)
