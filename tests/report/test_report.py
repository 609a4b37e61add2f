"""The page of one run: what it shows, what it never does, and what it survives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image
from tests.report.drawn_runs import planted_verdict, write_run

from variegate.errors import RunError
from variegate.measurement import Label
from variegate.recipe import Strategies
from variegate.report import write_comparison, write_report
from variegate.report.pictures import pair, spread
from variegate.report.record import Sample
from variegate.report.text import lasted, percent, plain, when
from variegate.report.words import LABELS, STRATEGIES

HOSTILE = (
    "\"><script>alert(1)</script><img src=x onerror=alert(1)>' onload=alert(1) {{7*7}} {% raw %}"
    " \x1b[31m\x00 \u202egnp.exe\u2066 \ud800 &lt;b&gt; $x^2$ </style></title></svg>"
)
MEGABYTE = 2**20


class Page(HTMLParser):
    """The elements of a page, in order, with their attributes; what is text stays text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {k: v or "" for k, v in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def values(self, *names: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements for name in names if name in attrs]


def read(file: Path) -> Page:
    return Page(file.read_text(encoding="utf8"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder / "plain", narrowed=True)
    write_run(folder / "guarded", narrowed=False)
    return folder


@pytest.fixture
def run(drawn: Path, tmp_path: Path) -> Path:
    """A narrowed run of one's own to damage."""
    shutil.copytree(drawn / "plain", tmp_path / "plain")
    shutil.copytree(drawn / "training", tmp_path / "training")
    return tmp_path / "plain"


@pytest.fixture
def quick(run: Path) -> Path:
    """The same without its journal, since drawing curves takes most of the time."""
    (run / "journal.jsonl").unlink()
    return run


def compare(drawn: Path, out: Path, **more: Any) -> Path:
    titles = more.pop("titles", ("plain", "guarded"))
    intro = more.pop("intro", "Twelve pictures, learnt twice.")
    runs = (drawn / "plain", drawn / "guarded")
    return write_comparison(*runs, titles=titles, intro=intro, out=out, **more)


def edit(file: Path, **entries: Any) -> None:
    data = json.loads(file.read_text(encoding="utf8"))
    data.update(entries)
    file.write_text(json.dumps(data), encoding="utf8")


def harmless(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "link", "input"}
    for tag, attrs in page.elements:
        assert not [name for name in attrs if name.startswith("on")], tag
    assert all(source.startswith("data:image/webp;base64,") for source in page.values("src"))
    for address in page.values("href", "xlink:href"):
        assert address.startswith(("#", "./", "../")), address
    assert not page.values("srcset", "poster", "background", "action", "formaction")
    csp = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert csp.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")


def test_the_page_runs_nothing_and_fetches_nothing(drawn: Path, run: Path, tmp_path: Path) -> None:
    for file in (write_report(run), compare(drawn, tmp_path / "demo.html")):
        html = file.read_text(encoding="utf8")
        harmless(Page(html))
        assert "@import" not in html
        assert not re.search(r"url\((?!#)", html)


def test_the_page_tells_an_artist_the_story_in_order(run: Path) -> None:
    page = read(write_report(run))
    parts = [
        "Trigger-narrowed",
        "become nearly alike",
        "What this means",
        "Base and adapter, side by side",
        "With the trigger word",
        "Without the trigger word",
        "Nearest training pictures",
        "The numbers",
        "keep about 15 % of the base model's variety",
        "Fairly sure: between 9 % and 24 %",
        "How training went",
        "Variety while training",
        "What to try next",
        "--set strategies.new_background=on",
        "What was asked",
        "The training pictures",
        "All pictures share one background",
        "How this was measured",
        "Do it again",
    ]
    at = 0
    for part in parts:
        at = page.text.find(part, at)
        assert at >= 0, part
    assert "Read the numbers with care" in page.text  # the encoder is weak
    assert "variegate trial photos/unicorn --recipe plain/recipe.toml" in page.text


def test_base_and_adapter_stand_at_the_same_prompts_and_seeds(quick: Path) -> None:
    alts = [a["alt"] for t, a in read(write_report(quick)).elements if t == "img"]
    assert "Base: an animal on the left, seed 3" in alts
    assert "Adapter: a zqx on the left, seed 3" in alts
    assert alts.index("Base: an animal, seed 0") < alts.index("Adapter: a zqx, seed 0")
    assert len(alts) == 2 * 2 * 4 * 6 + 2 * 5 + 6  # mosaics, nearest pairs, panel


def test_what_is_left_out_is_said(quick: Path) -> None:
    text = read(write_report(quick)).text
    assert "Not every sample is shown: 4 of 5 prompts and 6 of 8 seeds" in text


def test_hostile_text_stays_text(drawn: Path, run: Path, tmp_path: Path) -> None:
    journal = (run / "journal.jsonl").read_text().replace("one_step_variety.", "novel.")
    (run / "journal.jsonl").write_text(journal)
    tame = Counter(tag for tag, _ in read(write_report(run)).elements)
    verdict = planted_verdict(narrowed=True).to_json()
    for entry in (*verdict["reasons"], *verdict["advice"]):
        for key in set(entry) - {"label", "severity", "measurement"}:
            entry[key] += HOSTILE
    for entry in verdict["measurements"]:
        entry.update({k: HOSTILE for k in ("source", "missing") if k in entry})
    verdict.update(sentence=HOSTILE, rules=HOSTILE, encoders=[HOSTILE])
    verdict["plan"] = {**dict(list(verdict["plan"].items())[1:]), HOSTILE: HOSTILE}
    edit(run / "verdict.json", **verdict)
    for side in ("base", "adapter"):
        file = run / "samples" / side / "metadata.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        told = [{**line, "prompt": line["prompt"] + HOSTILE} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in told))
    journal = journal.replace("novel.", json.dumps(HOSTILE)[1:-1] + "novel.")
    journal = journal.replace("held out 2 of 12 pictures", json.dumps(HOSTILE)[1:-1])
    (run / "journal.jsonl").write_text(journal)
    recipe = (run / "recipe.toml").read_text()
    (run / "recipe.toml").write_text(recipe.replace("photos/unicorn", "<script>x</script>"))
    audit = json.loads((run / "audit.json").read_text())
    for entry in (*audit["findings"], *audit["faults"]):
        entry.update(dict.fromkeys(entry, HOSTILE))
    audit["captions"] = {"distinct": 1, HOSTILE: HOSTILE}
    edit(run / "audit.json", **audit)
    evidence = json.loads((run / "evidence.json").read_text())
    evidence["panels"][0].update(title=HOSTILE, text=HOSTILE)
    evidence["panels"][0]["pictures"][0]["caption"] = HOSTILE
    evidence["encoder"] = HOSTILE
    edit(run / "evidence.json", **evidence)

    page = read(write_report(run))
    harmless(page)
    wild = Counter(tag for tag, _ in page.elements)
    # Drawings differ in their paths, since charts stand in the order of their names.
    drawing = {"use", "path", "g", "line", "text", "defs", "clippath", "rect"}
    assert {t: n for t, n in wild.items() if t not in drawing} == {
        t: n for t, n in tame.items() if t not in drawing
    }
    assert "<script>alert(1)</script>" in page.text
    assert "{{7*7}}" in page.text
    html = write_report(run).read_text(encoding="utf8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    other = compare(drawn, tmp_path / "x.html", titles=(HOSTILE, "b"), intro=HOSTILE)
    harmless(read(other))


def test_the_page_stays_small_whatever_the_number_of_samples(tmp_path: Path) -> None:
    run = tmp_path / "crowded"
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (240, 240, 3), np.uint8)) for _ in range(3)]
    for side in ("base", "adapter"):
        folder = run / "samples" / side
        folder.mkdir(parents=True)
        lines = []
        for i in range(1000):
            name = f"{i}.jpg"
            if i < 3:
                noise[i].save(folder / name, quality=60)
            else:
                os.link(folder / f"{i % 3}.jpg", folder / name)
            group = ("trigger", "class")[i % 2]
            line = {"file_name": name, "prompt": f"p{i // 20}", "seed": i // 2 % 10, "group": group}
            lines.append(json.dumps(line) + "\n")
        (folder / "metadata.jsonl").write_text("".join(lines))
    told = [{"kind": "step", "step": i, "loss": 1 / (i + 1), "time": i} for i in range(20_000)]
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    file = write_report(run)
    assert file.stat().st_size < 6 * MEGABYTE
    page = read(file)
    assert len(page.values("src")) == 96
    assert "4 of 50 prompts and 6 of 10 seeds" in page.text


@pytest.mark.parametrize(
    "name",
    ["recipe.toml", "journal.jsonl", "verdict.json", "audit.json", "evidence.json"],
)
def test_a_missing_file_is_named_on_the_page(run: Path, name: str) -> None:
    (run / name).unlink()
    page = read(write_report(run))
    harmless(page)
    assert name == "evidence.json" or f"{name} is missing" in page.text


@pytest.mark.parametrize("sides", [("base",), ("adapter",), ("base", "adapter")])
def test_missing_samples_are_named_on_the_page(quick: Path, sides: tuple[str, ...]) -> None:
    for side in sides:
        shutil.rmtree(quick / "samples" / side)
    page = read(write_report(quick))
    if len(sides) == 2:
        assert "No samples were found" in page.text
    else:
        assert f"samples/{sides[0]}/metadata.jsonl is missing" in page.text


def test_a_lone_verdict_makes_a_page(tmp_path: Path) -> None:
    (tmp_path / "verdict.json").write_text(json.dumps(planted_verdict(narrowed=False).to_json()))
    text = read(write_report(tmp_path)).text
    assert "Healthy" in text
    assert "How training went" not in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run: found none of recipe\.toml"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("verdict.json", "{", "verdict.json is not JSON"),
        ("verdict.json", "[1]", "verdict.json does not hold a verdict"),
        ("verdict.json", '{"labels": 3}', "verdict.json does not hold a verdict"),
        ("audit.json", "[]", "audit.json holds list"),
        ("audit.json", '{"faults": 3, "captions": [], "findings": {}}', "found nothing to mend"),
        ("evidence.json", '{"nearest": 3, "panels": [1]}', "The numbers"),
        ("evidence.json", '{"nearest": [{"sample": 1}]}', "outside the run"),
        ("recipe.toml", "a = ", "recipe.toml is not TOML"),
        ("recipe.toml", "strategies = 3\noptimizer = 1", "No strategy"),
        ("journal.jsonl", '{"kind": "step", "step": 1, "loss": NaN}\n{"kin', "holds no steps"),
        ("journal.jsonl", '{"kind": "step", "step": "x"}\n\xff', "holds no steps"),
    ],
)
def test_a_damaged_file_is_told_and_not_fatal(
    quick: Path, name: str, content: str, told: str
) -> None:
    (quick / name).write_bytes(content.encode("latin-1"))
    page = read(write_report(quick))
    harmless(page)
    assert told in page.text


