"""The whole way on the pocket in a real browser, with the server killed in the middle of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from tests.studio.browsing import PATIENCE, Window, browser, open_window, served
from tests.studio.house import PHOTOS

from variegate.run import Run
from variegate.studio.jobs import Jobs

pytestmark = pytest.mark.slow
sync = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
DEMO = Path(str(resources.files("variegate"))) / "demo" / "pictures"
MINUTES = PATIENCE * 60_000  # milliseconds
# Small enough for two cores and a test; each is an entry of the drawer.
SMALL = {
    "How it learns": {"optimizer.steps": "60", "optimizer.batch_size": "4"},
    "What is watched": {"probes.every": "10", "probes.triples": "8", "probes.noises": "8"},
    "What is kept on the way": {"checkpoints.every": "20"},
    "How pictures are drawn for the verdict": {"sampling.preset": "quick", "sampling.steps": "4"},
    "New backgrounds": {"strategies.new_background": "off"},
}

# A run of seconds, whose settings a search begins from.
TINY = {
    "optimizer.steps": "24",
    "optimizer.batch_size": "4",
    "probes.every": "12",
    "checkpoints.every": "24",
    "sampling.steps": "4",
    "strategies.new_background": "off",
}


def choose(page: Any, entries: dict[str, dict[str, str]]) -> None:
    """Change entries of the drawer as an artist would who opens it."""
    page.locator("#drawer > summary").click()
    page.wait_for_selector("#entries details")
    for title, settings in entries.items():
        page.locator("#entries summary", has_text=title).first.click()
        for path, value in settings.items():
            entry = page.locator(f'[id="e-{path}"]')
            if entry.evaluate("e => e.tagName") == "SELECT":
                entry.select_option(value)
            else:
                entry.fill(value)
                entry.blur()


def bring(window: Window, files: list[Path], *, name: str, noun: str) -> None:
    """Pictures into a set of their own, with what they show."""
    page = window.page
    page.get_by_test_id("new-set").click()
    page.wait_for_url(re.compile("/pictures/[0-9a-f]{20}"))
    page.locator(".drop .file").set_input_files(files)
    sync.expect(page.locator(".shot")).to_have_count(len(files))
    for field, words in (("name", name), ("trigger", "zqx"), ("noun", noun)):
        page.fill(f"#set-{field}", words)
        with page.expect_response(re.compile("/name$")):
            page.locator(f"#set-{field}").blur()


def plan_from_pictures(window: Window) -> str:
    """From an empty studio to a queued run; the address of its set."""
    page = window.page
    bring(window, sorted(PHOTOS.glob("monster_*.jpg")), name="Monster", noun="toy")
    page.get_by_test_id("first-captions").click()
    sync.expect(page.locator(".shot textarea").first).to_have_value("a photo of zqx")
    page.wait_for_selector("#findings .forecast", timeout=3 * MINUTES)
    address = str(page.url)
    page.get_by_test_id("to-plan").click()
    choose(page, SMALL)
    window.shot("journey-plan")
    page.get_by_test_id("start").click()
    page.wait_for_url("**/runs")
    return address


def until(true: Callable[[], bool], minutes: float = 4) -> None:
    ends = time.monotonic() + PATIENCE * 60 * minutes
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.3)


def test_from_pictures_to_a_shared_folder_with_the_server_killed_in_the_middle(
    tmp_path: Path,
) -> None:
    home, run = tmp_path / "home", tmp_path / "home" / "runs" / "monster"
    with browser() as opened, served(home, tmp_path) as studio:
        window = open_window(opened, studio.start())
        plan_from_pictures(window)
        page = window.page

        # --- watched while it learns, asked for a picture and for what it has ----------------
        link = page.get_by_role("link", name="monster", exact=True).last
        link.click(timeout=5 * MINUTES)
        state = page.get_by_test_id("state")
        sync.expect(state).to_have_text("Learning", timeout=5 * MINUTES)
        sync.expect(page.locator(".where .figure")).to_have_text(
            re.compile(r"^([3-9]|\d\d) "), timeout=2 * MINUTES
        )
        page.get_by_test_id("keep").click()
        page.get_by_test_id("sample").click()
        until(lambda: bool(list((run / "kept").glob("*.safetensors"))))
        sync.expect(page.locator(".film tbody tr")).not_to_have_count(1, timeout=2 * MINUTES)
        window.shot("journey-live")

        # --- the server is killed; the run is not ----------------------------------------------
        before = Run.open(run).read_journal("step")[-1]["step"]
        studio.kill()
        until(lambda: Run.open(run).read_journal("step")[-1]["step"] > before)
        window = open_window(opened, studio.start())
        page = window.page
        window.to("/runs")
        page.get_by_role("link", name="monster", exact=True).last.click()
        page.get_by_test_id("stop").click()
        sync.expect(page.get_by_test_id("go-on")).to_be_visible(timeout=2 * MINUTES)
        sync.expect(page.locator(".timeline")).to_contain_text("You asked it to stop")
        window.shot("journey-stopped")

        # --- gone on with, to the verdict ------------------------------------------------------
        page.get_by_test_id("go-on").click()
        sync.expect(page.get_by_role("link", name="See the report")).to_be_visible(
            timeout=15 * MINUTES
        )
        assert len({line["step"] for line in Run.open(run).read_journal("step")}) == 60
        page.get_by_role("link", name="See the report").click()
        page.locator(".number.card").first.wait_for()
        window.is_usable()
        window.shot("journey-report")

        # --- compared ----------------------------------------------------------------------
        page.get_by_role("link", name="Compare", exact=True).click()
        page.wait_for_url("**/compare")
        address = str(page.url).removeprefix(window.address)
        page.locator("#checkpoints").select_option("1")
        page.get_by_test_id("draw").click()
        page.get_by_test_id("to-vote").click(timeout=3 * MINUTES)
        page.get_by_test_id("ballot").locator("button.pick").first.click()
        sync.expect(page.get_by_test_id("ballot")).to_contain_text("1 vote")
        (votes,) = home.glob("compared/*/votes.jsonl")
        vote = json.loads(votes.read_text())
        assert vote["winner"] in (vote["a"], vote["b"])
        sync.expect(page.locator(".film .quilt")).to_have_count(3, timeout=3 * MINUTES)
        window.shot("journey-compare")

        # --- the best point, with the reason, by the verb itself and with the vote ----------------
        page.get_by_test_id("pick").click()
        title = page.locator("#picked-title")
        sync.expect(title).to_be_visible(timeout=10 * MINUTES)
        told = json.loads((run / "picked" / "pick.json").read_text())
        sync.expect(title).to_have_text(
            f"We would take step {told['step']} at strength {told['strength']:g}"
        )
        sync.expect(page.locator("section.verdict")).to_contain_text(told["reason"][:60])
        window.is_usable()
        window.shot("journey-picked")
        with page.expect_popup() as coming:
            page.get_by_role("link", name="See all that was compared").click()
        coming.value.locator("h1").wait_for()
        coming.value.close()

        # --- shared: what was picked, for others ------------------------------------------------
        share(window, tmp_path)

        # --- checked like anybody's file, measured ------------------------------------------------
        window.to(address.removesuffix("/compare"))
        page.get_by_role("link", name="Report", exact=True).click()
        page.get_by_test_id("to-check").click()
        page.wait_for_url(re.compile("/check/[0-9a-f]{20}"))
        page.get_by_test_id("measure").click(timeout=2 * MINUTES)
        page.get_by_test_id("repair").wait_for(timeout=8 * MINUTES)
        window.shot("journey-check")
        window.is_usable()
        assert window.complaints == []


def share(window: Window, folder: Path) -> None:
    page = window.page
    window.to("/runs")
    page.get_by_role("link", name="monster", exact=True).last.click()
    page.get_by_role("link", name="Share", exact=True).click()
    page.get_by_test_id("share").click()
    with page.expect_download(timeout=3 * MINUTES) as coming:
        page.get_by_test_id("bundle").click(timeout=3 * MINUTES)
    coming.value.save_as(folder / "bundle.zip")
    with zipfile.ZipFile(folder / "bundle.zip") as packed:
        names = set(packed.namelist())
        card = packed.read("README.md").decode()
    assert {"pytorch_lora_weights.safetensors", "README.md", "civitai.json"} <= names
    assert str(folder) not in card
    sync.expect(page.locator("pre")).to_contain_text("zqx")
    window.is_usable()
    window.shot("journey-share")


def test_a_collapsed_adapter_is_dropped_in_and_repaired(tmp_path: Path) -> None:
    """The demo's plain recipe, so short that it is soon done, is what somebody else made."""
    words = ["train", str(DEMO), "--trigger", "zqx", "--class", "face", "--recipe", "pocket-plain"]
    words += ["--set", "optimizer.steps=60", "--set", "probes.every=30", "--quiet"]
    made = tmp_path / "theirs"
    subprocess.run(
        [sys.executable, "-m", "variegate", *words, "--out", str(made)], check=True, cwd=tmp_path
    )
    with browser() as opened, served(tmp_path / "home", tmp_path) as studio:
        window = open_window(opened, studio.start())
        page = window.page
        window.to("/check")
        page.locator(".drop .file").set_input_files(made / "adapter.safetensors")
        page.wait_for_url(re.compile("/check/[0-9a-f]{20}"))
        sync.expect(page.locator(".facts").first).to_contain_text("pocket", timeout=MINUTES)
        page.fill("#c-noun", "face")
        page.get_by_test_id("measure").click()
        page.get_by_test_id("repair").click(timeout=8 * MINUTES)
        jobs = Jobs(tmp_path / "home" / "jobs")
        until(lambda: any(j.verb == "repair" for j in jobs.all()), 1)
        until(lambda: all(j.over for j in jobs.all()), 12)
        (repair,) = (j for j in jobs.all() if j.verb == "repair")
        assert repair.state == "done", repair.fault
        sync.expect(page.locator("#mended")).to_be_visible(timeout=MINUTES)
        window.shot("journey-repaired")
        assert window.complaints == []


