"""The tables of key names: how each tool spells a layer and its factors.

A layer is called `unet.<module path>`, `transformer.<module path>` or
`text_encoder.text_model.<module path>` (and `text_encoder_2...`) here, with the module paths of
diffusers and of transformers before it flattened CLIP's text model; a bias that changes is
`<layer>.bias`. A key is a layer's name and a suffix; each is looked up by itself, so every tool's
suffixes are read after every tool's names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from variegate.formats.blocks import (
    LDM_HEADS,
    MMDIT,
    MMDIT_HEADS,
    Place,
    Rows,
    ldm_of,
    place_of_ldm,
    place_of_mmdit,
)

Source = Literal["kohya", "diffusers", "peft", "comfyui", "onetrainer", "lycoris"]

# Every word that a module path is made of, in diffusers' and in the original names: some tools
# join them with "_", which only a list of the words can undo. The longest that fits is meant.
WORDS = (
    # diffusers' UNet
    *("down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers"),
    *("upsamplers", "transformer_blocks", "attn1", "attn2", "to_q", "to_k", "to_v", "to_out"),
    *("ff", "net", "proj", "proj_in", "proj_out", "conv_in", "conv_out", "conv", "conv1", "conv2"),
    *("conv_shortcut", "time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2"),
    *("norm", "norm1", "norm2", "norm3", "conv_norm_out"),
    # the original UNet
    *("input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers"),
    *("skip_connection", "op", "time_embed", "label_emb", "out"),
    # diffusers' SD 3
    *("attn", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context", "linear"),
    *("norm1_context", "norm_q", "norm_k", "norm_added_q", "norm_added_k", "context_embedder"),
    *("pos_embed", "time_text_embed", "timestep_embedder", "text_embedder", "norm_out"),
    # the original SD 3
    *("joint_blocks", "context_block", "x_block", "qkv", "ln_q", "ln_k", "adaLN_modulation"),
    *("x_embedder", "t_embedder", "y_embedder", "final_layer"),
    # CLIP's text model
    *("text_model", "encoder", "layers", "self_attn", "mlp", "fc1", "fc2", "q_proj", "k_proj"),
    *("v_proj", "out_proj", "layer_norm1", "layer_norm2", "final_layer_norm", "text_projection"),
)

# What a name begins with -> the part it is of ("" where only the path tells), and whose it is.
JOINED: tuple[tuple[str, str, Source], ...] = (
    ("lora_unet_", "unet", "kohya"),
    ("lora_te1_", "text_encoder", "kohya"),
    ("lora_te2_", "text_encoder_2", "kohya"),
    ("lora_te_", "text_encoder", "kohya"),
    ("lora_transformer_", "transformer", "onetrainer"),
    ("lycoris_", "", "lycoris"),
)
DOTTED: tuple[tuple[str, str, Source], ...] = (
    ("diffusion_model.", "unet", "comfyui"),
    ("text_encoders.clip_l.transformer.", "text_encoder", "comfyui"),
    ("text_encoders.clip_h.transformer.", "text_encoder", "comfyui"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", "comfyui"),
    ("unet.base_model.model.", "unet", "peft"),
    ("base_model.model.", "", "peft"),
    ("unet.", "unet", "diffusers"),
    ("transformer.", "transformer", "diffusers"),
    ("text_encoder.", "text_encoder", "diffusers"),
    ("text_encoder_2.", "text_encoder_2", "diffusers"),
)
TRANSFORMER_HEADS = (
    *("transformer_blocks.", "pos_embed.", "context_embedder", "time_text_embed.", "norm_out."),
    "proj_out",
)
PROJECTION = "text_projection"
TEXT_HEADS = ("text_model.", "encoder.layers.", "final_layer_norm", PROJECTION)

# The suffix -> the factor's slot. `down`, `up`, `mid`, `alpha` and `magnitude` are of a LoRA and a
# DoRA; the other slots have LyCORIS's names, or ours where the field has none.
SUFFIXES = {
    **{"lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid"},
    **{"lora_A.weight": "down", "lora_B.weight": "up"},
    **{"lora_A.default.weight": "down", "lora_B.default.weight": "up"},
    **{"lora.down.weight": "down", "lora.up.weight": "up"},
    **{"lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up"},
    **{"alpha": "alpha", "network_alpha": "alpha"},
    **{"dora_scale": "magnitude", "lora_magnitude_vector": "magnitude_rows"},
    "lora_magnitude_vector.weight": "magnitude_rows",
    "lora_magnitude_vector.default.weight": "magnitude_rows",
    **{f"hada_{s}": f"hada_{s}" for s in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{s}": f"lokr_{s}" for s in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{"oft_blocks": "oft_blocks", "rescale": "rescale"},
    **{"diff": "diff", "w_norm": "diff", "diff_b": "bias", "b_norm": "bias"},
    "oft_input_blocks": "oft_input_blocks",
    **{f"boft_{s}": f"boft_{s}" for s in ("rotations", "scale")},
    **{f"sparse_{s}": f"sparse_{s}" for s in ("values", "indices", "shape")},
}
MAX_KEY = 500  # characters; the longest real one has about 130

# What gives away a family that is not read, and another kind of update.
OTHER_FAMILIES = (
    (("lora_te3_", "text_encoder_3.", "text_encoders.t5xxl."), "T5, Stable Diffusion 3's largest"),
    (("lora_unet_double_blocks", "lora_unet_single_blocks"), "Flux"),
    (("diffusion_model.double_blocks.", "transformer.single_", "lora_transformer_single_"), "Flux"),
    (("lora_prior_", "prior."), "Stable Cascade"),
    (
        ("transformer.blocks.", "diffusion_model.blocks.", "lora_unet_blocks_"),
        "another family of transformers",
    ),
    (
        ("diffusion_model.layers.", "lora_unet_layers_", "transformer.layers."),
        "another family of transformers",
    ),
)
OTHER_KINDS = (
    (re.compile(r"\.(a1|a2|b1|b2|bm)(\.weight)?$"), "GLoRA"),
    (re.compile(r"\.on_input$"), "(IA)^3"),
    (re.compile(r"\.oft_R\b"), "OFT in the form of PEFT or OneTrainer"),
    (re.compile(r"\bvera_lambda_|\blora_embedding_"), "adapter of PEFT that is no LoRA"),
    (re.compile(r"^bundle_emb\."), "LoRA with bundled embeddings"),
    (re.compile(r"\.set_weight$"), "file of whole weights"),
)

_WORD = re.compile(rf"(?:{'|'.join(sorted(WORDS, key=len, reverse=True))}|\d+)(?=_|$)")
# The oldest form stored attention processors: `to_out` is the update of to_out.0.
_OF_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_OF_UNET = {"to_out": "to_out.0"}


@dataclass(frozen=True)
class Spelled:
    """What a key says: the layers it is of (several where one matrix holds them all), which rows
    are whose, the factor's slot, and whose spelling it is."""

    layers: tuple[str, ...]
    slot: str
    rows: Rows
    source: Source


