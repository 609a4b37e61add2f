"""The tables of key names: how each convention spells a layer and its factors.

A layer is called `unet.<module path>`, `transformer.<module path>` or
`text_encoder.text_model.<module path>` (and `text_encoder_2...`) here, with the module paths of
diffusers and of transformers before it flattened CLIP's text model.
"""

from __future__ import annotations

import re

# Every word that a module path of the SD 1/2 UNet or CLIP's text model is made of: kohya joins
# them with "_", which only a list of the words can undo.
UNET_WORDS = (
    *("down_blocks", "up_blocks", "mid_block", "attentions", "resnets"),
    *("downsamplers", "upsamplers", "transformer_blocks", "attn1", "attn2"),
    *("to_q", "to_k", "to_v", "to_out", "ff", "net", "proj", "proj_in", "proj_out"),
    *("conv_in", "conv_out", "conv", "conv1", "conv2", "conv_shortcut"),
    *("time_emb_proj", "time_embedding", "linear_1", "linear_2"),
)
TEXT_WORDS = (
    *("text_model", "encoder", "layers", "self_attn", "mlp", "fc1", "fc2"),
    *("q_proj", "k_proj", "v_proj", "out_proj"),
)
KOHYA_UNET = "lora_unet_"
KOHYA_TEXT = ("lora_te_", "lora_te1_")

# Suffixes of the two factors of a plain LoRA, in every spelling that diffusers ever wrote.
DOWN_UP = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)

# What gives a family away that is not read yet, and what gives another kind of update away.
OTHER_FAMILIES = (
    ("lora_te2_", "Stable Diffusion XL"),
    ("lora_te3_", "Stable Diffusion 3"),
    ("lora_unet_joint_blocks", "Stable Diffusion 3"),
    ("lora_unet_double_blocks", "Flux"),
    ("lora_unet_single_blocks", "Flux"),
    ("lora_transformer_", "a transformer-based model such as Stable Diffusion 3"),
    ("transformer.single_transformer_blocks.", "Flux"),
    ("transformer.blocks.", "a transformer-based model of another family"),
    ("lora_unet_input_blocks", "Stable Diffusion XL, or a model of the original block names"),
    ("lora_unet_output_blocks", "Stable Diffusion XL, or a model of the original block names"),
)
OTHER_KINDS = (
    (re.compile(r"\bhada_t[12]\b"), "LoHa with a Tucker core"),
    (re.compile(r"\blokr_t2\b"), "LoKr with a Tucker core"),
    (re.compile(r"\boft_(blocks|diag)"), "OFT of LyCORIS, which turns outputs"),
    (re.compile(r"\blora_mid\b"), "LoCon with a Tucker core"),
    (re.compile(r"\blora_magnitude_vector\b"), "DoRA in the form of diffusers or PEFT"),
    (re.compile(r"\.diff(_b)?$"), "file of full weight differences"),
)


def _spelling(words: tuple[str, ...]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    word = "|".join([*sorted(words, key=len, reverse=True), r"\d+"])
    return re.compile(rf"(?:{word})(?:_(?:{word}))*"), re.compile(rf"(?:{word})(?=_|$)")


_UNET = _spelling(UNET_WORDS)
_TEXT = _spelling(TEXT_WORDS)


def kohya_name(layer: str) -> str:
    """`lora_unet_...` or `lora_te_text_model_...` for a layer.

    >>> kohya_name("text_encoder.text_model.encoder.layers.0.self_attn.q_proj")
    'lora_te_text_model_encoder_layers_0_self_attn_q_proj'
    """
    part, _, path = canonical(layer).partition(".")
    prefix = KOHYA_UNET if part == "unet" else KOHYA_TEXT[0]
    return prefix + path.replace(".", "_")


def layer_of_kohya(name: str) -> str | None:
    """The layer behind a kohya name, or None when it spells none.

    >>> layer_of_kohya("lora_unet_mid_block_attentions_0_proj_in")
    'unet.mid_block.attentions.0.proj_in'
    """
    if name.startswith(KOHYA_UNET):
        path = _dotted(name.removeprefix(KOHYA_UNET), _UNET)
        return path and f"unet.{path}"
    for prefix in KOHYA_TEXT:
        if name.startswith(prefix):
            path = _dotted(name.removeprefix(prefix), _TEXT)
            return path and canonical(f"text_encoder.{path}")
    return None


def _dotted(joined: str, spelling: tuple[re.Pattern[str], re.Pattern[str]]) -> str | None:
    whole, word = spelling
    if not whole.fullmatch(joined):
        return None
    path = ".".join(word.findall(joined))
    return path if path.replace(".", "_") == joined else None


def canonical(layer: str) -> str:
    """A layer's one name, wherever the text encoder's path came from."""
    part, _, path = layer.partition(".")
    if part in ("text_encoder", "text_encoder_2"):
        return f"{part}.text_model.{path.removeprefix('text_model.')}"
    return layer


def module_path(layer: str) -> str:
    """The layer's path in today's model classes: without its part and `text_model`."""
    return layer.partition(".")[2].removeprefix("text_model.")


def layer_of_diffusers(key: str, part: str = "") -> tuple[str, str] | None:
    """(layer, "down" or "up") behind a diffusers or PEFT key, or None when it is neither.

    >>> layer_of_diffusers("unet.mid_block.attentions.0.proj_in.lora_A.weight")
    ('unet.mid_block.attentions.0.proj_in', 'down')
    """
    for down, up in DOWN_UP:
        for suffix, factor in ((down, "down"), (up, "up")):
            if key.endswith(suffix):
                return layer_of_path(key.removesuffix(suffix), part), factor
    return None


def layer_of_path(path: str, part: str = "") -> str:
    """The layer behind a module path in any of diffusers' and PEFT's spellings.

    part: whose layer it is, where the path does not say; "" for the unet or the text_encoder.
    """
    path = path.removeprefix("base_model.model.").replace(".processor.", ".")
    is_text = "encoder.layers." in path
    # The oldest form stored attention processors: `to_out_lora` is the update of to_out.0.
    if old := re.search(r"\bto_(q|k|v|out)(?:_lora)?$", path):
        which = old.group(1)
        plain = {"out": "to_out.0"}.get(which, f"to_{which}")
        path = path[: old.start()] + (f"{which}_proj" if is_text else plain)
    if not path.startswith(("unet.", "text_encoder.", "text_encoder_2.", "transformer.")):
        path = f"{part or ('text_encoder' if is_text else 'unet')}.{path}"
    return canonical(path)
