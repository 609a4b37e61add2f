"""`inspect` and `convert` as they are asked on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from typer.testing import CliRunner

from variegate import formats
from variegate.adapter import Adapter, LayerUpdate
from variegate.adapter.updates import LohaUpdate
from variegate.cli import app

NAME = "unet.down_blocks.0.attentions.0.proj_in"
OTHER = "unet.down_blocks.0.attentions.1.proj_in"


def ask(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def written(folder: Path) -> Path:
    loha = LohaUpdate(torch.ones(6, 2), torch.ones(2, 5), torch.ones(6, 2), torch.ones(2, 5), 3.0)
    lora = LayerUpdate(torch.ones(2, 5), torch.ones(6, 2), 1.5)
    notes = formats.describe(name="owl", trigger="zqx")
    return formats.write(
        Adapter("sd1", {NAME: loha, OTHER: lora}, notes), folder / "owl.safetensors"
    )


def test_inspect_tells_people_and_programs_the_same(tmp_path: Path) -> None:
    file = written(tmp_path)
    code, out, _ = ask("inspect", file, "--json")
    facts: dict[str, Any] = json.loads(out)
    assert code == 0
    assert facts["family"] == "sd1"
    assert {layer["name"]: layer["rank"] for layer in facts["layer_facts"]} == {NAME: 2, OTHER: 2}
    code, out, _ = ask("inspect", file)
    assert code == 0
    assert f"{OTHER}  lora  rank 2  alpha 1.5  norm" in out
    assert "modelspec.trigger_phrase: zqx" in out
    assert facts["hashes"]["autov2"] in out


def test_convert_refuses_then_cuts_when_asked_and_tells_what_is_kept(tmp_path: Path) -> None:
    file, target = written(tmp_path), tmp_path / "out.safetensors"
    code, out, err = ask("convert", file, target, "--to", "diffusers")
    assert (code, out) == (2, "")
    assert "--rank R" in err
    assert not target.exists()
    code, out, _ = ask("convert", file, target, "--to", "diffusers", "--rank", 1, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["format"], facts["kind"]) == ("diffusers", "lora")
    assert facts["kept"]["layers"] == 1
    assert abs(facts["kept"]["mean"] - 1) < 1e-6  # all ones: of rank one


def test_convert_writes_what_a1111_reads_beside_it(tmp_path: Path) -> None:
    file, target = written(tmp_path), tmp_path / "out.safetensors"
    code, out, _ = ask("convert", file, target, "--to", "kohya", "--sidecar", "--json")
    assert code == 0
    assert json.loads(out)["sidecar"] == [str(target.with_suffix(".json").resolve())]
    code, _, err = ask("convert", file, target, "--to", "kohya", "--preview", "x.png")
    assert code == 2
    assert "--preview goes with --sidecar" in err
