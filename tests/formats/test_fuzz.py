"""The reader under files that mean no good: every one is an adapter or one clear refusal."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from variegate import formats
from variegate.errors import VariegateError
from variegate.formats.names import JOINED, SUFFIXES

SIZES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "I8": 1, "I32": 4, "I64": 8, "BOOL": 1, "U8": 1}
ODD_KINDS = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "U16", "Q4", "", "f32")
PATHS = (
    "mid_block_attentions_0_proj_in",
    "input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    "joint_blocks_0_x_block_attn_qkv",
    "joint_blocks_1_context_block_adaLN_modulation_1",
    "final_layer_adaLN_modulation_1",
    "text_model_encoder_layers_0_self_attn_q_proj",
    "unet.mid_block.attentions.0.proj_in",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora",
    "transformer.transformer_blocks.0.attn.to_q",
    "diffusion_model.input_blocks.0.0",
    "base_model.model.text_model.encoder.layers.0.mlp.fc1",
)
NAMES = (
    "lora_unet_mid_block_attentions_0_proj_in",
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k",
    "lora_unet_joint_blocks_0_x_block_attn_qkv",
    "lora_unet_final_layer_adaLN_modulation_1",
    "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    *PATHS[6:],
)
HEADERS = (
    "{}", "[]", "null", '{"unet.r": 4}', '{"unet.lora_alpha": 1e400}', '{"family": ["sd1"]}',
    '{"unet.alpha_pattern": {"mid_block": 3}}', '{"tlora": {"timesteps": -1}}', "[" * 3000,
    '{"unet.use_rslora": 1, "unet.lora_alpha": 8}', "/home/x/y", "<script>", '{"verdict": 3}',
    '{"unet.lora_alpha": NaN}', '{"clip_skip": true}',
)  # fmt: skip

# Layers that are whole: by suffix the sides of each factor, equal letters being of equal size.
WHOLE = (
    {"lora_down.weight": "ri", "lora_up.weight": "or", "alpha": ""},
    {"lora_A.weight": "ri", "lora_B.weight": "or"},
    {"lora_down.weight": "ri", "lora_up.weight": "or", "dora_scale": "o1"},
    {"lora_down.weight": "ri", "lora_up.weight": "or", "dora_scale": "1i"},
    {"lora_down.weight": "rikk", "lora_up.weight": "or11"},
    {"lora_mid.weight": "rrkk", "lora_down.weight": "ri11", "lora_up.weight": "or11"},
    {"hada_w1_a": "or", "hada_w1_b": "ri", "hada_w2_a": "or", "hada_w2_b": "ri"},
    {
        **{"hada_t1": "rrkk", "hada_w1_a": "ro", "hada_w1_b": "ri"},
        **{"hada_t2": "rrkk", "hada_w2_a": "ro", "hada_w2_b": "ri"},
    },
    {"lokr_w1": "rr", "lokr_w2": "oi", "alpha": ""},
    {"lokr_w1_a": "rr", "lokr_w1_b": "rk", "lokr_w2_a": "or", "lokr_w2_b": "ri"},
    {"lokr_w1": "rr", "lokr_t2": "rrkk", "lokr_w2_a": "ro", "lokr_w2_b": "ri"},
    {"oft_blocks": "rkk", "alpha": ""},
    {"oft_blocks": "2422", "rescale": "81"},
    {"diff": "oi", "diff_b": "o"},
    {"w_norm": "o", "b_norm": "o"},
)

shapes = st.lists(st.integers(0, 5), max_size=5)
keys = st.one_of(
    st.builds(
        lambda prefix, path, suffix: f"{prefix}{path}.{suffix}",
        st.sampled_from(["", *(start for start, _, _ in JOINED)]),
        st.sampled_from(PATHS),
        st.sampled_from(sorted(SUFFIXES)),
    ),
    st.text(max_size=40),
)
metadata = st.dictionaries(
    st.sampled_from(
        ["lora_adapter_metadata", "variegate", "ss_v2", "modelspec.trigger_phrase", "format"]
    ),
    st.one_of(st.sampled_from(HEADERS), st.text(max_size=30)),
    max_size=3,
)


@st.composite
def files(draw: Any) -> bytes:
    """A safetensors file whose tensors lie where the header says, more or less damaged."""
    header: dict[str, Any] = {}
    body = b""
    tensors: list[tuple[str, str, list[int]]] = []
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from(NAMES))
        sides = {letter: draw(st.integers(1, 4)) for letter in "oirk"}
        kind = draw(st.sampled_from(("F32", "F16", "BF16")))
        for suffix, letters in draw(st.sampled_from(WHOLE)).items():
            shape = [sides.get(side) or int(side) for side in letters]
            tensors.append((f"{name}.{suffix}", kind, shape))
    for key in draw(st.lists(keys, max_size=2)) if draw(st.booleans()) else ():
        kind = draw(st.sampled_from(("F32", "F32", "F16", "F32", *SIZES, *ODD_KINDS)))
        tensors.append((key, kind, draw(shapes)))
    for key, kind, shape in tensors:
        count = SIZES.get(kind, 1)
        for side in shape:
            count *= side
        fill = draw(st.sampled_from((b"\x3c", b"\x3c", b"\x3c", b"\x00", b"\x7f", b"\xff")))
        header[key] = {
            "dtype": kind,
            "shape": shape,
            "data_offsets": [len(body), len(body) + count],
        }
        body += fill * count
    if draw(st.booleans()):
        header["__metadata__"] = draw(metadata)
    if draw(st.integers(0, 9)) == 0 and header:
        odd = st.one_of(st.integers(-(2**70), 2**70), st.text(max_size=5), st.lists(st.integers()))
        header[draw(st.sampled_from(sorted(header)))] = draw(
            st.one_of(odd, st.dictionaries(st.sampled_from(["dtype", "shape"]), odd))
        )
    text = json.dumps(header, ensure_ascii=False).encode("utf8", "surrogatepass")
    data = struct.pack("<Q", len(text)) + text + body
    damage = draw(st.integers(0, 9))
    if damage == 0:
        data = data[: draw(st.integers(0, len(data)))]
    elif damage == 1:
        at = draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at + 1 :]
    return data


def survives(data: bytes, file: Path) -> bool:
    """Whether the file was read as an adapter; anything but that or a clear refusal raises."""
    file.write_bytes(data)
    told = ""
    try:
        adapter = formats.read(file)
    except VariegateError as error:
        adapter, told = None, str(error)
    assert adapter or any(part in told for part in (str(file), "header", "lora_adapter_metadata"))
    try:
        facts = formats.inspect(file)
    except VariegateError:
        facts = None
    if facts is None:
        assert adapter is None
        return False
    json.dumps(facts, allow_nan=False)
    assert (facts["problem"] is None) == (adapter is not None)
    return adapter is not None


@given(data=st.one_of(files(), st.binary(max_size=300)))
@settings(
    max_examples=2000,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_two_thousand_files_are_read_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    survives(data, tmp_path_factory.getbasetemp() / "fuzz.safetensors")


@pytest.mark.slow
@given(data=st.one_of(files(), files(), files(), st.binary(max_size=300)))
@settings(
    max_examples=100_000,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_a_hundred_thousand_files_are_read_or_refused(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    survives(data, tmp_path_factory.getbasetemp() / "fuzz.safetensors")