def test_pictures_outside_the_samples_are_not_shown(quick: Path) -> None:
    secret = quick.parent / "secret.png"
    Image.new("RGB", (8, 8), "red").save(secret)
    folder = quick / "samples" / "adapter"
    (folder / "link.png").symlink_to(secret)
    names = ("../../../secret.png", str(secret), "link.png", "", "a\0b", "x" * 5000)
    lines = [
        {"file_name": name, "prompt": "p", "seed": i, "group": "trigger"}
        for i, name in enumerate(names)
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (quick / "evidence.json").unlink()
    page = read(write_report(quick))
    adapter = [a for t, a in page.elements if t == "img" and a["alt"].startswith("Adapter")]
    assert adapter == []
    assert "outside the run" in page.text


def test_odd_picture_files_leave_a_note(quick: Path) -> None:
    folder = quick / "samples" / "adapter"
    (folder / "trigger-0-0.png").write_bytes(b"not a picture")
    (folder / "trigger-0-1.png").unlink()
    os.mkfifo(folder / "trigger-0-1.png")  # would block whoever opens it
    good = (folder / "trigger-0-3.png").read_bytes()
    (folder / "trigger-0-3.png").write_bytes(good[: len(good) // 2])
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(folder / "trigger-0-4.png")
    page = read(write_report(quick))
    notes = [a["aria-label"] for t, a in page.elements if a.get("class") == "nothing"]
    assert "Adapter: a zqx, seed 0: cannot be read" in notes
    assert "Adapter: a zqx, seed 1: file is missing" in notes
    assert "Adapter: a zqx, seed 3: cannot be read" in notes
    assert not [n for n in notes if "seed 4" in n]


def test_two_calls_give_the_same_bytes(drawn: Path, run: Path, tmp_path: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    one = compare(drawn, tmp_path / "a.html").read_bytes()
    assert compare(drawn, tmp_path / "a.html").read_bytes() == one


def test_times_come_from_the_journal(run: Path) -> None:
    text = read(write_report(run)).text
    assert "2 min 14 s" in text
    assert "20 November 2025, 14:02 UTC" in text
    (run / "journal.jsonl").unlink()
    assert "UTC" not in read(write_report(run)).text


def test_steps_that_a_restart_took_back_are_not_drawn(tmp_path: Path) -> None:
    lines = [
        {"kind": "start", "step": 0},
        *({"kind": "step", "step": i, "loss": 9.0} for i in range(1, 9)),
        {"kind": "start", "step": 4},
        {"kind": "step", "step": 5, "loss": 1.0},
    ]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    label = next(v for v in read(write_report(tmp_path)).values("aria-label") if "loss" in v)
    assert label.endswith("to 1 at step 5.")


def test_ids_are_unique_and_references_lead_somewhere(drawn: Path, tmp_path: Path) -> None:
    for file in (write_report(drawn / "plain"), compare(drawn, tmp_path / "demo.html")):
        page = read(file)
        ids = page.values("id")
        assert len(ids) == len(set(ids))
        wanted = [x[1:] for x in page.values("href", "xlink:href") if x.startswith("#")]
        wanted += re.findall(r"url\(#([^)]+)\)", file.read_text(encoding="utf8"))
        wanted += page.values("aria-labelledby")
        assert set(wanted) <= set(ids)


def test_the_page_can_be_read_without_seeing_it(drawn: Path, tmp_path: Path) -> None:
    for file in (write_report(drawn / "plain"), compare(drawn, tmp_path / "demo.html")):
        page = read(file)
        levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(b - a <= 1 for a, b in pairwise(levels))
        assert all(attrs.get("alt") for tag, attrs in page.elements if tag == "img")
        for tag, attrs in page.elements:
            if tag == "svg":
                assert attrs.get("aria-hidden") == "true" or attrs.get("aria-label")
        assert ("html", {"lang": "en"}) in page.elements


def test_charts_take_their_colours_from_the_page(drawn: Path) -> None:
    html = write_report(drawn / "plain").read_text(encoding="utf8")
    drawings = re.findall(r'<svg role="img".*?</svg>', html, re.DOTALL)
    charts = [d for d in drawings if "viewBox" in d]
    assert len(charts) == 4
    for chart in charts:
        assert "var(--series-1)" in chart
        assert not re.search(r"#[0-9a-f]{6}", chart)
        assert "<text" in chart


def test_colours_of_text_have_contrast_in_both_themes() -> None:
    file = resources.files("variegate.report").joinpath("templates/style.css")
    css = file.read_text(encoding="utf8")
    light, dark = re.findall(r":root \{(.*?)\}", css, re.DOTALL)[:2]
    grounds = ("paper", "card", "code")
    pairs = [(text, ground) for text in ("ink", "soft", "link") for ground in grounds]
    pairs += [(tone, f"{tone}-ground") for tone in ("good", "warn", "bad", "unsure")]
    for theme in (light, dark):
        hues = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme))
        for text, ground in pairs:
            assert contrast(hues[text], hues[ground]) >= 4.5, (text, ground)
        for i in range(1, 7):
            assert contrast(hues[f"series-{i}"], hues["card"]) >= 3, i


def contrast(one: str, other: str) -> float:
    """The contrast ratio of WCAG 2, from 1 to 21."""
    lights = []
    for hue in (one, other):
        parts = [int(hue[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_every_label_and_strategy_has_plain_words() -> None:
    assert set(LABELS) == set(get_args(Label))
    assert set(STRATEGIES) >= set(Strategies.model_fields)


def test_a_report_needs_no_torch() -> None:
    code = "import variegate.report, sys; sys.exit('torch' in sys.modules)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


def test_prompts_that_share_the_bases_words_keep_their_own_rows() -> None:
    def sample(name: str, prompt: str, seed: int) -> Sample:
        return Sample(None, name, prompt, seed, "trigger")

    adapter = [sample(f"{p}{s}", p, s) for p in ("a zqx", "a toy") for s in (0, 1)]
    base = [sample(f"{i}{s}", "a toy", s) for i in (0, 1) for s in (0, 1)]
    rows = pair([base, adapter])[0].rows
    assert [row.prompts for row in rows] == [("a toy", "a zqx"), ("a toy", "a toy")]
    assert [[s.name for s in row.sides[0] if s] for row in rows] == [["00", "01"], ["10", "11"]]


def test_spread_keeps_the_ends() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 4) == [0, 1, 2]
    assert spread(range(3), 1) == [0]


def test_text_is_shown_as_it_is_or_by_its_code() -> None:
    assert plain("größe 日本 👩‍🎨\n") == "größe 日本 👩‍🎨\n"
    assert plain("a\x1b[31mb\u202ec") == "a␛[31mb⟨U+202E⟩c"
    assert plain("x" * 2000, 3) == "xxx … (2,000 characters)"
    plain("\ud800").encode()


def test_numbers_and_times_read_as_people_say_them() -> None:
    assert percent(0.42) == "42\u00a0%"
    assert percent(0.004) == "0.4\u00a0%"
    assert percent(-0.0001) == "0.0\u00a0%"
    assert percent(-0.3, signed=True) == "\N{MINUS SIGN}30\u00a0%"
    assert when("2025-11-20T14:02:14Z") == when(1_763_647_334) == "20 November 2025, 14:02 UTC"
    assert when("soon") == ""
    assert lasted(0, 7500) == "2 h 5 min"
    assert lasted(5, None) == ""


def with_panels(run: Path) -> Path:
    """Two looks of two seeds and the base's, as training notes them."""
    lines = [{"kind": "start", "step": 0, "time": 1.0}]
    for step, name in ((0, "base"), (50, "step-000050"), (100, "step-000100")):
        folder = run / "samples/panels" / name
        folder.mkdir(parents=True)
        told = []
        for seed in range(2):
            file = f"p000-s{seed:04}.png"
            Image.new("RGB", (8, 8), (step, 40 * seed, 9)).save(folder / file)
            told.append(json.dumps({"file_name": file, "prompt": "a <zqx>", "seed": seed}))
        (folder / "metadata.jsonl").write_text("\n".join(told) + "\n")
        path = f"samples/panels/{name}"
        lines.append({"kind": "panel", "step": step, "path": path, "pictures": 2, "time": 2.0})
        value = {"name": "intruders", "value": 5.0, "better": "lower", "n": 48, "step": step}
        layers = {"unet.a": 1, "unet.<b>": 4}
        lines.append({"kind": "intruders", "step": step, "measurements": [value], "layers": layers})
    (run / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_the_page_shows_a_column_for_each_look_with_the_base_on_the_left(quick: Path) -> None:
    page = read(write_report(with_panels(quick)))
    harmless(page)
    alts = [a for a in page.values("alt") if "<zqx>" in a and a.startswith(("Base", "step"))]
    assert alts == [
        f"{look}: a <zqx>, seed {seed}"
        for seed in (0, 1)
        for look in ("Base", "step 50", "step 100")
    ]
    assert "unet.<b> (4), unet.a (1)." in page.text


def test_a_panel_that_is_gone_or_leads_outside_has_no_column(quick: Path) -> None:
    run = with_panels(quick)
    shutil.rmtree(run / "samples/panels/step-000050")
    with (run / "journal.jsonl").open("a") as file:
        line = {"kind": "panel", "step": 150, "path": "../training", "time": 2.0}
        file.write(json.dumps(line) + "\n")
    page = read(write_report(run))
    assert "step 100" in page.text
    assert "step 50" not in page.text
    assert "step 150" not in page.text
