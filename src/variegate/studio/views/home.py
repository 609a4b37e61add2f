"""The first page, settings and doctor, and the door for those who come with a password."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from variegate.report.page import chips
from variegate.studio.frame import Form, Refused, Studio, go, page
from variegate.studio.views.cards import run_cards
from variegate.studio.views.runs import framed

SHOWN = 6  # runs on the first page


def home(studio: Studio, request: Request, form: Form) -> Response:
    cards = run_cards(studio, studio.desk.runs()[:SHOWN])
    demo = studio.desk.jobs.of(studio.desk.home / "runs" / "demo", "demo")
    active = next((j for j in demo if not j.over), None)
    there = _demo_page(studio).is_file() and active is None
    return page(studio, request, "home.html", cards=cards, demo=active, chips=chips, there=there)


def start_demo(studio: Studio, request: Request, form: Form) -> Response:
    out = studio.desk.home / "runs" / "demo"
    running = [j for j in studio.desk.jobs.of(out, "demo") if not j.over]
    if not running:
        words = ["demo", "--out", str(out)]
        title = studio.words("jobs.demo")
        studio.desk.jobs.add(words, title=title, lane="device", about=str(out))
    return go("/runs")


def demo_page(studio: Studio, request: Request, form: Form) -> Response:
    """The page on which the demo's two runs stand side by side."""
    return framed(_demo_page(studio))


def _demo_page(studio: Studio) -> Path:
    return studio.desk.home / "runs" / "demo" / "report.html"


def settings(studio: Studio, request: Request, form: Form) -> Response:
    kept = studio.desk.settings()
    jobs = studio.desk.jobs.of("doctor", "doctor")
    return page(
        studio,
        request,
        "settings.html",
        base=str(kept.get("base") or "pocket"),
        encoder=str(kept.get("encoder") or ""),
        doctor=_doctor_told(studio),
        doctor_job=jobs[0] if jobs else None,
    )


def keep_settings(studio: Studio, request: Request, form: Form) -> Response:
    base = form.get("base", "").strip()[:500] or "pocket"
    studio.desk.keep_settings(base=base, encoder=form.get("encoder", "").strip()[:500])
    return go("/settings")


def ask_doctor(studio: Studio, request: Request, form: Form) -> Response:
    call_doctor(studio)
    return go("/settings")


def call_doctor(studio: Studio, *, again: bool = True) -> None:
    """Let the machine be looked at, if nobody is at it; again: even if it was before."""
    jobs = studio.desk.jobs
    if not [j for j in jobs.of("doctor", "doctor") if not (again and j.over)]:
        jobs.add(["doctor"], title=studio.words("jobs.doctor"), lane="desk", about="doctor")


def speeds_of(studio: Studio) -> dict[str, Any] | None:
    """How fast the doctor found this machine's device, by precision; None before it looked."""
    torch = (_doctor_told(studio) or {}).get("torch")
    found = torch.get("speed") if isinstance(torch, dict) else None
    return found if isinstance(found, dict) else None


def _doctor_told(studio: Studio) -> dict[str, Any] | None:
    """What the doctor found when it last came to an end; a look that was stopped found nothing."""
    jobs = studio.desk.jobs
    done = next((j for j in jobs.of("doctor", "doctor") if j.state == "done"), None)
    return jobs.answer(done) if done else None


def enter(studio: Studio, request: Request, form: Form) -> Response:
    if request.method == "GET":
        return page(studio, request, "enter.html")
    right = studio.keys.password_opens(form.get("password", ""))
    if right is None:
        raise Refused(studio.words("enter.too_often"))
    if not right:
        raise Refused(studio.words("enter.wrong"))
    answer = go("/")
    answer.headers.append("set-cookie", request.app.state.session_cookie)
    return answer
