"""The studio's screens as pictures: `scripts/screens [FOLDER [HOME]]`.

Makes a home of its own, brings pictures to it, learns on the pocket for a minute, and photographs
every screen in Debian's Chromium. Without FOLDER, or with `-`, the few that the documents show are
written to `docs/figures/studio`; with it, all of them in both themes at 390, 820 and 1280 pixels.
HOME: a home that has a run `green-robot` already, so that none is made.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

from tests.studio.browsing import FLAGS, PLACES  # noqa: E402

DEMO = ROOT / "src" / "variegate" / "demo" / "pictures"
PHOTOS = ROOT / "tests" / "data" / "photos"
DOCUMENTS = ROOT / "docs" / "figures" / "studio"
SHOWN = ("home", "pictures", "map", "plan", "live", "report", "check")  # in the documents
SMALL = ("optimizer.steps=80", "probes.every=10", "panels=on", "panels.every=20")
SMALL += ("sampling.preset=quick", "sampling.steps=6", "strategies.new_background=off")
QUALITY = 86  # of a picture in the documents


def main(folder: Path | None, kept: Path | None) -> None:
    with tempfile.TemporaryDirectory() as made, sync_playwright() as driver:
        home = kept or Path(made)
        words = [sys.executable, "-m", "variegate"]
        settings = [w for s in SMALL for w in ("--set", s)]
        trial = ["trial", str(DEMO), "--trigger", "zqx", "--class", "face", *settings]
        if not (home / "runs" / "green-robot" / "verdict.json").exists():
            out = str(home / "runs" / "green-robot")
            subprocess.run([*words, *trial, "--out", out], check=True)
        program = next(p for p in PLACES if Path(p).exists())
        opened = driver.chromium.launch(executable_path=program, args=FLAGS)
        with subprocess.Popen(
            [*words, "studio", "--port", "0", "--home", str(home)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=home,
        ) as studio:
            assert studio.stdout is not None
            line = studio.stdout.readline().strip()
            paths = furnish(opened, line, home / "runs" / "green-robot" / "adapter.safetensors")
            themes, widths = ("light", "dark"), (390, 820, 1280)
            if folder is None:
                themes, widths = ("light",), (1280,)
            for theme in themes:
                for width in widths:
                    photograph(opened, line, paths, theme, width, folder)
            studio.terminate()
        opened.close()


def furnish(opened: Any, line: str, adapter: Path) -> dict[str, str]:
    """Bring pictures and a file, and say where each screen is."""
    page = opened.new_page()
    page.goto(line)
    base, found = line.partition("/?")[0], {"home": "/", "runs": "/runs", "settings": "/settings"}
    for name, files in (("Green robot", [*DEMO.iterdir()]), ("Monster", [*PHOTOS.glob("m*.jpg")])):
        page.goto(base)
        page.get_by_test_id("new-set").click()
        page.wait_for_url(re.compile("/pictures/[0-9a-f]{20}"))
        page.locator(".drop .file").set_input_files(sorted(files))
        page.wait_for_selector(".shot")
        for field, text in (("name", name), ("trigger", "zqx"), ("noun", "toy")):
            page.fill(f"#set-{field}", text)
            page.locator(f"#set-{field}").blur()
            time.sleep(0.5)
        page.wait_for_selector("#findings .forecast", timeout=120_000)
        at = page.url.removeprefix(base)
        found |= {"pictures": at, "plan": f"{at}/plan", "map": f"{at}/map"}
    page.goto(f"{base}/runs")
    run = page.get_by_role("link", name="green-robot", exact=True).last.get_attribute("href")
    found |= {"live": run, "report": f"{run}/report", "compare": f"{run}/compare"}
    found |= {"share": f"{run}/share", "sets": "/pictures", "tune": "/tune"}
    page.goto(f"{base}/check")
    page.locator(".drop .file").set_input_files(adapter)
    page.wait_for_url(re.compile("/check/[0-9a-f]{20}"))
    page.locator(".facts dd").first.wait_for(timeout=120_000)
    found |= {"check": page.url.removeprefix(base), "checks": "/check", "blend": "/blend"}
    page.context.close()
    return found


def photograph(
    opened: Any, line: str, paths: dict[str, str], theme: str, width: int, folder: Path | None
) -> None:
    base = line.partition("/?")[0]
    size = {"width": width, "height": 900}
    context = opened.new_context(viewport=size, color_scheme=theme)
    page = context.new_page()
    page.goto(line)
    for name, path in paths.items():
        if folder is None and name not in SHOWN:
            continue
        page.goto(base + path)
        for frame in page.locator("iframe").all():
            frame.evaluate("e => e.remove()")  # the report has pictures of its own
        if name == "map":
            page.locator(".map .point").first.click()
        page.wait_for_timeout(800)
        if folder is None:
            DOCUMENTS.mkdir(parents=True, exist_ok=True)
            file = DOCUMENTS / f"{name}.png"
            page.screenshot(path=file, full_page=name != "report", animations="disabled")
            shrink(file)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"{name}-{width}-{theme}.png"
            page.screenshot(path=file, full_page=True, animations="disabled")
    context.close()


def shrink(file: Path) -> None:
    """Three quarters of the size, as WebP: what a document needs."""
    with Image.open(file) as picture:
        size = (picture.width * 3 // 4, picture.height * 3 // 4)
        small = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    small.save(file.with_suffix(".webp"), quality=QUALITY, method=6)
    file.unlink()


if __name__ == "__main__":
    given = [None if word == "-" else Path(word).resolve() for word in sys.argv[1:3]]
    main(*[*given, None, None][:2])
