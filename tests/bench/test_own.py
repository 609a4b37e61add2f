"""The benchmark on a base of the user's: ailments of own pictures, rows that are measured."""

from __future__ import annotations

import itertools
import json
import pickle
import shutil
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.tiny import write_tiny_sd
from typer.testing import CliRunner

from variegate import recipes
from variegate.bench import suite, world
from variegate.bench.ailments import AILMENTS, HEALTHY
from variegate.bench.contenders import contenders
from variegate.bench.own import DRAWN, Own
from variegate.bench.scoreboard import MEASURED, as_text, summary
from variegate.bench.suite import cells, run_suite
from variegate.cli import app
from variegate.errors import BaseError, EncoderError, ImagesError, RecipeError, RequestError
from variegate.images import Picture
from variegate.measure.prompts import SIZES
from variegate.models import fingerprint, load
from variegate.report import write_scoreboard
from variegate.train import caption_of

WORDS = ("on a table", "in the grass", "seen from above", "by a window", "on a shelf", "at night")
# Two steps of training and two of drawing: enough for every part to be gone through.
FAST = (
    *("optimizer.steps=2", "optimizer.batch_size=1", "variants=2", "held_out.share=0"),
    *("probes.triples=1", "probes.noises=2", "probes.every=2", "guard.mode=watch"),
    *("sampling.preset=quick", "sampling.steps=2", "sampling.sampler=ddim"),
)


def write_photos(folder: Path, count: int = 6, *, captions: bool = True) -> Path:
    """Pictures of one thing in many places, of two formats, one with a mask drawn by hand."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    for i in range(count):
        picture = Image.fromarray(world.render(world.draw_scene(rng, ("robot",))))
        picture.save(folder / f"photo {i}.{'png' if i % 2 else 'jpg'}")
        if captions:
            text = f"a photo of zqx toy {WORDS[i % len(WORDS)]}, {i}"
            (folder / f"photo {i}.txt").write_text(text)
    Image.new("L", (64, 64), 255).save(folder / "photo 0-masklabel.png")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_sd(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six pictures, and a cache of its own."""
    monkeypatch.setenv("VARIEGATE_CACHE", str(tmp_path / "cache"))
    return write_photos(tmp_path / "photos")


