"""Every page shows what there is, in words that are all in one place, and is light."""

from __future__ import annotations

import json
import random
import re
import string
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from starlette.routing import Route
from tests.studio.house import House, build, weight

from variegate.run import Run
from variegate.studio import app as room
from variegate.studio import frame
from variegate.studio.desk import Desk
from variegate.studio.jobs import Job
from variegate.studio.texts import texts
from variegate.studio.thumbs import thumbnail
from variegate.studio.views.home import speeds_of

ROOM = Path(frame.__file__).parent
MOST_FIRST_PAINT = 300_000  # bytes: page, style sheets and scripts, as they travel

# Names in code and templates that are put together from parts, by their beginnings.
PUT_TOGETHER = (
    *("nav.", "tabs.", "stages.", "faults.http_", "runs.state_", "plan.card_", "plan.risk_"),
    *(
        "plan.because_",
        "plan.group_",
        "plan.unknown_",
        "plan.counted",
        "plan.time",
        "plan.memory",
        "plan.disk",
    ),
    *("live.tone_", "live.dial_", "live.also_", "live.plot_", "live.lines_", "live.event_"),
    *("live.finish_", "live.told_", "check.price_", "check.preset_", "check.fact_"),
    *(
        "check.failed_",
        "report.side_",
        "blend.method_",
        "tune.range_",
        "doctor.",
        "pictures.different_",
        "pictures.fix_",
        "map.near_",
    ),
)


def used_texts() -> set[str]:
    found: set[str] = set()
    for file in [*ROOM.rglob("*.html"), *ROOM.rglob("*.py")]:
        found |= set(re.findall(r"""(?:\bt|words)\(\s*f?["']([a-z_.]+)["'],?""", file.read_text()))
    return found


def test_every_word_on_a_page_is_in_the_catalogue_and_every_entry_is_used() -> None:
    words, used = texts(), used_texts()
    whole = {name for name in used if not name.endswith(("_", "."))}
    assert {n for n in whole if n not in words} == set()
    unused = {
        n
        for n in words.names()
        if n not in used and n.removesuffix("_one") not in used and not n.startswith(PUT_TOGETHER)
    }
    assert unused == set()


def test_no_page_has_words_of_its_own() -> None:
    """A translation would miss them."""
    for file in ROOM.rglob("*.html"):
        text = re.sub(
            r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<script.*?</script>|<svg.*?</svg>",
            "",
            file.read_text(),
            flags=re.S,
        )
        left = re.sub(r"<[^>]*>", " ", text, flags=re.S)
        found = re.findall(r"[A-Za-z]{2,}", left)
        assert found == [], (file.name, found)


def test_texts_name_only_fields_that_are_given_in_braces() -> None:
    words = texts()
    for name in words.names():
        list(string.Formatter().parse(words._texts[name]))


def test_every_address_that_gives_a_whole_page_is_looked_at(shared: House) -> None:
    """A new screen is found by its address: what begins as a page is one."""
    visitor, found = shared.visitor(), set()
    for route in room.routes():
        assert isinstance(route, Route)
        if "GET" in (route.methods or ()) and not route.path.endswith("/events"):
            path = re.sub(r"\{(\w+)(?::\w+)?\}", lambda m: shared.ids()[m[1]], route.path)
            answer = visitor.get(path)
            if answer.status == 200 and answer.text.startswith("<!doctype html>\n<html lang"):
                found.add(path)
    ours = {path for path in found if "<header" in visitor.get(path).text}
    assert ours == set(shared.pages())


def test_every_page_is_whole_and_light(shared: House) -> None:
    visitor = shared.visitor()
    for path in shared.pages():
        page = visitor.get(path)
        assert page.status == 200, path
        assert page.text.count("<h1") == 1, path
        assert page.text.rstrip().endswith("</html>")
        assert "style=" not in page.text  # the policy would not heed it
        assert not re.search(r"\son[a-z]+=", page.text)
        assert weight(shared, page) < MOST_FIRST_PAINT, path
        addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text)
        assert all(a.startswith(("/", "#")) for a in addresses), addresses


def test_no_page_tells_where_things_lie_but_the_settings(shared: House) -> None:
    visitor = shared.visitor()
    for path in shared.pages():
        if path != "/settings":
            assert str(shared.desk.home) not in visitor.get(path).text, path


