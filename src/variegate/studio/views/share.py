"""A run as a folder for others: what `share` writes, looked at before it leaves the house."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from variegate.studio.desk import RunPlace
from variegate.studio.frame import Form, NotHere, Refused, Studio, found, go, page
from variegate.studio.watching import stage_of

MOST_LISTED = 60
TEXTS = (".md", ".txt", ".json")
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def share(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "share.html", **_context(studio, _place(studio, request)))


def state(studio: Studio, request: Request, form: Form) -> Response:
    return page(studio, request, "share_state.html", **_context(studio, _place(studio, request)))


def make(studio: Studio, request: Request, form: Form) -> Response:
    place = _place(studio, request)
    if not (place.folder / "adapter.safetensors").is_file():
        raise Refused(studio.words("share.no_adapter"))
    out = _out(studio, place)
    if any(not j.over for j in studio.desk.jobs.of(out, "share")):
        raise Refused(studio.words("live.already"))
    shutil.rmtree(out, ignore_errors=True)  # what was packed before is packed anew
    out.parent.mkdir(exist_ok=True)
    words = ["share", str(place.folder), "--out", str(out)]
    if form.get("private"):
        words.append("--private")
    title = studio.words("jobs.share", name=place.name)
    studio.desk.jobs.add(words, title=title, lane="device", about=str(out))
    return go(f"/runs/{place.id}/share")


def bundle(studio: Studio, request: Request, form: Form) -> Response:
    """The folder as one ZIP, made when it is asked for and taken away once it is sent."""
    place = _place(studio, request)
    out = _out(studio, place)
    files = [f for f in sorted(out.rglob("*")) if f.is_file() and not f.is_symlink()]
    if not files:
        raise NotHere
    at = studio.desk.home / ".incoming" / f"share-{place.id}-{os.getpid()}.zip"
    at.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(at, "w", zipfile.ZIP_STORED) as packed:
        for file in files:
            packed.write(file, file.relative_to(out).as_posix())
    gone = BackgroundTask(at.unlink, missing_ok=True)
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in place.name)
    return FileResponse(at, filename=f"{name}.zip", media_type="application/zip", background=gone)


def _place(studio: Studio, request: Request) -> RunPlace:
    if "share" not in studio.verbs:
        raise NotHere
    return found(studio.desk.run(request.path_params["run"]))


def _out(studio: Studio, place: RunPlace) -> Path:
    return studio.desk.home / "shared" / place.id


def _context(studio: Studio, place: RunPlace) -> dict[str, Any]:
    out = _out(studio, place)
    jobs = studio.desk.jobs.of(out, "share")
    job = jobs[0] if jobs else None
    files = [f for f in sorted(out.rglob("*")) if f.is_file()] if out.is_dir() else []
    ready = bool(files) and job is not None and job.state == "done"
    return {
        "id": place.id,
        "place": place,
        "job": job,
        "stage": stage_of(studio.desk.jobs.log(job)) if job and job.state == "running" else None,
        "files": [(f.relative_to(out).as_posix(), f.stat().st_size) for f in files[:MOST_LISTED]]
        if ready
        else [],
        "pictures": [studio.desk.show(f) for f in files if f.suffix.lower() in PICTURES][:9]
        if ready
        else [],
        "card": _text(out / "README.md") if ready else "",
        "ready": ready,
        "adapter": (place.folder / "adapter.safetensors").is_file(),
    }


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf8", errors="replace")[:20_000]
    except OSError:
        return ""
