"""The verb on the pocket: a collapsed adapter is repaired, and what cannot be is said so."""

from __future__ import annotations

import json
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from tests.blend.random_adapters import random_adapter
from typer.testing import CliRunner

from variegate import formats, recipes, repair
from variegate.adapter import attach
from variegate.bench import ailments
from variegate.blend.cast import write_ensemble
from variegate.cli import app, blending
from variegate.errors import AdapterError, RequestError
from variegate.models import load
from variegate.train import train

ROOM = "variegate.pick.mending"


def ask(*words: Any) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["repair", "--json", "--quiet", *map(str, words)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures than a user would want."""
    module = sys.modules[ROOM]
    monkeypatch.setattr(module, "SEARCHED", {"class": 2, "trigger": 2})
    monkeypatch.setattr(module, "FRESH", {"class": 6, "trigger": 2})
    monkeypatch.setattr(module, "BESIDE", module.TIMED[:1])
    monkeypatch.setattr(module, "HEARD", {"class": 6, "trigger": 4})


@pytest.fixture(scope="module")
def collapsed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An adapter trained hard on pictures that are alike, and these."""
    home = tmp_path_factory.mktemp("collapsed")
    pictures = ailments.draw_pictures(ailments.AILMENTS["one-sided"].pictures, "cupcake", 2)
    recipe = recipes.read(
        "pocket-plain",
        settings=("optimizer.steps=60", "optimizer.lr=3e-3", "adapter.rank=4", "adapter.alpha=4"),
        images=str(pictures),
        trigger="zqx",
        class_noun="food",
    )
    return train(recipe, out=home / "run").adapter_file, pictures


@pytest.mark.usefixtures("few")
def test_a_collapsed_adapter_gets_variety_back(
    collapsed: tuple[Path, Path], tmp_path: Path
) -> None:
    file, pictures = collapsed
    out = tmp_path / "mended.safetensors"
    code, found = ask(file, "--train-images", pictures, "--out", out, "--tries", 2, "--price", 0.3)
    assert code == 0
    assert found["file"] == str(out)
    assert found["gain"]["low"] > 0
    assert found["kept"]["high"] > 0.7
    assert found["edits"]
    assert len(found["tried"]) == 3
    assert found["tried"][0]["edits"] == []
    names = [d["name"] for d in found["differences"]]
    assert names == ["variety_vs_base", "trigger_variety_vs_base", "likeness"]
    mended = formats.read(out)
    assert mended.kind == "lora"
    assert mended.digest() != formats.read(file).digest()
    notes = formats.own_notes(mended.metadata)
    assert notes["repair"]["edits"] == found["edits"]
    assert formats.trigger_of(mended.metadata) == "zqx"
    assert notes["verdict"]["labels"] == found["after"]["labels"]
    page = Path(found["page"]).read_text(encoding="utf8")
    for said in ("What was tried", "before", "after", "of the subject", found["words"][0]):
        assert said in page


@pytest.mark.usefixtures("few")
def test_an_adapter_that_lost_nothing_is_left_alone(tmp_path: Path) -> None:
    base = load("pocket")
    recipe = recipes.read("pocket-plain", trigger="zqx", class_noun="food")
    on = attach(base, recipe.adapter, seed=0)
    fresh = on.adapter(formats.describe(base="pocket", trigger="zqx", notes={"class": "food"}))
    on.detach()
    file = formats.write(fresh, tmp_path / "fresh.safetensors")
    code, found = ask(file)
    assert code == 0
    assert found["file"] is None
    assert "keeps 99% of its base's variety" in found["said"]
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_repaired_is_told_with_advice(tmp_path: Path) -> None:
    file = formats.write(random_adapter(0), tmp_path / "a.safetensors")
    with pytest.raises(RequestError, match=r"price 1\.5; expected a share"):
        repair(file, base="pocket", price=1.5)
    with pytest.raises(RequestError, match="0 tries; expected 1 or more"):
        repair(file, base="pocket", tries=0)
    with pytest.raises(RequestError, match="is the adapter itself; name another file"):
        repair(file, base="pocket", out=file)
    with pytest.raises(RequestError, match=r"which word calls what it learnt.*give --trigger"):
        repair(file, base="pocket")
    cast = write_ensemble(tmp_path / "cast.toml", [file, file], [1.0, 1.0], "member")
    with pytest.raises(RequestError, match="is an ensemble; repair its members"):
        repair(cast, base="pocket")
    with pytest.raises(AdapterError, match="does not fit base 'pocket'"):
        repair(file, base="pocket", trigger="zqx", class_noun="food")


def test_the_command_asks_by_default_what_the_function_does() -> None:
    ours, theirs = signature(repair).parameters, signature(blending.repair).parameters
    for name in ("price", "tries", "timed", "anyway"):
        assert ours[name].default == theirs[name].default
