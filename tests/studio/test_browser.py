"""The studio in a real browser: an artist's way from pictures to a plan, by mouse and keyboard."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.studio.browsing import PATIENCE, Served, browser, open_window, served
from tests.studio.house import PHOTOS, House, build

from variegate.run import Run

sync = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
WIDTHS = (360, 820, 1280)


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def house(tmp_path_factory: Any) -> House:
    """Something of everything, and a second run that has no verdict."""
    made = build(tmp_path_factory.mktemp("studio") / "home")
    live = made.run.with_name("live")
    shutil.copytree(made.run, live)
    (live / "verdict.json").unlink()
    return made


@pytest.fixture(scope="module")
def studio(house: House) -> Iterator[tuple[Served, str]]:
    with served(house.desk.home, house.desk.home.parent) as one:
        yield one, one.start()


def test_pictures_are_dropped_captioned_and_planned(
    opened: Any, studio: tuple[Served, str]
) -> None:
    window = open_window(opened, studio[1])
    page = window.page
    page.get_by_test_id("new-set").click()
    page.wait_for_url(re.compile("/pictures/[0-9a-f]{20}"))
    page.locator(".drop .file").set_input_files(sorted(PHOTOS.glob("*.jpg")))
    page.wait_for_selector(".shot >> nth=5")
    page.fill("#set-trigger", "zqx")
    page.fill("#set-noun", "toy")
    caption = page.locator(".shot textarea").first
    caption.fill("a zqx on a window sill")
    with page.expect_response(re.compile("/caption$")):
        caption.blur()
    (kept,) = studio[0].home.glob("pictures/*/0001.txt")
    assert kept.read_text() == "a zqx on a window sill"
    page.wait_for_selector("#findings .forecast", timeout=90_000)  # an audit in its own process
    assert "of 6 count as different" in page.inner_text("#findings")
    page.locator(".shot .over").last.click()
    sync.expect(page.locator(".shot")).to_have_count(5)
    page.get_by_test_id("undo").click()
    sync.expect(page.locator(".shot")).to_have_count(6)
    window.shot("set")
    window.is_usable()
    page.get_by_test_id("to-plan").click()
    page.locator("#drawer > summary").click()
    page.wait_for_selector("#entries details")
    page.locator("summary", has_text="How it learns").click()
    page.fill('[id="e-optimizer.steps"]', "37")
    with page.expect_response(re.compile("/plan/estimate")):
        page.locator('[id="e-optimizer.steps"]').blur()
    sync.expect(page.locator(".estimates")).to_contain_text("37")
    window.shot("plan")
    window.is_usable()
    assert window.complaints == []


def test_a_run_that_somebody_else_began_is_seen_as_it_goes(
    opened: Any, studio: tuple[Served, str]
) -> None:
    folder = studio[0].home / "runs" / "live"
    run = Run.open(folder)
    window = open_window(opened, studio[1])
    page = window.page
    with run.locked():
        run.journal("start", step=0)
        run.journal("step", step=1, loss=0.5, lr=1e-3, terms={})
        window.to("/runs")
        page.get_by_role("link", name="live", exact=True).last.click()
        sync.expect(page.get_by_test_id("state")).to_have_text("Learning")
        page.locator(".dialcard .info summary").click()
        for step in range(2, 9):
            run.journal("step", step=step, loss=0.5 / step, lr=1e-3, terms={})
        run.journal("order", step=8, do="ease", reason="They are growing alike.")
        sync.expect(page.locator(".where .figure")).to_have_text(re.compile("^8 "))
        sync.expect(page.locator(".timeline")).to_contain_text("They are growing alike.")
        assert page.locator(".dialcard .info").get_attribute("open") is not None
        assert page.locator("canvas").count() >= 1
        for ask in ("keep", "sample", "stop"):
            with page.expect_response(lambda answer: answer.request.method == "POST"):
                page.get_by_test_id(ask).click()
            page.wait_for_selector(".toast")
        assert run.asked() == ["stop", "keep", "sample"]
        window.is_usable()
        window.shot("live")
    page.get_by_test_id("go-on").wait_for()
    assert window.complaints == []


def test_a_folder_is_dropped_with_what_lies_in_its_folders(
    opened: Any, studio: tuple[Served, str], tmp_path: Path
) -> None:
    home = tmp_path / "monsters"
    for name, caption in (("b/1", "in b"), ("a/1", "in a"), ("a/.hidden", "hidden")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(PHOTOS / "monster_1.jpg", home / f"{name}.jpg")
        (home / f"{name}.txt").write_text(caption)
    (home / "Thumbs.db").write_bytes(b"no picture")
    window = open_window(opened, studio[1])
    page = window.page
    page.get_by_test_id("new-set").click()
    page.wait_for_url(re.compile("/pictures/[0-9a-f]{20}"))
    box = page.locator(".drop").bounding_box()
    browser_itself = page.context.new_cdp_session(page)
    for kind in ("dragEnter", "dragOver", "drop"):
        browser_itself.send(
            "Input.dispatchDragEvent",
            {
                "type": kind,
                "x": box["x"] + 20,
                "y": box["y"] + 20,
                "data": {"items": [], "files": [str(home)], "dragOperationsMask": 1},
            },
        )
    captions = page.locator(".shot textarea")
    sync.expect(captions).to_have_count(2)
    assert [captions.nth(n).input_value() for n in range(2)] == ["in a", "in b"]
    sync.expect(page.locator(".drop-state li")).to_have_count(0)
    page.get_by_test_id("undo").click()
    sync.expect(captions).to_have_count(0)
    assert window.complaints == []


def seen_or_not(page: Any, hidden: bool) -> None:
    """As a browser tells a page that it came into sight or went out of it."""
    page.evaluate(
        "away => {"
        " Object.defineProperty(document, 'hidden', {get: () => away, configurable: true});"
        " document.dispatchEvent(new Event('visibilitychange')); }",
        hidden,
    )


def test_runs_that_are_out_of_sight_do_not_keep_the_studio_from_answering(
    opened: Any, studio: tuple[Served, str], house: House
) -> None:
    folder = studio[0].home / "runs" / "live"
    at = f"/runs/{house.desk.id_of(folder)}"
    window = open_window(opened, studio[1])
    for _ in range(6):
        page = window.page.context.new_page()
        page.goto(window.address + at)
        seen_or_not(page, True)
    window.page.set_default_timeout(PATIENCE * 15_000)
    window.to("/runs")
    Run.open(folder).journal("order", step=9, do="ease", reason="While nobody looked.")
    seen_or_not(page, False)
    sync.expect(page.locator(".timeline")).to_contain_text("While nobody looked.")


def test_that_the_studio_cannot_be_reached_is_said_once_and_taken_back(
    opened: Any, studio: tuple[Served, str], house: House
) -> None:
    window = open_window(opened, studio[1])
    page = window.page
    note = page.locator(".toast")
    for path in ("/runs", f"/runs/{house.ids()['run']}"):
        window.to(path)
        page.route("**/*", lambda route: route.abort("connectionrefused"))
        seen_or_not(page, True)  # a stream that is open is not cut off by this
        seen_or_not(page, False)
        sync.expect(note).to_have_text("The studio cannot be reached. Is it still running?")
        page.wait_for_timeout(5_000)
        sync.expect(note).to_have_count(1)
        page.unroute("**/*")
        sync.expect(note).to_have_count(0, timeout=PATIENCE * 15_000)


def test_a_run_that_is_taken_away_is_told_to_who_looks_at_it(
    opened: Any, studio: tuple[Served, str], house: House
) -> None:
    folder = house.run.with_name("gone")
    shutil.copytree(house.run, folder)
    window = open_window(opened, studio[1])
    page = window.page
    at = f"/runs/{house.desk.id_of(folder)}"
    window.to(at)
    with page.expect_request(re.compile("/events$")):
        seen_or_not(page, True)
        seen_or_not(page, False)
    shutil.rmtree(folder)
    note = page.locator(".toast")
    sync.expect(note).to_contain_text("its folder was moved or removed")
    page.wait_for_timeout(4_000)
    sync.expect(note).to_have_count(1)
    assert window.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_fits_a_telephone_and_is_usable(
    scheme: str, opened: Any, studio: tuple[Served, str], house: House
) -> None:
    window = open_window(opened, studio[1], color_scheme=scheme)
    for path in house.pages():
        window.to(path)
        window.is_usable()
        for width in WIDTHS:
            window.page.set_viewport_size({"width": width, "height": 800})
            window.fits()
        name = re.sub(r"[0-9a-f]{20}", "one", path).strip("/").replace("/", "-") or "home"
        window.shot(f"{name}-{scheme}")
    assert window.complaints == []


HIDDEN = """() => {
  const bubble = document.querySelector("details.info[open] .bubble");
  const { left, top, right, bottom } = bubble.getBoundingClientRect();
  const corners = [left + 9, right - 9].flatMap((x) => [[x, top + 9], [x, bottom - 9]]);
  return corners.filter(([x, y]) => !bubble.contains(document.elementFromPoint(x, y)));
}"""


@pytest.mark.parametrize("width", [390, 1280])
def test_notes_and_long_names_are_seen_whole(width: int, opened: Any, tmp_path: Path) -> None:
    house, long = build(tmp_path / "home"), "Untidily" * 9
    house.set.tell(name=long)
    house.run.rename(house.run.with_name(long))
    house.looked()
    at = house.desk.id_of(house.run.with_name(long))
    paths = [f"/pictures/{house.ids()['set']}{part}" for part in ("", "/plan", "/map")]
    paths += [f"/runs/{at}{part}" for part in ("", "/report")]
    with served(house.desk.home, tmp_path) as studio:
        window = open_window(opened, studio.start(), viewport={"width": width, "height": 800})
        for path in (*paths, "/runs", "/pictures"):
            window.to(path)
            window.fits()
            window.shot(f"long{path.replace('/', '-')}-{width}")
            infos = window.page.locator("details.info")
            assert path not in paths[:2] or infos.count(), path
            for number in range(infos.count()):
                for _ in range(10):  # a part of the page that is drawn anew closes its notes
                    if infos.nth(number).get_attribute("open") is None:
                        infos.nth(number).locator("summary").click()
                    infos.nth(number).locator(".bubble").scroll_into_view_if_needed()
                    window.page.wait_for_timeout(100)
                    if window.page.locator("details.info[open] .bubble").count():
                        break
                assert window.page.evaluate(HIDDEN) == [], (path, number)
                window.fits()
        assert window.complaints == []


def test_the_map_is_walked_by_mouse_and_keyboard(
    opened: Any, studio: tuple[Served, str], house: House
) -> None:
    window = open_window(opened, studio[1])
    page = window.page
    window.to(f"/pictures/{house.ids()['set']}")
    page.get_by_role("button", name="Look at these pictures").click()
    page.wait_for_selector("#findings .forecast", timeout=90_000)
    page.get_by_role("link", name="Variety map").click()
    points = page.locator(".map .point")
    sync.expect(points).to_have_count(3)
    points.nth(1).click()
    shown = page.get_by_test_id("map-one")
    sync.expect(shown.locator("h2")).to_have_text(points.nth(1).get_attribute("aria-label"))
    at = page.evaluate("[...document.querySelectorAll('.map .point')].map(e => +e.dataset.x)")
    leftmost = at.index(min(at))
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    label = points.nth(leftmost).get_attribute("aria-label")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == label
    sync.expect(shown.locator("h2")).to_have_text(label)
    page.get_by_text("The same as a list").click()
    sync.expect(page.locator("details tbody tr")).to_have_count(3)
    window.is_usable()
    window.shot("map")
    page.get_by_test_id("map-aside").click()
    sync.expect(page.locator(".gap")).to_contain_text("three pictures", timeout=90_000)
    page.get_by_role("link", name="Pictures", exact=True).last.click()
    page.get_by_test_id("undo").click()
    sync.expect(page.locator(".shot")).to_have_count(3)
    assert window.complaints == []


def test_the_report_is_shown_in_its_box(opened: Any, studio: tuple[Served, str]) -> None:
    from variegate.report import write_report

    write_report(studio[0].home / "runs" / "owls")
    window = open_window(opened, studio[1])
    window.to("/runs")
    window.page.get_by_role("link", name="owls", exact=True).last.click()
    window.page.get_by_role("link", name="Report", exact=True).click()
    window.page.locator("iframe").scroll_into_view_if_needed()
    framed = window.page.frame_locator("iframe")
    framed.locator("h1").wait_for()
    assert framed.locator(".page").evaluate("e => getComputedStyle(e).maxWidth") != "none"
    window.page.get_by_role("button", name="Write the page anew").click()
    sync.expect(window.page.locator("#report-page .spinner")).to_have_count(1)
    sync.expect(window.page.locator("#report-page .spinner")).to_have_count(0, timeout=90_000)
    window.page.locator("iframe").scroll_into_view_if_needed()
    framed.locator("h1").wait_for()
    assert window.complaints == []


def test_the_keyboard_reaches_everything_in_order(opened: Any, studio: tuple[Served, str]) -> None:
    window = open_window(opened, studio[1])
    page = window.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.dataset.testid") == "new-set"
    ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid"
    with page.expect_navigation():
        page.keyboard.press("Enter")
    assert re.search(r"/pictures/[0-9a-f]{20}$", page.url)