def spelled(key: str, part: str = "") -> Spelled | None:
    """What a key says, or None when it spells no layer's factor.

    part: whose layer it is, where the key does not say.

    >>> spelled("lora_unet_mid_block_attentions_0_proj_in.lora_down.weight").layers
    ('unet.mid_block.attentions.0.proj_in',)
    """
    if len(key) > MAX_KEY:
        return None
    name, slot = _parted(key)
    found = _named(name, part) if slot else None
    if found is None:
        return None
    place, source = found
    layers = place.paths
    if slot == "bias":
        layers, slot = tuple(f"{layer}.bias" for layer in layers), "diff"
    return Spelled(layers, slot, place.rows, source)


def _parted(key: str) -> tuple[str, str]:
    """(layer's name, slot), the slot "" where the key ends in no factor."""
    for end in ("_lora.down.weight", "_lora.up.weight"):
        if key.endswith(end):
            key = f"{key.removesuffix(end)}.{end[1:]}"
    parts = key.split(".")
    for n in (3, 2, 1):
        if len(parts) > n and (slot := SUFFIXES.get(".".join(parts[-n:]))):
            return ".".join(parts[:-n]), slot
    return key, ""


def _named(name: str, part: str) -> tuple[Place, Source] | None:
    for start, of, source in JOINED:
        if name.startswith(start):
            path = _dotted(name.removeprefix(start))
            place = path and _placed(path, of)
            return (place, source) if place else None
    for start, of, source in DOTTED:
        if name.startswith(start):
            place = _placed(_plain(name.removeprefix(start)), of or part)
            return (place, source) if place else None
    place = _placed(_plain(name), part)
    return (place, "diffusers") if place else None


