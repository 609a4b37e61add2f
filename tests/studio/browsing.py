"""A real browser for the tests: Debian's Chromium, driven by Playwright; else they are skipped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PLACES = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
SHOTS = os.environ.get("VARIEGATE_SCREENS")  # a folder: what the tests saw is kept there
PATIENCE = float(os.environ.get("VARIEGATE_PATIENCE", "1"))  # more where the machine is busy
SERIOUS = ("serious", "critical")


def chromium() -> str:
    """The browser's program; the test is skipped, with the reason, where there is none."""
    pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    found = next((p for p in PLACES if Path(p).exists()), None) or shutil.which("chromium")
    if found is None:
        pytest.skip("needs a browser: apt-get install chromium")
    return found


@contextmanager
def browser() -> Iterator[Any]:
    program = chromium()
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE * 5_000)
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=FLAGS, headless=True)
        yield opened
        opened.close()


@dataclass
class Window:
    """A page, and what its browser complained of."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)

    def to(self, path: str) -> None:
        self.page.goto(self.address + path)

    def shot(self, name: str) -> None:
        if SHOTS:
            Path(SHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)

    def fits(self) -> None:
        """Nothing sticks out to the side, once plots have heard of a new width."""
        for _ in range(30):
            width, inner = self.page.evaluate(
                "[document.documentElement.scrollWidth, window.innerWidth]"
            )
            if width <= inner:
                break
            self.page.wait_for_timeout(100)
        assert width <= inner, (self.page.url, width, inner)

    def is_usable(self) -> None:
        """No serious violation, as axe-core sees it."""
        for found in violations(self.page):
            assert found["impact"] not in SERIOUS, (
                self.page.url,
                found["id"],
                [node["html"][:200] for node in found["nodes"][:3]],
            )


def violations(page: Any) -> list[dict[str, Any]]:
    """What axe-core finds wrong on a page as it stands."""
    import axe_playwright_python

    folder = Path(axe_playwright_python.__file__).parent
    script = next(folder.rglob("axe.min.js"))
    # Run by the driver, not by the page, whose policy would refuse it.
    page.evaluate(script.read_text(encoding="utf8"))
    told = page.evaluate("axe.run({resultTypes: ['violations']})")
    return list(told["violations"])


def open_window(opened: Any, line: str, **how: Any) -> Window:
    """A window at the address that the studio printed."""
    context = opened.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
    page = context.new_page()
    page.set_default_timeout(PATIENCE * 30_000)
    window = Window(page, line.partition("/?")[0])
    page.on(
        "console",
        lambda m: window.complaints.append(m.text) if m.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: window.complaints.append(str(error)))
    page.goto(line)
    return window


class Served:
    """A studio in a process of its own, which can be killed and started again."""

    def __init__(self, home: Path, cwd: Path) -> None:
        self.home, self.cwd = home, cwd
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        words = ["-m", "variegate", "studio", "--port", "0", "--home", str(self.home)]
        self.process = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.cwd,
        )
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        """As the system would: no last words."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


def looked_at(home: Path) -> None:
    """As if the doctor had been here: no process is spent on that at the start."""
    from variegate.studio.jobs import Jobs

    jobs = Jobs(home / "jobs")
    if not jobs.of("doctor", "doctor"):
        job = jobs.add(["doctor"], title="Looking at this machine", lane="desk", about="doctor")
        answer = {"torch": {"speed": {"float32": 100.0}}, "device": "cpu", "fit": True}
        (jobs.folder / job.id / "answer.json").write_text(json.dumps({**answer, "checks": []}))
        jobs._write(replace(job, state="done", ended=1.0))


@contextmanager
def served(home: Path, cwd: Path) -> Iterator[Served]:
    looked_at(home)
    studio = Served(home, cwd)
    try:
        yield studio
    finally:
        studio.kill()
        end_jobs(home)


def end_jobs(home: Path) -> None:
    """Nothing that a test began outlives it."""
    from variegate.studio import jobs as room

    for job in room.Jobs(home / "jobs").all():
        if job.state in ("running", "waiting") and (process := room._process(job)):
            process.kill()
