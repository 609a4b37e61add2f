"""Nobody gets past the wall, on any address that there is."""

from __future__ import annotations

import logging
import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from tests.studio.house import PASSWORD, PORT, House, build

from variegate.studio import app as room
from variegate.studio.views import runs
from variegate.studio.walls import Keys

HOSTS = (
    *("evil.example", "127.0.0.1.evil.com", "localhost.evil.com", "", f"evil.example:{PORT}"),
    *("127.0.0.1:80", "[::1", "169.254.169.254", "127.0.0.1:7860@evil.example", "2130706433"),
)
# What takes the place of an id: none of it may lead anywhere.
ESCAPES = (
    *("..", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f", "%00", "a%00b", "..\\..\\windows", "%5c%5chost"),
    *("/etc/passwd", "C:%5Cx", "%2fetc%2fpasswd", "0" * 20, "F" * 20, "a" * 21, "a" * 4000, "*"),
)
READ = [r for r in room.routes() if isinstance(r, Route) and "GET" in r.methods]
CHANGE = [r for r in room.routes() if isinstance(r, Route) and "POST" in r.methods]
OPEN = ("/static/{name}", "/enter")


@pytest.fixture(autouse=True)
def short_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "BEAT", 0.001)
    monkeypatch.setattr(runs, "LASTS", 0.001)


def address(route: Route, house: House) -> str:
    """The route with an id in every place that leads somewhere."""
    ids = house.ids()
    return re.sub(r"\{(\w+)(?::\w+)?\}", lambda m: ids[m[1]], route.path)


def names(routes: list[Route]) -> list[str]:
    return [route.path for route in routes]


def test_every_route_is_either_read_or_asked_for_and_all_are_here() -> None:
    table = room.routes()
    assert all(isinstance(r, Route) for r in table)
    for route in (r for r in table if isinstance(r, Route)):
        methods = route.methods - {"HEAD"}
        assert methods in ({"GET"}, {"POST"}) or route.path == "/enter", route.path
        # Nothing but ids of ours, small words and numbers stands in an address.
        kinds = re.findall(r"\{\w+(?::(\w+))?\}", route.path)
        assert set(kinds) <= {"id", "job", "word", "int"} or route.path == "/static/{name}"


@pytest.mark.parametrize("route", READ, ids=names(READ))
def test_reading_needs_a_session_and_our_own_host(route: Route, shared: House) -> None:
    path, inside, outside = address(route, shared), shared.visitor(), shared.visitor(inside=False)
    assert inside.get(path).status in (200, 404)
    for host in HOSTS:
        refused = inside.get(path, host=host)
        assert refused.status == 400, host
        assert refused.body == b""
    if route.path not in OPEN:
        for key in ("", "?token=", "?token=wrong", f"?token={Keys().token}"):
            assert outside.get(path + key).status == 401, key
        foreign = {"cookie": f"variegate_session_{PORT}={Keys().session}"}
        assert outside.get(path, **foreign).status == 401
    for site in ("cross-site", "same-site", "nonsense"):
        assert inside.get(path, sec_fetch_site=site).status == 403


@pytest.mark.parametrize("route", READ, ids=names(READ))
def test_reading_changes_nothing(route: Route, shared: House) -> None:
    visitor, path = shared.visitor(), address(route, shared)

    def everything() -> dict[str, bytes]:
        return {
            str(p): p.read_bytes()
            for p in shared.desk.home.rglob("*")
            if p.is_file() and not {".thumbs", ".incoming"} & set(p.parts)
        }

    before = everything()
    visitor.get(path)
    visitor.get(path + "?do=stop&picture=x&from=-1&card=person&level=9")
    assert everything() == before


@pytest.mark.parametrize("route", CHANGE, ids=names(CHANGE))
def test_changing_needs_origin_session_and_the_pages_key(route: Route, shared: House) -> None:
    path, visitor = address(route, shared), shared.visitor()
    other = shared.visitor()
    refusals: list[dict[str, Any]] = [
        *({"origin": o} for o in (None, "null", "https://127.0.0.1:7860", "http://127.0.0.1")),
        *({"origin": o} for o in ("http://evil.example", "http://127.0.0.1:7861", "", "file://")),
        *({"sec_fetch_site": s} for s in ("cross-site", "same-site")),
        *({"x_csrf_token": t} for t in (None, "", "x.y", Keys().signed(), other.csrf)),
    ]
    for refused in refusals:
        assert visitor.post(path, **refused).status == 403, refused
    assert visitor.get(path).status in (200, 404, 405)
    if route.path not in OPEN:
        assert shared.visitor(inside=False).post(path).status == 401
    for host in HOSTS:
        assert visitor.post(path, host=host, origin=f"http://{host}").status == 400
    passed = visitor.post(path)
    assert passed.status in (200, 204, 404, 422), passed.text