def test_a_screen_whose_verb_is_not_there_is_not_shown(house: House) -> None:
    visitor, ids = house.visitor(), house.ids()
    assert 'href="/tune"' in visitor.get("/").text
    plain = replace(house.app.state.studio, verbs=frozenset({"trial"}))
    house.app.state.studio = plain
    for path in ("/tune", f"/runs/{ids['run']}/share"):
        assert visitor.get(path).status == 404
        assert path not in visitor.get(f"/runs/{ids['run']}").text
    assert "/pick" not in visitor.get(f"/runs/{ids['run']}/compare").text


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_a_look_at_the_machine_that_came_to_nothing_leaves_the_one_before(
    state: str, house: House
) -> None:
    """How it ended is an answer, too, and no report."""
    jobs, visitor = house.desk.jobs, house.visitor()

    def look(ended: str, answer: dict[str, object]) -> None:
        job = jobs.add(["doctor"], title="a look", lane="desk", about="doctor")
        (jobs.folder / job.id / "answer.json").write_text(json.dumps(answer))
        jobs._write(replace(job, state=ended, ended=time.time(), fault="It was interrupted."))

    look(state, {"error": {"kind": "Terminated", "message": "It was interrupted."}})
    assert visitor.get("/settings").status == 200
    checks = [{"check": "PyTorch", "found": "2.9 is there", "state": "ok", "mend": ""}]
    speed = {"torch": {"speed": {"float32": 100.0}}}
    look("done", {"fit": True, "device": "cpu", "checks": checks, **speed})
    look(state, {"error": {"kind": "Terminated", "message": "It was interrupted."}})
    assert "2.9 is there" in visitor.get("/settings").text
    assert speeds_of(house.app.state.studio) == {"float32": 100.0}


def test_the_report_says_how_sure_each_number_is(shared: House) -> None:
    page = shared.visitor().get(f"/runs/{shared.ids()['run']}/report").text
    numbers = page.count('class="number card"')
    assert numbers >= 4
    assert page.count('class="sure"') >= numbers - page.count("Could not be measured")


def test_the_report_says_nothing_twice(house: House) -> None:
    file = house.run / "verdict.json"
    told = json.loads(file.read_text(encoding="utf8"))
    said = "It has hardly learnt the subject."
    told["sentence"] = said
    more = (said, f"{said} More of the same.", "And another.")
    told["reasons"] = [told["reasons"][0] | {"sentence": sentence} for sentence in more]
    file.write_text(json.dumps(told), encoding="utf8")
    page = house.visitor().get(f"/runs/{house.ids()['run']}/report").text
    assert page.count(said) == 1
    assert all(f"<bdi>{other}</bdi>" in page for other in ("More of the same.", "And another."))


def test_a_run_shows_its_stand_its_dial_and_what_the_guard_did(house: House) -> None:
    run = Run.open(house.run)
    run.journal("order", step=300, do="ease", reason="Pictures are growing alike: more gently.")
    page = house.visitor().get(f"/runs/{house.ids()['run']}").text
    assert "The guard eased off." in page
    assert "Pictures are growing alike: more gently." in page
    assert 'class="dial' in page
    assert "of 600 steps" in page or "steps" in page


def test_what_ended_early_is_told_though_much_went_well_since_and_no_longer_once_it_did(
    house: House,
) -> None:
    jobs, visitor = house.desk.jobs, house.visitor()

    def ended(title: str, state: str, verb: str, about: str) -> None:
        job = jobs.add([verb, title], title=title, lane="device", about=about)
        jobs._write(replace(job, state=state, ended=job.made))

    ended("that failed", "failed", "trial", "/x/failed")
    ended("that failed first", "failed", "trial", "/x/again")
    ended("that went well then", "done", "trial", "/x/again")
    for number in range(8):
        ended(f"cell {number}", "done", "sample", f"/x/{number}")
    page = visitor.get("/runs/lists").text
    assert "that failed<" in page
    assert "that failed first" not in page
    for number in range(8):
        ended(f"lost {number}", "failed", "sample", f"/x/{number}")
    page = visitor.get("/runs/lists").text
    assert re.findall(r"lost \d(?=</bdi>)", page) == [f"lost {n}" for n in range(7, 1, -1)]


