"""Files that mean no good: a clear refusal, in bounded memory and time, and nothing is executed."""

from __future__ import annotations

import json
import resource
import struct
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from variegate import formats
from variegate.adapter.updates import LokrUpdate
from variegate.errors import AdapterError

STEM = "lora_unet_mid_block_attentions_0_proj_in"


def refusal(file: Path) -> str:
    """What is told of a file, in time and without taking memory for what it claims."""
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AdapterError) as caught:
        formats.read(file)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300 << 10  # KiB
    assert time.monotonic() - start < 20
    return str(caught.value)


def raw(file: Path, header: bytes, body: bytes = b"", *, length: int | None = None) -> Path:
    count = len(header) if length is None else length
    file.write_bytes(struct.pack("<Q", count) + header + body)
    return file


def test_headers_that_claim_what_is_not_there_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.safetensors"
    for length in (2**63, 2**40, 10**6):
        assert "is no whole safetensors file" in refusal(raw(file, b"{}", length=length))
    huge = {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64 - 4]}
    told = refusal(raw(file, json.dumps({f"{STEM}.lora_up.weight": huge}).encode()))
    assert "is no whole safetensors file" in told
    nested = b'{"a":' * 100_000
    assert "is no whole safetensors file" in refusal(raw(file, nested))


def test_a_header_of_nothing_but_text_is_refused_unread(tmp_path: Path) -> None:
    text = b'{"__metadata__": {"a": "' + b"x" * (33 << 20) + b'"}}'
    told = refusal(raw(tmp_path / "big.safetensors", text))
    assert "an adapter's has at most 33554432; it is refused unread" in told


def test_a_hundred_thousand_tensors_are_refused(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"{STEM}.{i}": entry for i in range(100_000)}).encode()
    told = refusal(raw(tmp_path / "many.safetensors", header))
    assert "holds 100000 tensors; an adapter has at most 20000" in told


def test_small_factors_do_not_make_an_endless_one(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    save_file(
        {
            f"{STEM}.lora_mid.weight": torch.ones(1, 1, 3000, 1000),
            f"{STEM}.lora_down.weight": torch.ones(1, 1000, 1, 1),
            f"{STEM}.lora_up.weight": torch.ones(4, 1, 1, 1),
        },
        file,
    )
    assert "makes 3000000000 numbers of a factor" in refusal(file)


def test_small_factors_of_a_lokr_are_not_multiplied_out_to_learn_its_shape(tmp_path: Path) -> None:
    file, n = tmp_path / "x.safetensors", 1 << 17
    parts = {
        **{"lokr_w1": torch.ones(1, 1)},
        **{"lokr_w2_a": torch.ones(n, 1), "lokr_w2_b": torch.ones(1, n)},
    }
    save_file({f"{STEM}.{name}": tensor for name, tensor in parts.items()}, file)
    assert file.stat().st_size < 2 << 20
    assert "a half of it is 17179869184 numbers; expected at most" in refusal(file)
    assert "a half of it is 17179869184 numbers" in formats.inspect(file)["problem"]
    wide = LokrUpdate(1.0, w1=torch.ones(2, 3), w2_a=torch.ones(n, 1), w2_b=torch.ones(1, n))
    assert wide.size == (2 * n, 3 * n)


def test_inspecting_a_huge_product_forms_none(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    wide = {f"{STEM}.lokr_w1": torch.ones(900, 900), f"{STEM}.lokr_w2": torch.ones(900, 900)}
    save_file(wide, file)
    start = time.monotonic()
    (layer,) = formats.inspect(file)["layer_facts"]
    assert (layer["norm"], layer["singular_values"]) == (None, None)
    with pytest.raises(AdapterError, match="a dense update has at most"):
        formats.convert(file, tmp_path / "y.safetensors", "kohya", dense=True)
    assert time.monotonic() - start < 20


def test_factors_that_multiply_to_more_than_floats_hold_are_refused_or_told(tmp_path: Path) -> None:
    huge = 3.39e38  # float32 itself holds it
    folded = tmp_path / "folded.safetensors"
    parts = {
        "lokr_w1": torch.zeros(1, 1),
        "lokr_t2": torch.full((1, 1, 3, 3), huge),
        "lokr_w2_a": torch.full((1, 4), huge),
        "lokr_w2_b": torch.full((1, 1), huge),
    }
    save_file({f"{STEM}.{name}": t for name, t in parts.items()}, folded)
    assert "multiply to more than float32 holds" in refusal(folded)
    assert "multiply to more than float32 holds" in formats.inspect(folded)["problem"]
    # Each factor is finite, and so is their product in double precision.
    flat = tmp_path / "flat.safetensors"
    parts |= {"lokr_w2_a": torch.full((4, 1), huge), "lokr_w2_b": torch.full((1, 4), huge)}
    del parts["lokr_t2"]
    save_file({f"{STEM}.{name}": t for name, t in parts.items()}, flat)
    facts = formats.inspect(flat)
    assert facts["problem"] is None
    json.dumps(facts, allow_nan=False)


def test_numbers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    for kind in (torch.complex64, torch.int64, torch.bool):
        save_file({f"{STEM}.lora_up.weight": torch.ones(2, 2).to(kind)}, file)
        assert f"numbers of kind {kind}; expected floating point" in refusal(file)


def test_hypertext_and_commands_in_metadata_stay_text(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    lines = {"a": "<script>alert(1)</script>", "\x1b[31mb": "\x1b]0;x\x07", "ss_v2": "{{7*7}}"}
    good = {
        f"{STEM}.lora_down.weight": torch.ones(2, 3),
        f"{STEM}.lora_up.weight": torch.ones(3, 2),
    }
    save_file(good, file, metadata=lines)
    facts = formats.inspect(file)
    assert facts["problem"] is None
    assert facts["metadata"]["a"] == lines["a"]
    from variegate.answers import adapter_text

    told = adapter_text(facts)
    assert "\x1b" not in told
    assert "\x07" not in told


def test_two_factors_in_one_place_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    stem = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    fused = {
        f"{stem}.lora_down.weight": torch.ones(2, 3),
        f"{stem}.lora_up.weight": torch.ones(9, 2),
    }
    apart = {
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 3),
        "transformer.transformer_blocks.0.attn.to_q.lora_B.weight": torch.ones(3, 2),
    }
    save_file({**fused, **apart}, file)
    assert "once by itself, and once in a matrix of several" in refusal(file)
    save_file({**fused, f"{stem}.lora_up.weight": torch.ones(8, 2)}, file)
    assert "its rows are not a multiple of 3" in refusal(file)
    save_file({f"{stem}.lokr_w1": torch.ones(3, 3), f"{stem}.lokr_w2": torch.ones(3, 3)}, file)
    assert "cannot be shared out among 3 layers" in refusal(file)
    twice = {
        f"lora_te_text_model_encoder_layers_0_mlp_fc1.{s}": torch.ones(2, 2) for s in ("alpha",)
    }
    twice |= {
        f"lora_te1_text_model_encoder_layers_0_mlp_fc1.{s}": torch.ones(2, 2) for s in ("alpha",)
    }
    save_file(twice, file)
    assert "a second alpha for layer" in refusal(file)