def _dotted(joined: str) -> str | None:
    """Words joined with "_" as a module path, or None when they are no words."""
    words, at = [], 0
    while at < len(joined):
        word = _WORD.match(joined, at)
        if word is None:
            return None
        words.append(word.group())
        at = word.end() + 1
    return ".".join(words) or None


def _plain(path: str) -> str:
    """A dotted path without what the oldest forms of diffusers had in it."""
    path = path.replace(".processor.", ".")
    head, _, last = path.rpartition(".")
    old = _OF_TEXT if "encoder.layers." in path else _OF_UNET
    return f"{head}.{old[last]}" if last in old else path


def _placed(path: str, part: str) -> Place | None:
    """Where a path is: in full, in this house's names."""
    if not re.fullmatch(r"\w+(\.\w+)*", path):
        return None
    is_text = path.startswith(TEXT_HEADS)
    if path in MMDIT or path.startswith(MMDIT_HEADS):
        place = place_of_mmdit(path)
        part = "transformer" if part in ("", "unet") else part
    elif path.startswith(LDM_HEADS):
        place = place_of_ldm(path)
        part = part or "unet"
    else:
        place = Place((path,))
        if not part:
            is_transformers = path.startswith(TRANSFORMER_HEADS)
            part = "text_encoder" if is_text else "transformer" if is_transformers else "unet"
    if place is None or is_text != part.startswith("text_encoder"):
        return None  # no such layer, or not in that network
    return Place(tuple(canonical(f"{part}.{p}") for p in place.paths), place.rows)


def canonical(layer: str) -> str:
    """A layer's one name, wherever the text encoder's path came from; its projection stands
    beside `text_model`."""
    part, _, path = layer.partition(".")
    if part not in ("text_encoder", "text_encoder_2"):
        return layer
    path = path.removeprefix("text_model.")
    return f"{part}.{path}" if path.startswith(PROJECTION) else f"{part}.text_model.{path}"


def module_path(layer: str) -> str:
    """The layer's path in today's model classes: without its part and `text_model`."""
    return layer.partition(".")[2].removeprefix("text_model.")


def kohya_name(layer: str, family: str = "sd1") -> str | None:
    """Kohya's name of a layer: SD 1 and 2 by diffusers' blocks and `lora_te`, XL by the original
    ones and `lora_te1`, `lora_te2`; None for what kohya's trainers have no name for.

    >>> kohya_name("text_encoder.text_model.encoder.layers.0.self_attn.q_proj")
    'lora_te_text_model_encoder_layers_0_self_attn_q_proj'
    >>> kohya_name("unet.down_blocks.1.attentions.0.proj_in", "sdxl")
    'lora_unet_input_blocks_4_1_proj_in'
    """
    part, _, path = canonical(layer).partition(".")
    two = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    starts = {"unet": "lora_unet_", **(two if family == "sdxl" else {"text_encoder": "lora_te_"})}
    if part not in starts:
        return None
    named = ldm_of(path) if family == "sdxl" and part == "unet" else path
    return named and starts[part] + named.replace(".", "_")