def begun(house: House, verb: str, about: Path, state: str = "running") -> Job:
    """A job as it is written down, without a process."""
    job = house.desk.jobs.add([verb, "x"], title=verb, lane="device", about=str(about))
    told = "The disk is full." if state == "failed" else ""
    job = replace(job, state=state, began=1.0, ended=2.0 if told else None, fault=told)
    house.desk.jobs._write(job)
    return job


def test_a_run_that_starts_or_is_measured_is_not_called_stopped(house: House) -> None:
    visitor, at = house.visitor(), f"/runs/{house.ids()['run']}"

    def told() -> tuple[str, str]:
        house.desk.forget_listing()
        card = visitor.get("/").text.partition('class="run card"')[2].partition("</article>")[0]
        states = [
            re.findall(r'class="state"[^>]*>(?:<span class="dot live"></span>)?\s*([^<]+)<', text)
            for text in (card, visitor.get(at).text)
        ]
        return states[0][0].strip(), states[1][0].strip()

    (house.run / "verdict.json").unlink()
    assert told() == ("Stopped · step 600 of 600", "Stopped; it can be gone on with")
    job = begun(house, "trial", house.run)
    assert told() == ("Starting …", "Starting …")
    (house.run / "adapter.safetensors").touch()
    (house.desk.jobs.folder / job.id / "log.txt").write_text("measure  0/1\n")
    assert told() == ("Drawing and measuring", "Comparing the pictures · 0 of 1")


def test_a_page_that_is_being_written_is_asked_for_until_it_is(house: House) -> None:
    visitor, at = house.visitor(), f"/runs/{house.ids()['run']}/report"
    polls = f'hx-get="{at}"'
    assert polls not in visitor.get(at).text
    assert visitor.post(at).status == 204
    assert visitor.post(at).status == 204
    (job,) = house.desk.jobs.of(house.run, "report")
    page = visitor.get(at).text
    assert polls in page
    assert "is being written" in page
    house.desk.jobs._write(replace(job, state="failed", ended=1.0, fault="The disk is full."))
    page = visitor.get(at).text
    assert polls not in page
    assert "The disk is full." in page


