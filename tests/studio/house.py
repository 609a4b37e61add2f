"""A studio with something of everything in it, and a visitor who knows the way in."""

from __future__ import annotations

import atexit
import json
import re
import shutil
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

import anyio
from anyio.from_thread import start_blocking_portal
from starlette.applications import Starlette
from tests.report.drawn_runs import write_run

from variegate.cli import VERBS
from variegate.studio.app import make_app
from variegate.studio.desk import Desk, write_json
from variegate.studio.jobs import Job
from variegate.studio.sets import PictureSet
from variegate.studio.walls import Keys

PORT = 7860
ORIGIN = f"http://127.0.0.1:{PORT}"
PHOTOS = Path(__file__).parents[1] / "data" / "photos"
ALL_VERBS = frozenset({*(v.__name__ for v in VERBS), "pick", "share", "tune"})
PASSWORD = "correct horse"


@dataclass(frozen=True)
class House:
    """A home folder with a set, a run, a check, a blend and a waiting job in it."""

    desk: Desk
    keys: Keys
    app: Starlette
    set: PictureSet
    run: Path
    check: Path
    blend: Path
    job: Job

    def ids(self) -> dict[str, str]:
        """What stands for each part of an address."""
        return {
            "set": self.desk.id_of(self.set.folder),
            "run": self.desk.id_of(self.run),
            "check": self.desk.id_of(self.check),
            "blend": self.desk.id_of(self.blend),
            "job": self.job.id,
            "do": "up",
            "which": "verdict",
            "shot": self.desk.id_of(self.set.shots()[0].file),
            "picture": self.desk.show(self.set.shots()[0].file),
            "side": "160",
            "name": self.app.state.studio.assets.path("studio.css").rpartition("/")[2],
        }

    def pages(self) -> list[str]:
        """Where every whole page is, one of each."""
        ids = self.ids()
        return [
            *("/", "/pictures", "/runs", "/check", "/blend", "/tune", "/settings", "/enter"),
            *(f"/pictures/{ids['set']}{part}" for part in ("", "/plan", "/map")),
            *(f"/runs/{ids['run']}{part}" for part in ("", "/report", "/compare", "/share")),
            *(f"/check/{ids['check']}", f"/blend/{ids['blend']}"),
        ]

    def looked(self, **told: Any) -> None:
        """The pictures as an audit saw them, without one being done."""
        self.visitor().post(f"/pictures/{self.ids()['set']}/look")
        job = self.desk.jobs.of(self.set.folder, "audit")[0]
        answer = {"usable": 3, "effective_images": 1.5, "limited_by": [], "duplicates": []}
        answer |= {"faults": [], "findings": []} | told
        (self.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
        self.desk.jobs._write(replace(job, state="done", ended=1.0))

    def visitor(self, *, inside: bool = True) -> Visitor:
        return Visitor(self, inside=inside)


def build(home: Path, *, password: str | None = None) -> House:
    """Nothing runs in it: the queue is kept only while the application's lifespan is entered."""
    desk = Desk(home)
    pictures = desk.new_set()
    for number, photo in enumerate(sorted(PHOTOS.glob("*.jpg"))[:3]):
        pictures.take_in(copied(photo, home), caption=f"a monster {number}" if number else None)
    pictures.tell(name="Monsters", trigger="zqx", noun="toy")
    run = write_run(home / "runs" / "owls", narrowed=True, seeds=2)
    check = desk.new_place("checks")
    write_json(check / ".check.json", {"name": "theirs.safetensors", "trigger": "zqx"})
    blend = desk.new_place("blends")
    write_json(blend / ".blend.json", {"names": ["a", "b"], "weights": [0.5, 0.5]})
    job = desk.jobs.add(["recipe"], title="a recipe", lane="device")
    keys = Keys(password=password)
    app = make_app(desk, keys=keys, port=PORT, verbs=ALL_VERBS)
    return House(desk, keys, app, pictures, run, check, blend, job)


def copied(photo: Path, home: Path) -> Path:
    arriving = home / ".incoming" / photo.name
    arriving.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(photo, arriving)
    return arriving


@dataclass(frozen=True)
class Answer:
    """What came back. `cookies` are the set-cookie lines as they were sent."""

    status: int
    headers: dict[str, str]
    cookies: tuple[str, ...]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf8", "replace")


def weight(house: House, page: Answer) -> int:
    """Bytes until a page stands: itself, its style sheets and scripts, as they travel."""
    assets = house.app.state.studio.assets
    linked = set(re.findall(r'(?:src|href)="/static/([^"]+)"', page.text))
    return len(page.body) + sum(len(assets.get(name).packed) for name in linked)


class Visitor:
    """A browser as far as the walls can tell: its cookies, its page's key, its origin. Addresses
    go to the application as they are written: no client tidies them up on the way."""

    def __init__(self, house: House, *, inside: bool) -> None:
        self.house = house
        self.jar: dict[str, str] = {}
        self.get(f"/?token={house.keys.token}" if inside else "/enter")

    @property
    def csrf(self) -> str:
        return self.jar.get(f"variegate_csrf_{PORT}", "")

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, headers)

    def post(self, path: str, data: Any = None, **headers: str | None) -> Answer:
        """A request as our own page makes it; a header given as None is left out."""
        body, kind = data, "application/octet-stream"
        if not isinstance(data, bytes | list):
            body, kind = urlencode(data or {}).encode(), "application/x-www-form-urlencoded"
        sent: dict[str, str | None] = {
            "origin": ORIGIN,
            "sec-fetch-site": "same-origin",
            "x-csrf-token": self.csrf,
            "hx-request": "true",
            "content-type": kind,
        }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask("POST", path, sent, body)

    def ask(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str | None],
        body: bytes | list[bytes] = b"",
    ) -> Answer:
        """body: a list comes in parts and says nothing of its length."""
        jar = "; ".join(f"{k}={v}" for k, v in self.jar.items())
        sent: dict[str, str | None] = {"host": f"127.0.0.1:{PORT}", "cookie": jar}
        if isinstance(body, bytes) and method != "GET":
            sent["content-length"] = str(len(body))
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        where, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(where),
            "raw_path": where.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (k.encode(), v.encode("latin-1")) for k, v in sent.items() if v is not None
            ],
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", PORT),
            "state": {},
        }
        answer = _portal().call(_answer, self.house.app, scope, body)
        for line in answer.cookies:
            name, _, value = line.partition(";")[0].partition("=")
            self.jar[name] = value
        return answer


@cache
def _portal() -> Any:
    """One event loop for all visits; making one for each costs more than the visit."""
    opened = start_blocking_portal()
    atexit.register(opened.__exit__, None, None, None)
    return opened.__enter__()


async def _answer(app: Starlette, scope: dict[str, Any], body: bytes | list[bytes]) -> Answer:
    parts = [body] if isinstance(body, bytes) else list(body)
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if parts:
            chunk = parts.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(parts)}
        await anyio.sleep_forever()  # the browser stays where it is
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    # A fault of ours is answered with 500 and then raised, for the server's log.
    try:
        await app(scope, receive, send)
    except Exception:
        traceback.print_exc()
    start = sent[0]
    headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in start["headers"]]
    return Answer(
        start["status"],
        dict(headers),
        tuple(v for k, v in headers if k == "set-cookie"),
        b"".join(m.get("body", b"") for m in sent[1:]),
    )
