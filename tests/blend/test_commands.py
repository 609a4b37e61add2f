"""The verbs blend, extract, resize, scale and merge, and the judging of a blend."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.blend.random_adapters import LAYERS, random_adapter
from tests.tiny import write_tiny_sd
from typer.testing import CliRunner

from variegate import blended, formats, recipes
from variegate.adapter import Adapter, LayerUpdate
from variegate.blended import compare, members_of, told
from variegate.cli import app
from variegate.errors import RequestError
from variegate.measure import evidence_of_features
from variegate.measurement import Measurement, Missing, Verdict
from variegate.run import Run

NAME = next(iter(LAYERS))


def ask(*words: Any) -> tuple[int, dict[str, Any], str]:
    done = CliRunner().invoke(app, [str(words[0]), "--json", "--quiet", *map(str, words[1:])])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, json.loads(done.stdout), done.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("adapters")
    return [formats.write(random_adapter(i), home / f"{i}.safetensors") for i in range(3)]


def delta(file: Path | str) -> torch.Tensor:
    return formats.read(file).delta(NAME)


def test_a_blend_is_written_and_tells_what_it_kept(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    code, document, _ = ask("blend", *files, "--weights", "2,1,1", "--rank", "4", "--out", out)
    assert code == 0
    assert document["file"] == str(out)
    assert document["rank"] == 4
    assert 0.5 < document["energy"] < 1
    assert document["least_energy"]["energy"] <= document["energy"]
    assert set(document["layers"]) == set(LAYERS)
    ask("blend", *files, "--weights", "2,1,1", "--out", out)
    want = 0.5 * delta(files[0]) + 0.25 * delta(files[1]) + 0.25 * delta(files[2])
    torch.testing.assert_close(delta(out), want, atol=1e-5, rtol=1e-5)


def test_resize_and_scale(files: list[Path], tmp_path: Path) -> None:
    code, document, _ = ask(
        "resize", files[0], "--energy", "0.9", "--out", tmp_path / "a.safetensors"
    )
    assert code == 0
    assert document["energy"] >= 0.9
    code, _, _ = ask("scale", files[0], "--out", tmp_path / "b.safetensors", "--", "-0.5")
    assert code == 0
    torch.testing.assert_close(delta(tmp_path / "b.safetensors"), -0.5 * delta(files[0]))


def test_merge_and_extract_are_each_others_undoing(tmp_path: Path) -> None:
    base = write_tiny_sd(tmp_path / "base")
    name = "unet.mid_block.resnets.0.time_emb_proj"
    up = torch.linspace(-1, 1, 32)[:, None]
    learnt = Adapter("sd1", {name: LayerUpdate(torch.ones(1, 64), up, 1.0)})
    file = formats.write(learnt, tmp_path / "a.safetensors")
    code, document, _ = ask("merge", file, "--base", base, "--out", tmp_path / "m")
    assert (code, document["model"]) == (0, str(tmp_path / "m"))
    out = tmp_path / "b.safetensors"
    code, document, _ = ask("extract", base, tmp_path / "m", "--rank", 1, "--out", out)
    assert code == 0
    assert document["left_out"] == []
    torch.testing.assert_close(
        formats.read(out).delta(name), learnt.delta(name), atol=1e-5, rtol=1e-5
    )


def test_an_ensemble_is_described_and_drawn_from(files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "cast.toml"
    code, document, _ = ask("blend", *files, "--ensemble", "switch", "--out", out)
    assert code == 0
    assert document["weights"] == pytest.approx([1 / 3] * 3)
    assert document["members"] == [str(file) for file in files]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--weights", "a,b"], "expected numbers with commas"),
        (["--weights", "1"], "1 weights for 3 adapters"),
        (["--ensemble", "member", "--rank", "2"], "keeps every member whole"),
        (["--greedy", "--method", "ties"], "a soup of equal parts"),
        (["--by", "likeness"], "give both"),
        (["--rank", "400"], "rank 400 is above what is there"),
        (["--ensemble", "member"], "described in a .toml file"),
    ],
)
def test_impossible_blends_are_refused(
    words: list[str], told: str, files: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    code, document, _ = ask("blend", *files, "--out", out, *words)
    assert code == 2
    assert told in document["error"]["message"]
    assert not out.exists()


def _gap(low: float, high: float, name: str = "copy_rate") -> Measurement:
    return Measurement(name, (low + high) / 2, low, high, 16)


def test_a_blend_is_called_better_only_by_its_whole_interval() -> None:
    assert told(_gap(0.02, 0.1, "variety_vs_base")).startswith("more varied (+0.06")
    assert told(_gap(-0.1, -0.02)).startswith("copies less (-0.06")
    for low, high in ((-0.01, 0.3), (-0.3, 0.01), (0.0, 0.2)):
        assert told(_gap(low, high)).startswith("no difference in copy_rate")
    assert "without an interval" in told(Measurement("copy_rate", 0.5))
    assert told(Missing("copy_rate", "none given")) == "copy_rate: not known, none given"


def test_a_blend_is_compared_with_every_member_on_the_same_prompts() -> None:
    """Two of three prompts' worth of spread against none."""
    draw = torch.Generator().manual_seed(0)
    prompts = [f"{i}" for i in range(8) for _ in range(6)]
    base = torch.randn(48, 12, generator=draw)
    alike = torch.randn(8, 12, generator=draw).repeat_interleave(6, 0)
    rows = {
        "wide": torch.randn(48, 12, generator=draw),
        "narrow": alike + 0.05 * torch.randn(48, 12, generator=draw),
    }

    class Planted(blended.Judge):
        def __init__(self) -> None: ...

        def evidence(self, learnt: Any) -> Any:
            return evidence_of_features(rows[learnt.metadata["is"]], base, prompts=prompts)

    wide, narrow = (Adapter("sd1", {}, {"is": name}) for name in ("wide", "narrow"))
    document = compare(wide, [wide, narrow], Planted())
    itself, other = document["members"]
    assert itself["said"][0].startswith("no difference in variety_vs_base")
    assert other["said"][0].startswith("more varied (+")
    assert other["said"][2].startswith("copy_rate: not known")
    assert document["verdict"]["labels"] != Verdict.from_json(other["verdict"]).labels


