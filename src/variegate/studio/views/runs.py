"""Runs and the queue; one run while it learns, and what it ended with."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse

from variegate.errors import RunError
from variegate.report.numbers import headline_numbers
from variegate.report.page import chips
from variegate.run import Run
from variegate.studio.desk import RunPlace
from variegate.studio.frame import Form, NotHere, Refused, Studio, found, go, page, render
from variegate.studio.jobs import Job, at_work, is_learning
from variegate.studio.planning import asks_for
from variegate.studio.views.cards import job_lines, run_cards, sides, works_on
from variegate.studio.watching import as_json, clock, curves, dials, events, film, stage_of

PER_PAGE = 24
MOST_STREAMS = 64
BEAT = 1.0  # seconds between two looks at a run
LASTS = 600.0  # seconds of one stream; the browser opens the next by itself
AGAIN = 1000  # milliseconds until it does
MOST_EVENTS = 60
MOST_ENDED = 6  # that ended early
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_INLINE = re.compile(r'\sstyle="([^"]*)"')
_streams = 0


def listing(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "runs.html", **_list(studio, request))


def lists(studio: Studio, request: Request, form: Form) -> Response:
    """The queue and the cards alone, which the page asks for now and then."""
    return page(studio, request, "runs_lists.html", **_list(studio, request))


def _list(studio: Studio, request: Request) -> dict[str, Any]:
    try:
        start = max(0, int(request.query_params.get("from", "0")))
    except ValueError:
        start = 0
    places, jobs = studio.desk.runs(), studio.desk.jobs.all()
    active = [j for j in jobs if not j.over]
    return {
        "cards": run_cards(studio, places[start : start + PER_PAGE]),
        "start": start,
        "next": start + PER_PAGE if start + PER_PAGE < len(places) else 0,
        "total": len(places),
        "devices": len(studio.desk.devices()) if active else 1,
        "active": job_lines(studio, [j for j in active if j.lane == "device"]),
        "small": job_lines(studio, [j for j in active if j.lane == "desk"]),
        "ended": job_lines(studio, _ended_early(jobs)[:MOST_ENDED]),
    }


def _ended_early(jobs: Sequence[Job]) -> list[Job]:
    """What failed or was stopped and was not asked for again since, latest first."""
    newest = {(j.about or j.id, j.verb): j for j in sorted(jobs, key=lambda j: j.made)}
    early = [j for j in newest.values() if j.state in ("failed", "stopped") and j.lane == "device"]
    return sorted(early, key=lambda j: -(j.ended or 0.0))


def job(studio: Studio, request: Request, form: Form) -> Response:
    """Stop a job, do it again, or move it in the queue."""
    jobs = studio.desk.jobs
    known = found(jobs.get(request.path_params["job"]))
    do = request.path_params["do"]
    if do == "stop":
        jobs.stop(known)
    elif do == "again":
        jobs.again(known)
    elif do in ("up", "down"):
        jobs.move(known, -1 if do == "up" else 1)
    else:
        raise NotHere
    studio.desk.forget_listing()
    return page(studio, request, "runs_lists.html", **_list(studio, request))


def live(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    return page(studio, request, "live.html", **_seen(studio, place))


def ask(studio: Studio, request: Request, form: Form) -> Response:
    """Stop and save, keep this one, sample now; or go on with a run that was stopped."""
    place, do = _place(studio, request), form.get("do", "")
    folder, jobs = place.folder, studio.desk.jobs
    ours = _job(studio, place)
    if do in ("keep", "sample"):
        if not is_learning(folder):
            raise Refused(studio.words("live.not_learning"))
        Run.ask(folder, "keep" if do == "keep" else "sample")
    elif do == "stop":
        if ours is not None and not ours.over:
            jobs.stop(ours)
        elif at_work(folder):
            Run.ask(folder, "stop")
    elif do == "go on":
        if at_work(folder) or (ours is not None and not ours.over):
            raise Refused(studio.words("live.already"))
        # What was asked with other settings, for a folder that had gone to this run, would fail.
        its_own = (j for j in jobs.of(folder, "trial", "train") if asks_for(j.words, folder))
        if (begun := next(its_own, None)) is not None:
            jobs.again(begun)
        else:
            title = studio.words("jobs.resume", name=place.name)
            words = ["train", "--resume", str(folder)]
            jobs.add(words, title=title, lane="device", about=str(folder))
    else:
        raise NotHere
    studio.desk.forget_listing()
    place = found(studio.desk.run(place.id))
    answer = page(studio, request, "live_now.html", **_seen(studio, place))
    answer.headers["HX-Trigger"] = as_json(
        {"told": studio.words(f"live.told_{do.replace(' ', '_')}")}
    )
    return answer


async def stream(request: Request) -> Response:
    """What changes on a run's page, part by part, as it changes."""
    global _streams
    studio: Studio = request.app.state.studio
    place = await run_in_threadpool(studio.desk.run, request.path_params["run"])
    if place is None:
        return Response(status_code=404)
    if _streams >= MOST_STREAMS:
        return Response(status_code=503)

    async def parts() -> AsyncIterator[str]:
        global _streams
        _streams += 1
        try:
            sent: dict[str, str] = {}
            yield f"retry: {AGAIN}\n\n"
            for beat in range(int(LASTS / BEAT)):
                if await request.is_disconnected():
                    return
                now = await run_in_threadpool(_parts, studio, place)
                if not now:
                    yield f"event: gone\ndata: {studio.words('live.gone')}\n\n"
                    return
                for name, text in now.items():
                    if sent.get(name) != text:
                        sent[name] = text
                        data = "\n".join(f"data: {line}" for line in text.splitlines())
                        yield f"event: {name}\n{data}\n\n"
                if beat % 15 == 14:
                    yield ": still here\n\n"
                await asyncio.sleep(BEAT)
        finally:
            _streams -= 1

    return StreamingResponse(parts(), media_type="text/event-stream")