def opened(base: Path, photos: Path, **more: Any) -> Own:
    return Own.open(str(base), photos, trigger="zqx", class_noun="toy", **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# --- which pictures -----------------------------------------------------------------------------


def test_the_pictures_of_a_seed_are_nested_and_no_file_name_decides_them(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    own = opened(base, write_photos(photos, 12))
    other = tmp_path / "renamed"
    other.mkdir()
    for file in photos.iterdir():
        number, mask, _ = file.stem.removeprefix("photo ").partition("-masklabel")
        shutil.copy(file, other / f"{99 - int(number)}{mask}{file.suffix}")
    renamed = opened(base, other)
    first = set()
    for seed in range(4):
        sets = list[set[str]]()
        for name in ("one picture", "two pictures", "four pictures", "eight pictures", "healthy"):
            ailment = own.ailments[name]
            sets.append({p.key for p, _ in own.chosen(ailment.pictures, seed)})
            same = renamed.given(renamed.ailments[name], seed)["images"]
            assert own.given(ailment, seed)["images"] == same
        assert [len(found) for found in sets] == [1, 2, 4, 8, 12]
        assert all(fewer < more for fewer, more in itertools.pairwise(sets))
        first |= sets[0]
    assert len(first) > 1


def test_each_ailment_does_its_one_thing_to_pictures_or_captions(base: Path, photos: Path) -> None:
    own = opened(base, photos)

    def learnt(name: str) -> list[tuple[str, str]]:
        return [(p.key, told) for p, told in own.chosen(own.ailments[name].pictures, 1)]

    whole = learnt("healthy")
    assert len({key for key, _ in whole}) == 6
    assert dict(whole) == {p.key: p.prompt for p in own.pictures}
    assert len(learnt("four pictures")) == 4
    twice = learnt("duplicates")
    assert [key for key, _ in twice].count(twice[0][0]) == 5
    assert own.ailments["duplicates"].cause == "5 of 6 pictures are one"
    assert {told for _, told in learnt("silent captions")} == {"a photo of zqx toy"}
    same = {told for _, told in learnt("one caption")}
    assert len(same) == 1
    assert same < {p.prompt for p in own.pictures}
    plain = own.contenders["plain"].recipe()
    for name, changed in (
        ("long", {"steps": 2000}),
        ("hot", {"lr": 4e-4}),
        ("bare", {"weight_decay": 0.0}),
    ):
        ill = own.ailments[name].recipe(plain, 0, own.given(own.ailments[name], 0))
        assert {key: getattr(ill.optimizer, key) for key in changed} == changed
        assert ill.base == str(base.resolve())


def test_what_says_nothing_is_what_a_run_would_say(base: Path, photos: Path) -> None:
    own = opened(base, photos)
    recipe = recipes.read("subject", trigger="zqx", class_noun="toy")
    assert own.silent == caption_of(Picture("x", None), recipe, pocket=False)


def test_copies_hold_the_files_as_they_were_and_the_folder_stays_as_it_was(
    base: Path, photos: Path
) -> None:
    before = contents(photos)
    own = opened(base, photos)
    folder = Path(own.given(own.ailments["healthy"], 0)["images"])
    assert folder.is_relative_to(photos.parent / "cache")
    pictures = {content for name, content in before.items() if not name.endswith(".txt")}
    assert {f.read_bytes() for f in folder.iterdir() if f.suffix != ".txt"} == pictures
    assert len(list(folder.glob("*-masklabel.png"))) == 1
    for name in own.ailments:
        own.given(own.ailments[name], 0)
    assert contents(photos) == before


@pytest.mark.parametrize(
    ("count", "captions", "left_out"),
    [
        (12, True, set()),
        (6, True, {"eight pictures"}),
        (4, True, {"eight pictures", "four pictures"}),
        (2, True, {"eight pictures", "four pictures", "two pictures", "duplicates"}),
        (12, False, {"silent captions", "one caption"}),
    ],
)
def test_what_cannot_be_made_is_left_out_with_its_reason(
    base: Path, tmp_path: Path, count: int, captions: bool, left_out: set[str]
) -> None:
    own = opened(base, write_photos(tmp_path / "photos", count, captions=captions))
    told = own.left_out()
    assert set(told) == DRAWN | left_out
    assert set(told) | set(own.ailments) == {*AILMENTS, HEALTHY.name}
    assert all(f"{count}" in told[n] for n in left_out if "caption" not in n)
    assert len(own.quick) == 3
    assert set(own.quick) <= set(own.ailments)
    assert {c.ailment.name for c in cells("full", bed=own)} == set(own.ailments)


# --- who is compared ----------------------------------------------------------------------------


def test_contenders_are_the_pockets_with_nothing_of_the_pockets_in_them(
    base: Path, photos: Path
) -> None:
    own = opened(base, photos)
    theirs, ours = contenders(), own.contenders
    assert set(theirs) - set(ours) == {"no flip", "rank 4", "default, autopilot"}
    assert set(ours) - set(theirs) == {"flip", "buckets", "rank 16", "default, watched"}
    assert {ours[n].group for n in ours} == {c.group for c in theirs.values()}
    shipped = recipes.read("subject")
    for name, contender in ours.items():
        recipe = contender.recipe()
        assert recipe.sampling == shipped.sampling, name
        assert recipe.base == shipped.base, name
        if contender.group in ("strategy", "kind"):
            assert recipe.optimizer == ours["plain"].recipe().optimizer, name
    assert ours["default"].recipe() == shipped
    assert ours["plain"].recipe() == ours["diffusers"].recipe()
    documented = {"diffusers": 1e-4, "kohya": 1e-4, "OneTrainer": 3e-4, "ai-toolkit": 1e-4}
    assert {n: ours[n].recipe().optimizer.lr for n in documented} == documented
    quick = cells("quick", bed=own)
    assert len({c.key(c.recipe()) for c in quick}) == 9


def test_every_contender_is_a_recipe_that_every_ailment_can_worsen(
    base: Path, photos: Path
) -> None:
    own = opened(base, photos)
    for contender in own.contenders.values():
        recipe = contender.recipe()
        for ailment in own.ailments.values():
            assert ailment.recipe(recipe, 0, own.given(ailment, 0)).trigger == "zqx"


def test_settings_lie_below_what_an_ailment_does(base: Path, photos: Path) -> None:
    own = opened(base, photos, settings=("optimizer.steps=7",))
    asked = cells("full", strategies=["default"], ailments=["long", "hot"], bed=own)
    assert {c.ailment.name: c.recipe().optimizer.steps for c in asked} == {"long": 28, "hot": 7}


# --- names of cells -----------------------------------------------------------------------------


def test_a_cell_is_named_by_content_wherever_base_and_pictures_lie(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    def key(own: Own) -> str:
        cell = cells("quick", strategies=["plain"], ailments=["four pictures"], bed=own)[0]
        assert pickle.loads(pickle.dumps(cell)) == cell
        return cell.key(cell.recipe())

    first = key(opened(base, photos))
    shutil.copytree(base, tmp_path / "moved base")
    shutil.copytree(photos, tmp_path / "moved photos")
    assert key(opened(tmp_path / "moved base", tmp_path / "moved photos")) == first
    other_weights = write_tiny_sd(tmp_path / "other", seed=1)
    other_caption = tmp_path / "moved photos"
    (other_caption / "photo 1.txt").write_text("a photo of zqx toy, otherwise")
    changed = [
        opened(other_weights, photos),
        opened(base, other_caption),
        opened(base, photos, settings=("optimizer.steps=3",)),
        opened(base, photos, encoders=["pocket", "pocket"]),
        Own.open(str(base), photos, trigger="zqx", class_noun="robot"),
    ]
    assert len({first, *map(key, changed)}) == 1 + len(changed)


def test_a_base_has_its_name_before_its_weights_are_read(base: Path) -> None:
    assert fingerprint(str(base)) == load(str(base)).id


# --- what was asked -----------------------------------------------------------------------------


def test_wrong_pictures_base_encoder_and_settings_are_told_before_any_run(
    base: Path, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(ImagesError, match="no folder at"):
        opened(base, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImagesError, match="no pictures in"):
        opened(base, tmp_path / "empty")
    with pytest.raises(RequestError, match="holds 1 picture; likeness needs 2 or more"):
        opened(base, write_photos(tmp_path / "one", 1))
    with pytest.raises(BaseError, match=r"model_index\.json is missing"):
        opened(photos, photos)
    with pytest.raises(EncoderError):
        opened(base, photos, encoders=[str(tmp_path / "no encoder")])
    with pytest.raises(RecipeError, match=r"optimizer\.stepz.*did you mean 'steps'"):
        opened(base, photos, settings=("optimizer.stepz=3",))
    with pytest.raises(RequestError, match=r"none of the 6 captions in .* names the trigger 'vwk'"):
        Own.open(str(base), photos, trigger="vwk", class_noun="toy")


def test_an_ailment_that_cannot_be_made_is_refused_with_its_reason(
    base: Path, photos: Path
) -> None:
    own = opened(base, photos)
    with pytest.raises(RequestError, match=r"'eight pictures' needs more than 8 .* there are 6"):
        cells("full", ailments=["eight pictures"], bed=own)
    with pytest.raises(RequestError, match=r"'style' needs a world that .*only; leave it out"):
        cells("full", ailments=["style"], bed=own)
    with pytest.raises(RequestError, match="no ailment is called 'styl'"):
        cells("full", ailments=["styl"], bed=own)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--images", "x"], "--images x wants --base BASE"),
        (["--base", "pocket", "--images", "x"], "draws pictures of its own"),
        (["--trigger", "zqx"], "go with --base BASE and --images FOLDER"),
        (["--set", "optimizer.steps=3"], "go with --base BASE and --images FOLDER"),
        (["--base", "x"], "--base x wants --images FOLDER"),
        (["--base", "x", "--images", "y"], "give --trigger WORD"),
        (["--base", "x", "--images", "y", "--trigger", "zqx"], "--class NOUN"),
        (["--base", "x", "--show"], "leave --base out"),
    ],
)
def test_words_that_do_not_go_together_are_refused(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["bench", *words, "--json"])
    assert done.exit_code == 2
    assert told in json.loads(done.stdout)["error"]["message"]


# --- rows ---------------------------------------------------------------------------------------


class Here(Executor):
    """Runs what it is given at once, in this process."""

    def submit(self, work: Any, /, *given: Any, **named: Any) -> Future[Any]:
        found: Future[Any] = Future()
        found.set_result(work(*given, **named))
        return found


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs here and now, of a plan of few prompts."""
    few = {"class": (4, 4), "trigger": (4, 4), "unrelated": (3, 2), "caption": (2, 2)}
    monkeypatch.setitem(SIZES, "quick", few)

    @contextmanager
    def here(on: str, jobs: int) -> Any:
        yield Here()

    monkeypatch.setattr(suite, "workers", here)


def test_a_benchmark_on_a_base_of_ones_own_is_measured_and_goes_on(
    base: Path, photos: Path, tmp_path: Path, in_process: None
) -> None:
    words = ["bench", "--base", str(base), "--images", str(photos), "--trigger", "zqx"]
    words += ["--class", "toy", "--strategies", "plain,default", "--out", str(tmp_path / "out")]
    words += ["--suite", "full", "--ailments", "duplicates", "--seeds", "1", "--json"]
    words += [word for told in FAST for word in ("--set", told)]
    before = contents(photos)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert "To be made: 2 runs, 4 training steps" in done.stderr
    assert told["cells"] == told["asked"] == 2
    assert told["read_by"] == "measures"
    assert "measured, not judged" in told["says"]
    assert told["detector"] == []
    page = Path(told["page"]).read_text()
    assert "measured, not judged" in page
    assert "Was the verdict right?" not in page
    assert "a judge that knows" not in page
    assert (tmp_path / "out" / "rows.parquet").exists()
    rows = [json.loads(x) for x in next((tmp_path / "cache").rglob("rows.jsonl")).open()]
    assert not any(name.startswith("true.") for row in rows for name in row)
    for row in rows:
        for figure in MEASURED.figures[1:]:
            name = figure.columns[0].removeprefix("seen.")
            assert (f"seen.{name}" in row) != (f"why.{name}" in row)
    assert contents(photos) == before
    again = CliRunner().invoke(app, words)
    assert "To be made" not in again.stderr
    assert json.loads(again.stdout)["by_ailment"] == told["by_ailment"]


def test_the_work_is_counted_as_it_will_be_done(
    base: Path, photos: Path, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = opened(base, photos, settings=FAST)
    asked = cells("quick", ailments=["healthy"], strategies=["plain"], bed=own)
    told: list[str] = []
    kept: list[int] = []
    drawn = suite.draw_both

    def counting(*given: Any, **more: Any) -> Any:
        sets = drawn(*given, **more)
        kept.extend(len({(p.prompt, p.seed) for p in found}) for found in sets)
        return sets

    monkeypatch.setattr(suite, "draw_both", counting)
    run_suite(asked, tell=told.append)
    ours, theirs = kept
    assert "1 runs, 2 training steps in all, 2 pictures forward" in told[0]
    assert f"{ours:,} pictures of the adapters and {theirs:,} of the base" in told[0]
    assert f"{(ours + theirs) * 2 * 2:,} passes" in told[0]


def measured(ailment: str, strategy: str, group: str, seed: int, **figures: Any) -> dict[str, Any]:
    return {
        **{"key": f"{ailment}{strategy}{seed}", "ailment": ailment, "strategy": strategy},
        **{"group": group, "seed": seed, "labels": "", "train_seconds": 1.0},
        **{f"seen.{name}": value for name, value in figures.items()},
    }


def test_what_could_not_be_measured_is_told_and_counts_for_nothing(tmp_path: Path) -> None:
    both = {"variety_vs_base": 0.8, "trigger_variety_vs_base": 0.6}
    rows = [
        measured("hot", "plain", "plain", 0, **both, likeness=0.5),
        measured("hot", "plain", "plain", 1, **both, likeness=0.7),
        measured("hot", "default", "default", 0, variety_vs_base=0.9, likeness=0.4),
        measured("hot", "default", "default", 1, variety_vs_base=0.9),
        measured("hot", "kohya", "field", 0, **both, likeness=0.4),
    ]
    rows[2]["why.trigger_variety_vs_base"] = rows[3]["why.trigger_variety_vs_base"] = "no layout"
    rows[3]["why.likeness"] = "too alike"
    rows[2]["train_seconds"], rows[3]["train_seconds"] = 3.0, None  # the last was trained before
    found = summary(rows, by=MEASURED)
    lines = {line["strategy"]: line for line in found["core"]}
    assert lines["plain"]["variety"] == pytest.approx(0.7)
    assert lines["plain"]["likeness"] == pytest.approx(0.6)
    assert lines["default"]["variety"] is None
    assert (lines["plain"]["time"], lines["default"]["time"]) == (1.0, 3.0)
    assert lines["default"]["variety_vs_plain"] is None
    assert lines["default"]["likeness_vs_plain"]["cells"] == 1
    assert lines["default"]["likeness_vs_plain"]["value"] == pytest.approx(-0.1)
    assert [line["strategy"] for line in found["core"] if line["front"]] == ["plain"]
    assert found["gate"] == []  # without a variety there is nothing to win by
    missing = {line["figure"]: (line["runs"], line["why"]) for line in found["unmeasured"]}
    assert missing["of the trigger"] == (2, "no layout")
    assert missing["likeness"] == (1, "too alike")
    text = as_text(found)
    assert "measured, not judged" in text
    assert "not measured: of the trigger in 2 of 5: no layout" in text
    page = write_scoreboard(
        {**found, "base": "my/base", "left_out": {"style": "needs a world"}},
        command="x",
        sheets=[],
        out=tmp_path / "page.html",
    ).read_text()
    assert "my/base" in page
    assert "Left out: style (needs a world)." in page
    assert "too alike" in page


def test_the_gate_counts_every_ailment_of_ones_own_pictures() -> None:
    rows = []
    for seed in range(3):
        for ailment in ("hot", "healthy"):
            for name, group, variety in (("default", "default", 0.9), ("kohya", "field", 0.5)):
                both = dict.fromkeys(
                    ("variety_vs_base", "trigger_variety_vs_base"), variety + 0.01 * seed
                )
                rows.append(measured(ailment, name, group, seed, **both, likeness=0.5))
    found = summary(rows, by=MEASURED)["gate"]
    assert [(line["ailment"], line["wins"]) for line in found] == [("hot", True), ("healthy", True)]