def test_a_run_stands_for_its_checkpoints(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", recipes.read("pocket", images=str(tmp_path)))
    with pytest.raises(RequestError, match="no checkpoint to blend"):
        members_of([run.folder])
    for step in (100, 20):
        (run.checkpoints / f"step-{step:06d}").mkdir(parents=True)
    other = tmp_path / "a.safetensors"
    found = [p.parent.name if p != other else "a" for p in members_of([run.folder, other])]
    assert found == ["step-000020", "step-000100", "a"]


def test_a_soups_score_is_a_product_of_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (
        Measurement("likeness", 0.5),
        Measurement("variety_vs_base", 1.4),
        Measurement("copy_rate", 0.25, better="lower"),
        Missing("trigger_variety_vs_base", "nothing was drawn"),
    )
    verdict = Verdict(("healthy",), "", (), (), numbers, "1")
    monkeypatch.setattr(blended, "measure", lambda _: verdict)

    class Judge(blended.Judge):
        def __init__(self) -> None: ...

        def evidence(self, learnt: Any) -> Any: ...

    adapter = Adapter("sd1", {})
    score = Judge().score(("likeness", "variety_vs_base", "copy_rate"))
    assert score(adapter) == pytest.approx(0.5 * 1.0 * 0.75)
    with pytest.raises(RequestError, match="nothing was drawn; give --trigger"):
        Judge().score()(adapter)
    with pytest.raises(RequestError, match="no measurement of that name"):
        Judge().score(("beauty",))(adapter)