def _parts(studio: Studio, place: RunPlace) -> dict[str, str]:
    """The parts of a run's page; none when the run is no longer there."""
    studio.desk.forget_listing()
    known = studio.desk.run(place.id)
    try:
        seen = _seen(studio, known) if known else None
    except RunError:
        seen = None
    if seen is None:
        return {}
    return {
        **{n: render(studio, f"live_{n}.html", **seen) for n in ("now", "film", "events")},
        "curves": as_json(seen["curves"]),
    }


def _seen(studio: Studio, place: RunPlace) -> dict[str, Any]:
    record = studio.desk.record(place.folder)
    ours = _job(studio, place)
    log = studio.desk.jobs.log(ours) if ours and ours.state == "running" else []
    now = clock(record)
    return {
        "id": place.id,
        "place": place,
        "record": record,
        "recipe": record.recipe or {},
        "job": ours,
        "stage": stage_of(log),
        "clock": now,
        "dials": dials(record),
        "film": film(record),
        "events": events(record)[:MOST_EVENTS],
        "curves": curves(record),
        "chips": chips(record.verdict),
        "kept": sorted((place.folder / "kept").glob("step-*.safetensors")),
        "ended": bool(record.journal and record.journal.ended is not None),
    }


def report(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    record = studio.desk.record(place.folder)
    verdict = record.verdict
    writing = _report_job(studio, place)
    return page(
        studio,
        request,
        "report.html",
        id=place.id,
        place=place,
        record=record,
        chips=chips(verdict),
        numbers=headline_numbers(verdict) if verdict else [],
        sides=sides(studio, record),
        there=(place.folder / "report.html").is_file(),
        adapter=(place.folder / "adapter.safetensors").is_file(),
        job=_job(studio, place),
        rewriting=writing is not None and not writing.over,
        unwritten=writing.fault if writing else "",
    )


def write_page(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    writing = _report_job(studio, place)
    if writing is None or writing.over:
        title = studio.words("jobs.report", name=place.name)
        words = ["report", str(place.folder)]
        studio.desk.jobs.add(words, title=title, lane="desk", about=str(place.folder))
    return go(f"/runs/{place.id}/report")


def _report_job(studio: Studio, place: RunPlace) -> Job | None:
    """The latest that writes this run's page, or wrote it."""
    return next(iter(studio.desk.jobs.of(place.folder, "report")), None)


def run_page(studio: Studio, request: Request, form: Form) -> Response:
    return framed(_place(studio, request).folder / "report.html")


def framed(file: Any) -> Response:
    """A report's page in a box: no script, no address, only the styles that it came with, each
    allowed by its own hash. It may come from anybody."""
    if file.is_symlink():
        raise NotHere
    try:
        text = file.read_text(encoding="utf8", errors="replace")
    except OSError as error:
        raise NotHere from error
    blocks = sorted({_hash(b) for b in _STYLE.findall(text)[:20]})
    inline = sorted({_hash(b) for b in _INLINE.findall(text)[:2000]})
    hashed = " ".join(blocks) + (f" 'unsafe-hashes' {' '.join(inline)}" if inline else "")
    hashed = hashed or "'none'"
    policy = (
        f"sandbox; default-src 'none'; img-src data:; style-src {hashed}; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    )
    headers = {"content-security-policy": policy, "x-frame-options": "SAMEORIGIN"}
    return HTMLResponse(text, headers=headers)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def adapter(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    return download(place.folder / "adapter.safetensors", f"{place.folder.name}.safetensors")


def download(file: Any, name: str) -> Response:
    if not file.is_file() or file.is_symlink():  # a link may lead to anything of the user's
        raise NotHere
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
    headers = {"content-security-policy": "sandbox; default-src 'none'"}
    return FileResponse(
        file, filename=plain, media_type="application/octet-stream", headers=headers
    )


def _place(studio: Studio, request: Request) -> RunPlace:
    place = found(studio.desk.run(request.path_params["run"]))
    try:
        studio.desk.record(place.folder)
    except RunError as error:
        raise NotHere from error
    return place


def _job(studio: Studio, place: RunPlace) -> Job | None:
    """The latest job of ours that fills this run."""
    makers = ("trial", "train", "demo", "tune")
    made = [j for j in studio.desk.jobs.all() if j.verb in makers and works_on(j, place.folder)]
    active = [j for j in made if not j.over]
    return active[0] if active else max(made, key=lambda j: j.made, default=None)
