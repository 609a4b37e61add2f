"""The block names of the original code, beside those of diffusers: two tables, read both ways.

`ldm` is the UNet of Stable Diffusion 1, 2 and XL as CompVis and Stability wrote it, two ResNet
blocks to a level (`input_blocks.4.1`); `mmdit` is Stable Diffusion 3's transformer. Facts from
kohya's `library/sdxl_model_util.py`, ComfyUI's `comfy/utils.py` (`unet_to_diffusers`,
`mmdit_to_diffusers`) and diffusers' `loaders/single_file_utils.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LEVELS = 4  # of the UNet; XL has three of them
RESNETS = 2  # to a level going down; one more going up

Rows = Literal["whole", "thirds", "swapped", "swapped if last"]


@dataclass(frozen=True)
class Place:
    """Where the layer behind a foreign path is: diffusers' paths, and which rows are whose.

    thirds: queries, keys and values in one matrix. swapped: shift before scale, which diffusers
    has the other way round; of a modulation of the words that holds for the last block only, which
    has two chunks and not six.
    """

    paths: tuple[str, ...]
    rows: Rows = "whole"


IN_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def _levels() -> dict[str, str]:
    table = {
        "input_blocks.0.0": "conv_in",
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "label_emb.0.0": "add_embedding.linear_1",
        "label_emb.0.2": "add_embedding.linear_2",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    each = RESNETS + 1
    for b in range(LEVELS):
        for i in range(RESNETS):
            table[f"input_blocks.{each * b + i + 1}.0"] = f"down_blocks.{b}.resnets.{i}"
            table[f"input_blocks.{each * b + i + 1}.1"] = f"down_blocks.{b}.attentions.{i}"
        table[f"input_blocks.{each * (b + 1)}.0.op"] = f"down_blocks.{b}.downsamplers.0.conv"
        for i in range(each):
            table[f"output_blocks.{each * b + i}.0"] = f"up_blocks.{b}.resnets.{i}"
            table[f"output_blocks.{each * b + i}.1"] = f"up_blocks.{b}.attentions.{i}"
        # It comes after the attention, or in its place where a level has none, as in SD 1 and 2.
        # The later entry is the one that is written: XL's.
        for after in (1, 2):
            table[f"output_blocks.{each * b + RESNETS}.{after}.conv"] = (
                f"up_blocks.{b}.upsamplers.0.conv"
            )
    return table


LDM = _levels()
LDM_OF = {diffusers: ldm for ldm, diffusers in LDM.items()}
LDM_HEADS = tuple({f"{path.partition('.')[0]}." for path in LDM})
OUT_OF_RESNET = {diffusers: ldm for ldm, diffusers in IN_RESNET.items()}

MMDIT_BLOCK = {
    "x_block.attn.qkv": Place(("attn.to_q", "attn.to_k", "attn.to_v"), "thirds"),
    "x_block.attn.proj": Place(("attn.to_out.0",)),
    "x_block.attn.ln_q": Place(("attn.norm_q",)),
    "x_block.attn.ln_k": Place(("attn.norm_k",)),
    "x_block.attn2.qkv": Place(("attn2.to_q", "attn2.to_k", "attn2.to_v"), "thirds"),
    "x_block.attn2.proj": Place(("attn2.to_out.0",)),
    "x_block.attn2.ln_q": Place(("attn2.norm_q",)),
    "x_block.attn2.ln_k": Place(("attn2.norm_k",)),
    "x_block.mlp.fc1": Place(("ff.net.0.proj",)),
    "x_block.mlp.fc2": Place(("ff.net.2",)),
    "x_block.adaLN_modulation.1": Place(("norm1.linear",)),
    "context_block.attn.qkv": Place(
        ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "thirds"
    ),
    "context_block.attn.proj": Place(("attn.to_add_out",)),
    "context_block.attn.ln_q": Place(("attn.norm_added_q",)),
    "context_block.attn.ln_k": Place(("attn.norm_added_k",)),
    "context_block.mlp.fc1": Place(("ff_context.net.0.proj",)),
    "context_block.mlp.fc2": Place(("ff_context.net.2",)),
    "context_block.adaLN_modulation.1": Place(("norm1_context.linear",), "swapped if last"),
}
MMDIT = {
    "x_embedder.proj": Place(("pos_embed.proj",)),
    "t_embedder.mlp.0": Place(("time_text_embed.timestep_embedder.linear_1",)),
    "t_embedder.mlp.2": Place(("time_text_embed.timestep_embedder.linear_2",)),
    "y_embedder.mlp.0": Place(("time_text_embed.text_embedder.linear_1",)),
    "y_embedder.mlp.2": Place(("time_text_embed.text_embedder.linear_2",)),
    "context_embedder": Place(("context_embedder",)),
    "final_layer.linear": Place(("proj_out",)),
    "final_layer.adaLN_modulation.1": Place(("norm_out.linear",), "swapped"),
}
MMDIT_HEADS = ("joint_blocks.", "x_embedder.", "t_embedder.", "y_embedder.", "final_layer.")


def place_of_ldm(path: str) -> Place | None:
    """Where a layer of the original UNet is, or None when it has no such layer.

    >>> place_of_ldm("output_blocks.4.1.transformer_blocks.0.attn2.to_k").paths
    ('up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k',)
    """
    found = _renamed(path, LDM)
    if found is None:
        return None
    head, rest = found
    if ".resnets." in head:
        if rest not in IN_RESNET:
            return None
        rest = IN_RESNET[rest]
    return Place((f"{head}.{rest}" if rest else head,))


def ldm_of(path: str) -> str | None:
    """The original name of a layer of diffusers' UNet, or None when the original has none.

    >>> ldm_of("up_blocks.0.upsamplers.0.conv")
    'output_blocks.2.2.conv'
    """
    found = _renamed(path, LDM_OF)
    if found is None:
        return None
    head, rest = found
    if ".resnets." in path:
        if rest not in OUT_OF_RESNET:
            return None
        rest = OUT_OF_RESNET[rest]
    return f"{head}.{rest}" if rest else head


def place_of_mmdit(path: str) -> Place | None:
    """Where a layer of the original SD 3 transformer is, or None when it has no such layer."""
    if not path.startswith("joint_blocks."):
        return MMDIT.get(path)
    _, number, rest = path.split(".", 2) if path.count(".") > 1 else ("", "", "")
    place = MMDIT_BLOCK.get(rest)
    if place is None or not number.isdecimal():
        return None
    return Place(tuple(f"transformer_blocks.{number}.{p}" for p in place.paths), place.rows)


def _renamed(path: str, table: dict[str, str]) -> tuple[str, str] | None:
    """The longest head of a path that the table knows, renamed, and what follows it."""
    parts = path.split(".")
    for n in range(min(5, len(parts)), 0, -1):
        if head := table.get(".".join(parts[:n])):
            return head, ".".join(parts[n:])
    return None