def test_settings_are_tried_and_what_they_gave_is_told(tmp_path: Path) -> None:
    """Tune from the settings of a small run, so that each try is small."""
    home = tmp_path / "home"
    words = ["train", str(DEMO), "--trigger", "zqx", "--class", "face", "--quiet"]
    words += [w for k, v in TINY.items() for w in ("--set", f"{k}={v}")]
    made = home / "runs" / "small"
    subprocess.run(
        [sys.executable, "-m", "variegate", *words, "--out", str(made)], check=True, cwd=tmp_path
    )
    with browser() as opened, served(home, tmp_path) as studio:
        window = open_window(opened, studio.start())
        page = window.page
        bring(window, sorted(DEMO.glob("*.png")), name="Robots", noun="face")
        window.to("/tune")
        page.locator("#t-from").select_option(label="small")
        for name in ("size", "rate", "length", "hold", "words"):
            page.locator(f'[name="range:{name}"]').set_checked(name == "hold")
        page.fill("#trials", "2")
        page.fill("#replicates", "1")
        window.is_usable()
        page.get_by_test_id("tune").click()
        search = page.get_by_test_id("search")
        sync.expect(search).to_contain_text("Done", timeout=10 * MINUTES)
        (job,) = (j for j in Jobs(home / "jobs").all() if j.verb == "tune")
        told = Jobs(home / "jobs").answer(job)
        assert told is not None
        assert told["trials"]["measured"] == 2
        if told["recommended"]:
            sync.expect(search).to_contain_text(told["recommended"]["settings"][0])
        else:
            sync.expect(search).to_contain_text(told["why_none"][1:40])
        window.is_usable()
        window.shot("journey-tuned")
        with page.expect_popup() as coming:
            search.get_by_role("link", name="Open the page alone").click()
        coming.value.locator("h1").wait_for()
        assert window.complaints == []