def test_a_cell_that_was_stopped_is_not_called_drawing(house: House) -> None:
    at = f"/runs/{house.ids()['run']}/compare"
    home = house.desk.home / "compared" / house.ids()["run"]
    home.mkdir(parents=True)
    (home / "plan.json").write_text(json.dumps({"prompts": ["a zqx"], "steps": [100, 200]}))
    states = ("stopped", "failed", "running", "waiting", "done")
    for number, state in enumerate(states):
        step, strength = (100, 200)[number // 3], (0.6, 0.8, 1.0)[number % 3]
        begun(house, "sample", home / f"step-{step:06d}-{strength:g}", state)
    page = house.visitor().get(f"{at}/grid").text
    cells = re.findall(r'<td><span class="soft">\s*([^<]+?)\s*</span>', page)
    assert cells == [
        *("Stopped; what was done is kept", "It failed", "Drawing …", "Waiting its turn"),
        *["No pictures yet"] * 2,
    ]


def test_the_stream_sends_each_part_once(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from variegate.studio.views import runs

    monkeypatch.setattr(runs, "BEAT", 0.01)
    monkeypatch.setattr(runs, "LASTS", 0.05)
    answer = house.visitor().get(f"/runs/{house.ids()['run']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    names = re.findall(r"^event: (\w+)$", answer.text, re.M)
    assert sorted(names) == ["curves", "events", "film", "now"]
    line = re.search(r"^event: curves\ndata: (.*)$", answer.text, re.M)
    assert line is not None
    curves = json.loads(line[1])
    assert set(curves) == {"variety", "likeness", "loss"}
    assert all(len(column) == len(curves["loss"][0]) for column in curves["loss"])


def test_the_stream_ends_when_its_run_is_gone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from variegate.studio.views import runs

    there = iter([house.desk.run(house.ids()["run"])] * 2)
    monkeypatch.setattr(Desk, "run", lambda desk, name: next(there, None))
    monkeypatch.setattr(runs, "BEAT", 0.01)
    monkeypatch.setattr(runs, "LASTS", 0.05)
    answer = house.visitor().get(f"/runs/{house.ids()['run']}/events")
    names = re.findall(r"^event: (\w+)$", answer.text, re.M)
    assert (len(names), names[-1]) == (5, "gone")


def test_a_vote_is_a_line_of_json_of_points_that_exist(house: House) -> None:
    place = house.desk.run(house.ids()["run"])
    assert place is not None
    home = house.desk.home / "compared" / place.id
    for step, strength in ((100, 0.6), (100, 0.8)):
        cell = home / f"step-{step:06d}-{strength:g}"
        cell.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(cell / "a.png")
        line = {"file_name": "a.png", "prompt": "a zqx", "seed": 0}
        (cell / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    (home / "plan.json").write_text(json.dumps({"prompts": ["a zqx"], "steps": [100]}))
    visitor, at = house.visitor(), f"/runs/{place.id}/vote"
    ballot = visitor.get(at).text
    names = re.findall(r'name="[ab]" value="([^"]+)"', ballot)
    assert len(names) == 2
    assert "step" not in ballot.split("<form")[1].split('type="hidden"')[0]
    form = {"a": names[0], "b": names[1], "winner": "b"}
    assert visitor.post(at, form).status == 200
    vote = json.loads((home / "votes.jsonl").read_text())
    assert (vote["a"], vote["b"], vote["winner"]) == (names[0], names[1], names[1])
    assert re.fullmatch(r"step-000100@0\.[68]@[\d.]+", vote["winner"])
    for wrong in ({"a": "../x"}, {"winner": "c"}):
        assert visitor.post(at, form | wrong).status == 404


def test_pictures_are_encoded_anew_and_small_ones_keep_their_pixels(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.jpg"
    Image.effect_noise((64, 64), 80).convert("RGB").save(small)
    Image.effect_noise((1000, 500), 80).convert("RGB").save(large, exif=b"Exif\0\0secret")
    for file, size in ((small, (64, 64)), (large, (320, 160))):
        data = thumbnail(file, 320, tmp_path / "kept")
        assert data is not None
        assert data[:4] == b"RIFF"
        assert b"secret" not in data
        (tmp_path / "back.webp").write_bytes(data)
        with Image.open(tmp_path / "back.webp") as back:
            assert back.size == size
    assert thumbnail(tmp_path / "kept", 320, tmp_path / "kept") is None


def test_a_thousand_pictures_and_fifty_runs_are_listed_quickly(tmp_path: Path) -> None:
    house = build(tmp_path)
    picture = house.set.shots()[0].file.read_bytes()
    for number in range(4, 1001):
        (house.set.folder / f"{number:04d}.jpg").write_bytes(picture)
    recipe = (house.run / "recipe.toml").read_text()
    for number in range(50):
        run = house.desk.home / "runs" / f"r{number}"
        run.mkdir()
        (run / "recipe.toml").write_text(recipe)
    house.desk.forget_listing()
    rng = random.Random(0)
    at = [(rng.gauss(0, 0.3), rng.gauss(0, 0.2), rng.random()) for _ in range(1000)]
    points = [[str(s.file), *p] for s, p in zip(house.set.shots(), at, strict=True)]
    house.looked(map={"share": 0.5, "points": points})
    visitor, here = house.visitor(), f"/pictures/{house.ids()['set']}"
    for path in (here, f"{here}/map", "/runs", "/"):
        began = time.process_time()
        page = visitor.get(path)
        assert page.status == 200
        assert time.process_time() - began < 2, path  # a fifth of a second, unchecked
        assert weight(house, page) < MOST_FIRST_PAINT
    assert visitor.get(f"{here}/map").text.count("data-id=") == 1000
    assert 'hx-trigger="revealed"' in visitor.get(f"/pictures/{house.ids()['set']}").text


def test_the_server_needs_no_torch() -> None:
    code = "import sys, variegate.studio.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_ids_stay_when_the_studio_starts_anew(house: House) -> None:
    again = Desk(house.desk.home)
    assert again.id_of(house.run) == house.desk.id_of(house.run)
    assert oct((house.desk.home / ".key").stat().st_mode)[-3:] == "600"
