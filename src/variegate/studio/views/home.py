"""The first page, settings and doctor, and the door for those who come with a password."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from variegate.report.page import chips
from variegate.studio.frame import Form, Refused, Studio, go, page
from variegate.studio.views.cards import run_cards

SHOWN = 6  # runs on the first page


def home(studio: Studio, request: Request, form: Form) -> Response:
    cards = run_cards(studio, studio.desk.runs()[:SHOWN])
    demo = studio.desk.jobs.of(studio.desk.home / "runs" / "demo", "demo")
    active = next((j for j in demo if not j.over), None)
    return page(studio, request, "home.html", cards=cards, demo=active, chips=chips)


def start_demo(studio: Studio, request: Request, form: Form) -> Response:
    out = studio.desk.home / "runs" / "demo"
    running = [j for j in studio.desk.jobs.of(out, "demo") if not j.over]
    if not running:
        words = ["demo", "--out", str(out)]
        title = studio.words("jobs.demo")
        studio.desk.jobs.add(words, title=title, lane="device", about=str(out))
    return go("/runs")


def settings(studio: Studio, request: Request, form: Form) -> Response:
    kept = studio.desk.settings()
    jobs = studio.desk.jobs.of("doctor", "doctor")
    answer = studio.desk.jobs.answer(jobs[0]) if jobs else None
    return page(
        studio,
        request,
        "settings.html",
        base=str(kept.get("base") or "pocket"),
        encoder=str(kept.get("encoder") or ""),
        doctor=answer,
        doctor_job=jobs[0] if jobs else None,
    )


def keep_settings(studio: Studio, request: Request, form: Form) -> Response:
    base = form.get("base", "").strip()[:500] or "pocket"
    studio.desk.keep_settings(base=base, encoder=form.get("encoder", "").strip()[:500])
    return go("/settings")


def ask_doctor(studio: Studio, request: Request, form: Form) -> Response:
    jobs = studio.desk.jobs
    if not [j for j in jobs.of("doctor", "doctor") if not j.over]:
        jobs.add(["doctor"], title=studio.words("jobs.doctor"), lane="desk", about="doctor")
    return go("/settings")


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