@pytest.mark.parametrize("route", [r for r in READ + CHANGE if "{" in r.path], ids=lambda r: r.path)
def test_what_is_no_id_leads_nowhere(route: Route, shared: House) -> None:
    visitor = shared.visitor()
    places = re.findall(r"\{\w+(?::\w+)?\}", route.path)
    ids = shared.ids()
    for place, escape in product(places, ESCAPES):
        path = route.path.replace(place, escape)
        path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda m: ids[m[1]], path)
        if "GET" in route.methods:
            assert visitor.get(path).status in (400, 404), path
        if "POST" in route.methods:
            assert visitor.post(path).status in (400, 404, 405), path


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {}),
        ("GET", "/nowhere", {}),
        ("GET", "/", {"host": "evil.example"}),
        ("GET", "/runs", {"cookie": ""}),
        ("POST", "/demo", {"origin": "null"}),
        ("GET", "/thumb/" + "0" * 20 + "/160", {}),
        ("PUT", "/settings", {}),
    ],
)
def test_every_answer_tells_the_browser_to_trust_nothing_else(
    method: str, path: str, headers: dict[str, str], shared: House
) -> None:
    answer = shared.visitor().ask(method, path, headers)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_reports_page_is_in_a_box_of_its_own(house: House) -> None:
    visitor = house.visitor()
    evil = '<style>p{}</style><p style="left: 3%">hi</p><script>alert(1)</script>'
    (house.run / "report.html").write_text(evil)
    answer = visitor.get(f"/runs/{house.ids()['run']}/page")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox; default-src 'none';")
    assert "script" not in policy
    assert "unsafe-inline" not in policy
    assert "allow-scripts" not in policy
    assert policy.count("'sha256-") == 2


def test_a_link_in_a_strange_run_leads_nowhere(house: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("a secret")
    visitor, run = house.visitor(), house.ids()["run"]
    for name, path in (("report.html", "page"), ("adapter.safetensors", "adapter")):
        (house.run / name).unlink(missing_ok=True)
        (house.run / name).symlink_to(secret)
        answer = visitor.get(f"/runs/{run}/{path}")
        assert answer.status == 404
        assert b"secret" not in answer.body
    linked = house.desk.home / "runs" / "linked"
    linked.symlink_to(house.run)
    house.desk.forget_listing()
    assert [r.folder for r in house.desk.runs()] == [house.run]


def test_the_token_becomes_a_cookie_that_only_this_site_gets(house: House) -> None:
    visitor = house.visitor(inside=False)
    answer = visitor.get(f"/runs?token={house.keys.token}&from=3")
    assert (answer.status, answer.headers["location"]) == (303, "/runs?from=3")
    assert answer.cookies
    assert all("HttpOnly" in c and "SameSite=Strict" in c for c in answer.cookies)
    assert house.keys.token not in "".join(answer.cookies)
    evil = visitor.get(f"//evil.example/?token={house.keys.token}")
    assert evil.status in (303, 404)
    assert not evil.headers.get("location", "/").startswith("//")


def test_a_link_from_elsewhere_may_only_arrive_at_the_front_door(shared: House) -> None:
    visitor = shared.visitor()
    arriving = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "navigate"}
    assert visitor.get("/", **arriving).status == 200
    assert visitor.get("/runs", **arriving).status == 403


def test_the_token_is_never_logged(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    house.visitor().get(f"/?token={house.keys.token}")
    house.visitor(inside=False).get("/?token=wrong")
    assert house.keys.token not in caplog.text


def test_a_password_opens_and_guessing_ends(tmp_path: Path) -> None:
    house = build(tmp_path, password=PASSWORD)
    visitor = house.visitor(inside=False)
    assert visitor.get("/").headers["location"] == "/enter"
    assert visitor.get("/runs").status == 401
    for _ in range(5):
        assert visitor.post("/enter", {"password": "guess"}).status == 422
    assert "Too many" in visitor.post("/enter", {"password": PASSWORD}).text
    house.keys.tries.clear()
    assert visitor.post("/enter", {"password": PASSWORD}).status == 204
    assert visitor.get("/runs").status == 200


def test_without_a_password_nobody_enters_by_one(house: House) -> None:
    visitor = house.visitor(inside=False)
    assert visitor.post("/enter", {"password": ""}).status == 422
    assert visitor.get("/").status == 401


def test_a_body_larger_than_any_form_is_refused(shared: House) -> None:
    visitor = shared.visitor()
    assert visitor.post("/settings", b"base=" + b"x" * 3_000_000).status == 413
    kind = "application/x-www-form-urlencoded"  # and no word of how much it is
    answer = visitor.post("/settings", [b"x" * 100_000] * 40, content_type=kind)
    assert answer.status == 413


def test_streams_end_in_number(shared: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MOST_STREAMS", 0)
    answer = shared.visitor().get(f"/runs/{shared.ids()['run']}/events")
    assert answer.status == 503
