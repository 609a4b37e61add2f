"""Pictures: brought in, captioned where they stand, look-alikes and findings beside them."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from variegate.errors import ImagesError, VariegateError
from variegate.images.captions import clean
from variegate.studio import zips
from variegate.studio.frame import Form, NotHere, Refused, Studio, found, go, page
from variegate.studio.incoming import TooLarge, receive
from variegate.studio.jobs import Job
from variegate.studio.planning import PEOPLE, Forecast, forecast, resolution_of
from variegate.studio.sets import CHANGES, Box, PictureSet, Shot, families, holds

PER_PAGE = 48
MOST_PICTURE = 128 * 2**20  # bytes of one file
MOST_ZIP = 2 * 2**30


def listing(studio: Studio, request: Request, form: Form) -> Response:
    sets = [
        (studio.desk.id_of(s.folder), s, [studio.desk.show(x.file) for x in s.shots()[:4]])
        for s in studio.desk.sets()
    ]
    return page(studio, request, "pictures.html", sets=sets)


def new(studio: Studio, request: Request, form: Form) -> Response:
    made = studio.desk.new_set()
    count = len(studio.desk.sets())
    made.tell(name=studio.words("pictures.new_name", n=count))
    return go(f"/pictures/{studio.desk.id_of(made.folder)}")


@dataclass(frozen=True)
class Card:
    """A picture on the page: what it is called outside, and how many are like it."""

    id: str
    shown: str
    caption: str | None
    number: int
    alike: int


@dataclass(frozen=True)
class Seen:
    """What is known of a set: the audit of it as it is now (or as it was: `stale`), and the job
    that is about to know it. fixes: what one press can mend, by its name: pictures, and what is
    kept of each."""

    audit: dict[str, Any] | None
    stale: bool
    job: Job | None
    groups: list[list[Shot]]
    unusable: list[tuple[str, str, str]]
    fixes: dict[str, dict[str, Box]]
    expected: Forecast | None


def one(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "set.html", **_context(studio, set_of(studio, request)))


def more(studio: Studio, request: Request, form: Form) -> Response:
    """The next pictures of a long set."""
    pictures = set_of(studio, request)
    try:
        start = max(0, int(request.query_params.get("from", "0")))
    except ValueError:
        start = 0
    context = _context(studio, pictures, start=start)
    return page(studio, request, "set_cards.html", **context)


def findings(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "set_findings.html", **_context(studio, set_of(studio, request)))


def look(studio: Studio, request: Request, form: Form) -> Response:
    pictures = set_of(studio, request)
    ask_audit(studio, pictures)
    return _whole(studio, request, pictures)


def name(studio: Studio, request: Request, form: Form) -> Response:
    pictures = set_of(studio, request)
    given = {k: form[k] for k in ("name", "trigger", "noun") if k in form}
    before = pictures.trigger
    pictures.tell(**given)
    if pictures.trigger != before:
        ask_audit(studio, pictures)
    return page(studio, request, "set_findings.html", **_context(studio, pictures))


def caption(studio: Studio, request: Request, form: Form) -> Response:
    pictures = set_of(studio, request)
    shot = shot_of(studio, pictures, form.get("picture", ""))
    pictures.say({shot.name: form.get("caption", "")})
    ask_audit(studio, pictures)
    return _findings(studio, request, pictures)


def captions(studio: Studio, request: Request, form: Form) -> Response:
    """Give every picture without a caption a first one, or put the trigger into all."""
    pictures, shots = set_of(studio, request), set_of(studio, request).shots()
    trigger = pictures.trigger
    if not trigger:
        raise Refused(studio.words("pictures.needs_trigger"))
    if form.get("do") == "first":
        first = studio.words("pictures.first_caption", trigger=trigger)
        pictures.say({s.name: first for s in shots if not s.caption})
    else:
        lacking = [s for s in shots if s.caption and not holds(s.caption, trigger)]
        pictures.say({s.name: f"{trigger}, {s.caption}" for s in lacking})
    ask_audit(studio, pictures)
    return _whole(studio, request, pictures)


def aside(studio: Studio, request: Request, form: Form) -> Response:
    """Set one picture aside, or all of a group but one, or all that cannot be used."""
    pictures = set_of(studio, request)
    seen = seen_set(studio, pictures)
    where = studio.desk.id_of(pictures.folder)
    if form.get("do") == "keep one":
        group = next((g for g in seen.groups if _group_id(studio, g) == form.get("group")), None)
        kept = shot_of(studio, pictures, form.get("picture", ""))
        pictures.set_aside([s.name for s in found(group) if s.name != kept.name])
    elif form.get("do") == "unusable":
        pictures.set_aside([n for n, _, _ in seen.unusable])
    else:
        pictures.set_aside([shot_of(studio, pictures, form.get("picture", "")).name])
    ask_audit(studio, pictures)
    if form.get("from") == "map":
        return go(f"/pictures/{where}/map")
    return _whole(studio, request, pictures)


def fix(studio: Studio, request: Request, form: Form) -> Response:
    """Do what the look at the pictures proposes: mirror some, crop some, or take bars off."""
    pictures = set_of(studio, request)
    do, seen = form.get("do", ""), seen_set(studio, pictures)
    if do not in CHANGES:
        raise NotHere
    if do not in seen.fixes:
        raise Refused(studio.words("pictures.fix_gone"))
    pictures.change(do, seen.fixes[do], mirrored=do == "mirror")
    ask_audit(studio, pictures)
    return _whole(studio, request, pictures)


def undo(studio: Studio, request: Request, form: Form) -> Response:
    pictures = set_of(studio, request)
    if not pictures.undo():
        raise Refused(studio.words("pictures.nothing_to_undo"))
    ask_audit(studio, pictures)
    return _whole(studio, request, pictures)


async def upload(request: Request) -> Response:
    """One file as the body of one request: a picture, or a ZIP of them. Its name is somebody's
    words and only told back; its caption comes in a header, and the drop that it is a part of."""
    studio: Studio = request.app.state.studio
    pictures = await run_in_threadpool(studio.desk.set, request.path_params["set"])
    if pictures is None:
        return JSONResponse({"why": studio.words("faults.not_here")}, 404)
    told = clean(unquote(request.headers.get("x-file-name", "")))[:120]
    caption = request.headers.get("x-caption")
    # An archive is one drop even where the page names none.
    drop = clean(request.headers.get("x-drop", ""))[:60] or uuid.uuid4().hex
    packed = request.headers.get("content-type") == "application/zip"
    arriving = studio.desk.home / ".incoming" / uuid.uuid4().hex
    try:
        await receive(request, arriving, most=MOST_ZIP if packed else MOST_PICTURE)
        taken, refused = await run_in_threadpool(
            _take, pictures, arriving, unquote(caption) if caption else None, packed, drop
        )
    except TooLarge as error:
        return JSONResponse(
            {"file": told, "why": studio.words("faults.too_large", most=error)}, 413
        )
    except ClientDisconnect:
        return Response(status_code=400)
    except VariegateError as error:
        return JSONResponse({"file": told, "why": str(error)}, 422)
    finally:
        arriving.unlink(missing_ok=True)
    return JSONResponse({"file": told, "taken": taken, "refused": refused})


def _take(
    pictures: PictureSet, file: Path, caption: str | None, packed: bool, drop: str
) -> tuple[int, list[list[str]]]:
    if not packed:
        told = clean(caption) if caption is not None else None
        pictures.take_in(file, caption=told, drop=drop)
        return 1, []
    taken, refused = 0, []
    for each in zips.pictures_in(file, file.parent):
        try:
            pictures.take_in(each.file, caption=each.caption, drop=drop)
            taken += 1
        except ImagesError as error:
            refused.append([each.told, str(error)])
    if not taken and not refused:
        raise ImagesError("the archive holds no pictures; expected PNG, JPEG or WebP files")
    return taken, refused[:50]


def ask_audit(studio: Studio, pictures: PictureSet) -> None:
    """Let the pictures be looked at as they are now; what waited for it before is struck out."""
    jobs, stamp = studio.desk.jobs, pictures.stamp
    for job in jobs.of(pictures.folder, "audit"):
        if job.state == "waiting":
            jobs.stop(job)
        elif job.tag == stamp and job.state in ("running", "done"):
            return
    if not pictures.count():
        return
    words = ["audit", str(pictures.folder)]
    if pictures.trigger:
        words += ["--trigger", pictures.trigger]
    words += ["--resolution", str(resolution_of(str(studio.desk.settings().get("base") or "")))]
    title = studio.words("jobs.audit", name=pictures.name)
    jobs.add(words, title=title, lane="desk", about=str(pictures.folder), tag=stamp)


def seen_audit(studio: Studio, pictures: PictureSet) -> tuple[dict[str, Any] | None, str]:
    """The latest audit of a set that is done, and the stamp of the pictures that it saw."""
    for job in studio.desk.jobs.of(pictures.folder, "audit"):
        if job.state == "done" and (answer := studio.desk.jobs.answer(job)):
            return answer, job.tag
    return None, ""


def set_of(studio: Studio, request: Request) -> PictureSet:
    return found(studio.desk.set(request.path_params["set"]))


def shot_of(studio: Studio, pictures: PictureSet, name: str) -> Shot:
    shot = next((s for s in pictures.shots() if studio.desk.id_of(s.file) == name), None)
    if shot is None:
        raise NotHere
    return shot


def _group_id(studio: Studio, group: list[Shot]) -> str:
    return studio.desk.id_of(group[0].file, "group")


def seen_set(studio: Studio, pictures: PictureSet) -> Seen:
    audit, stamp = seen_audit(studio, pictures)
    jobs = [j for j in studio.desk.jobs.of(pictures.folder, "audit") if not j.over]
    stale = audit is not None and stamp != pictures.stamp
    groups: list[list[Shot]] = []
    unusable: list[tuple[str, str, str]] = []
    if audit is not None:
        there = {s.name: s for s in pictures.shots()}
        for family in families(audit.get("duplicates") or ()):
            known = [there[n] for f in family if (n := Path(str(f)).name) in there]
            if len(known) > 1:
                groups.append(known)
        for told in audit.get("faults") or ():
            file = Path(str(told.get("file", "")))
            if not told.get("usable", True) and (pictures.folder / file.name).is_file():
                unusable.append((file.name, str(told.get("fault")), str(told.get("advice"))))
    return Seen(
        audit,
        stale,
        jobs[0] if jobs else None,
        groups,
        unusable,
        _fixes(audit, pictures) if audit and not stale and not jobs else {},
        forecast(audit) if audit else None,
    )


def _fixes(audit: dict[str, Any], pictures: PictureSet) -> dict[str, dict[str, Box]]:
    """What an audit proposes, as far as it makes sense: what does not was not written by ours."""
    found: dict[str, dict[str, Box]] = {}
    for told in audit.get("fixes") or ():
        do = told.get("fix")
        boxes = {
            Path(str(file)).name: (float(left), float(top), float(right), float(bottom))
            for file, left, top, right, bottom in told.get("pictures") or ()
        }
        people = PEOPLE & set(pictures.noun.lower().split())
        if do in CHANGES and boxes and not (do == "mirror" and people):
            found[do] = boxes
    return found


def _context(studio: Studio, pictures: PictureSet, *, start: int = 0) -> dict[str, Any]:
    seen, shots = seen_set(studio, pictures), pictures.shots()
    alike = {s.name: len(g) for g in seen.groups for s in g}
    cards = [
        Card(
            id=studio.desk.id_of(s.file),
            shown=studio.desk.show(s.file),
            caption=s.caption,
            number=start + i + 1,
            alike=alike.get(s.name, 0),
        )
        for i, s in enumerate(shots[start : start + PER_PAGE])
    ]
    trigger = pictures.trigger
    return {
        "set": pictures,
        "id": studio.desk.id_of(pictures.folder),
        "count": len(shots),
        "cards": cards,
        "next": start + PER_PAGE if start + PER_PAGE < len(shots) else 0,
        "seen": seen,
        "groups": [
            (
                _group_id(studio, g),
                [(studio.desk.id_of(s.file), studio.desk.show(s.file)) for s in g],
            )
            for g in seen.groups
        ],
        "bare": sum(1 for s in shots if not s.caption),
        "lacking": sum(1 for s in shots if trigger and s.caption and not holds(s.caption, trigger)),
    }


def _whole(studio: Studio, request: Request, pictures: PictureSet) -> Response:
    return page(studio, request, "set_body.html", **_context(studio, pictures))


def _findings(studio: Studio, request: Request, pictures: PictureSet) -> Response:
    answer = page(studio, request, "set_findings.html", **_context(studio, pictures))
    answer.headers["HX-Trigger"] = json.dumps({"kept": True})
    return answer
