"""How quick the studio is: `scripts/screens --times`, as a table for docs/studio.md.

A home with a set of 1,000 pictures that was looked at, and 50 runs; each screen is opened in
Debian's Chromium three times, of which the middle one counts: bytes until the page stands (as they
travel, no pictures), first paint, and the longest frame while it is scrolled through. Before that,
which a busy machine does not blur: what the server itself works on each page, in processor time.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.studio.browsing import FLAGS, PLACES, served  # noqa: E402
from tests.studio.house import PHOTOS, House, build, weight  # noqa: E402

from variegate.audit import audit  # noqa: E402

PICTURES, RUNS, TIMES = 1000, 50, 3
SCROLLED = """async () => {
  const gaps = [];
  let last = performance.now(), going = true;
  const beat = (now) => {
    gaps.push(now - last);
    last = now;
    if (going) requestAnimationFrame(beat);
  };
  requestAnimationFrame(beat);
  for (let at = 0; at < 12000; at += 120) {
    window.scrollTo(0, at);
    await new Promise((r) => setTimeout(r, 16));
  }
  going = false;
  gaps.sort((a, b) => b - a);
  return [gaps[1] || 0, gaps.filter((g) => g > 100).length];
}"""
PAINTED = """() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  const [page] = performance.getEntriesByType("navigation");
  const parts = performance.getEntriesByType("resource").filter((r) => /static/.test(r.name));
  return [paint ? paint.startTime : null,
          page.encodedBodySize + parts.reduce((sum, r) => sum + r.encodedBodySize, 0)];
}"""


def main() -> None:
    with tempfile.TemporaryDirectory() as made:
        home = Path(made) / "home"
        house = build(home)
        photographs = [Image.open(f).convert("RGB") for f in sorted(PHOTOS.glob("*.jpg"))]
        for number in range(4, PICTURES + 1):
            # No two alike in their bytes, several in their looks.
            photo = photographs[number % len(photographs)]
            shift = 1 + number % 97
            size = photo.width - shift
            photo.crop((shift, shift // 2, shift + size - 40, shift // 2 + size - 40)).save(
                house.set.folder / f"{number:04d}.jpg", quality=85
            )
        for number in range(RUNS):
            shutil.copytree(house.run, home / "runs" / f"run-{number:02d}")
        began = time.perf_counter()
        answer = audit(house.set.folder, trigger="zqx", resolution=64).to_json()
        print(f"<!-- the look at {PICTURES} pictures: {time.perf_counter() - began:.0f} s -->")
        house.visitor().post(f"/pictures/{house.ids()['set']}/look")
        job = house.desk.jobs.of(house.set.folder, "audit")[0]
        (house.desk.jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
        house.desk.jobs._write(replace(job, state="done", ended=time.time()))
        works(house)
        with served(home, home.parent) as studio, sync_playwright() as driver:
            program = next(p for p in PLACES if Path(p).exists())
            opened = driver.chromium.launch(executable_path=program, args=FLAGS)
            table(opened, studio.start(), house.pages())
            opened.close()


def works(house: House) -> None:
    """The server's own work on each page, the middle of `TIMES`, and the page's weight."""
    visitor = house.visitor()
    print("| screen | kB to stand | work of the server, ms |\n|---|---|---|")
    for path in house.pages():
        spent = []
        for _ in range(TIMES):
            house.desk.forget_listing()
            began = time.process_time()
            page = visitor.get(path)
            spent.append(time.process_time() - began)
        middle = 1000 * statistics.median(spent)
        print(f"| {told(path)} | {weight(house, page) / 1000:.0f} | {middle:.0f} |")
    print(flush=True)


def told(path: str) -> str:
    """A page's name: its address without ids."""
    return " ".join(w for w in path.split("/") if w and len(w) != 20) or "home"


def table(opened: Any, line: str, paths: list[str]) -> None:
    print("| screen | kB to stand | first paint, ms | longest frame while scrolling, ms |")
    print("|---|---|---|---|")
    for path in paths:
        rounds = [visit(opened, line, path) for _ in range(TIMES)]
        paint, size, frame = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"| {told(path)} | {size / 1000:.0f} | {paint:.0f} | {frame:.0f} |", flush=True)


def visit(opened: Any, line: str, path: str) -> tuple[float, float, float]:
    """First paint, bytes and longest frame of a browser that has nothing in its cache."""
    context = opened.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    context.request.get(line)  # the session, without a page's files in the cache
    page.goto(line.partition("/?")[0] + path)
    page.wait_for_load_state("load")
    page.wait_for_timeout(300)
    paint, weight = page.evaluate(PAINTED)
    frame, _ = page.evaluate(SCROLLED)
    context.close()
    return paint or float("nan"), weight, frame


if __name__ == "__main__":
    main()