def test_the_demo_is_watched_and_ends_with_its_page(tmp_path: Path) -> None:
    """The whole demo, as anybody has it: the verb has no smaller one."""
    home = tmp_path / "home"
    with browser() as opened, served(home, tmp_path) as studio:
        window = open_window(opened, studio.start())
        page = window.page
        page.get_by_test_id("demo").click()
        page.wait_for_url("**/runs")
        page.get_by_role("link", name="demo / plain", exact=True).last.click(timeout=2 * MINUTES)
        sync.expect(page.get_by_test_id("state")).to_have_text("Learning", timeout=2 * MINUTES)
        sync.expect(page.locator(".dialcard .figure")).to_be_visible(timeout=3 * MINUTES)
        window.shot("journey-demo")
        studio.kill()  # nobody looks on for a while
        until(lambda: (home / "runs" / "demo" / "guarded" / "recipe.toml").is_file(), 8)
        window = open_window(opened, studio.start())
        page = window.page
        until(lambda: all(j.over for j in Jobs(home / "jobs").all()), 12)
        (demo,) = (j for j in Jobs(home / "jobs").all() if j.verb == "demo")
        assert demo.state == "done", demo.fault
        window.to("/")
        labels = page.locator(".run.card .chips")
        sync.expect(labels).to_have_count(2)
        with page.expect_popup() as coming:
            page.get_by_test_id("demo-page").click()
        coming.value.locator("h1").wait_for()
        window.is_usable()
        window.shot("journey-demo-done")
        assert window.complaints == []


def test_a_run_from_the_command_line_is_seen_live(tmp_path: Path) -> None:
    words = ["train", str(DEMO), "--trigger", "zqx", "--class", "face", "--quiet"]
    words += ["--set", "optimizer.steps=60", "--set", "strategies.new_background=off"]
    words += ["--set", "probes.every=10", "--out", "runs/by-hand"]
    with browser() as opened, served(tmp_path / "home", tmp_path) as studio:
        (tmp_path / "runs").mkdir()
        window = open_window(opened, studio.start())
        page = window.page
        window.to("/runs")
        by_hand = subprocess.Popen([sys.executable, "-m", "variegate", *words], cwd=tmp_path)
        try:
            page.get_by_role("link", name="by-hand", exact=True).last.click(timeout=5 * MINUTES)
            sync.expect(page.get_by_test_id("state")).to_have_text("Learning", timeout=5 * MINUTES)
            figure = page.locator(".where .figure")
            for _ in range(3):  # it goes on without the page being loaded again
                now = figure.inner_text()
                sync.expect(figure).not_to_have_text(now, timeout=3 * MINUTES)
            page.get_by_test_id("stop").click()
            assert by_hand.wait(timeout=PATIENCE * 120) == 130
            sync.expect(page.get_by_test_id("go-on")).to_be_visible()
        finally:
            by_hand.kill()
            by_hand.wait()
        assert window.complaints == []
