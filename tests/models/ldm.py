"""Diffusers folders written as single-file checkpoints, under the original models' key names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from variegate.models.blueprints import BLUEPRINTS, Blueprint

Weights = dict[str, torch.Tensor]
UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def tiny_blueprint(family: str, folder: Path) -> Blueprint:
    """A family's blueprint at the sizes of a tiny model in a folder."""
    real = BLUEPRINTS[family]
    network = config(folder / ("transformer" if family == "sd3" else "unet"))
    if family == "sd3":
        network = {"sample_size": 8, "attention_head_dim": 8}
    encoders = {part: config(folder / part) for part in real.encoders}
    return Blueprint(real.layout, network, config(folder / "vae"), encoders, real.scheduler)


def write_single_file(folder: Path, file: Path, family: str, **more: Any) -> Path:
    """A folder's weights in one file. more: `extra` tensors, `metadata`, and `leave` key starts."""
    tensors: Weights = {}
    if family == "sd3":
        transformer = sd3_transformer(weights(folder / "transformer"))
        tensors |= {f"model.diffusion_model.{k}": v for k, v in transformer.items()}
        for part, name in (("", "clip_l"), ("_2", "clip_g"), ("_3", "t5xxl")):
            if (home := folder / f"text_encoder{part}").is_dir():
                prefix = f"text_encoders.{name}.transformer."
                tensors |= {prefix + k: v for k, v in nested(weights(home)).items()}
    else:
        unet = original_unet(weights(folder / "unet"), config(folder / "unet"))
        tensors |= {f"model.diffusion_model.{k}": v for k, v in unet.items()}
        encoder = weights(folder / "text_encoder")
        if family == "sd2":
            tensors |= {f"cond_stage_model.model.{k}": v for k, v in open_clip(encoder).items()}
        else:
            home = "cond_stage_model" if family == "sd1" else "conditioner.embedders.0"
            tensors |= {f"{home}.transformer.{k}": v for k, v in nested(encoder).items()}
            position = f"{home}.transformer.text_model.embeddings.position_ids"
            tensors[position] = torch.arange(16)[None]
        if family == "sdxl":
            second = open_clip(weights(folder / "text_encoder_2"))
            tensors |= {f"conditioner.embedders.1.model.{k}": v for k, v in second.items()}
    vae = original_vae(weights(folder / "vae"))
    tensors |= {f"first_stage_model.{k}": v for k, v in vae.items()}
    tensors |= more.get("extra", {})
    leave = more.get("leave", "-")
    tensors = {k: v.contiguous().clone() for k, v in tensors.items() if not k.startswith(leave)}
    save_file(tensors, file, metadata=more.get("metadata"))
    return file


def config(home: Path) -> dict[str, Any]:
    settings = json.loads((home / "config.json").read_text())
    return {k: v for k, v in settings.items() if not k.startswith("_")}


def weights(home: Path) -> Weights:
    return load_file(next(home.glob("*.safetensors")))


def nested(found: Weights) -> Weights:
    """CLIP's text model as older files have it, in an inner `text_model`; T5 as it is."""
    if not any("final_layer_norm" in k and "encoder.block" not in k for k in found):
        return found
    if any(k.startswith(("shared", "encoder.block")) for k in found):
        return found
    return {
        k if k.startswith(("text_model.", "text_projection")) else f"text_model.{k}": v
        for k, v in found.items()
    }


def original_unet(found: Weights, settings: dict[str, Any]) -> Weights:
    per_block = settings["layers_per_block"] + 1
    crossing = ["Cross" in kind for kind in settings["up_block_types"]]

    def renamed(key: str) -> str:
        top, dot, kind = key.rpartition(".")
        if top in UNET_TOP:
            return f"{UNET_TOP[top]}{dot}{kind}"
        if m := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
            block, what, layer, rest = int(m[1]), m[2], int(m[3]), m[4]
            return f"input_blocks.{1 + block * per_block + layer}.{inner(what, rest)}"
        if m := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", key):
            return f"input_blocks.{(int(m[1]) + 1) * per_block}.0.op.{m[2]}"
        if m := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
            place = 1 if m[1] == "attentions" else 2 * int(m[2])
            return f"middle_block.{place}.{inner(m[1], m[3])[2:]}"
        if m := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", key):
            block, what, layer, rest = int(m[1]), m[2], int(m[3]), m[4]
            return f"output_blocks.{block * per_block + layer}.{inner(what, rest)}"
        m = re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.(.*)", key)
        assert m is not None, key
        at = int(m[1]) * per_block + per_block - 1
        return f"output_blocks.{at}.{2 if crossing[int(m[1])] else 1}.conv.{m[2]}"

    def inner(what: str, rest: str) -> str:
        if what == "attentions":
            return f"1.{rest}"
        name, _, kind = rest.rpartition(".")
        return f"0.{RESNET[name]}.{kind}"

    return {renamed(key): tensor for key, tensor in found.items()}


def original_vae(found: Weights) -> Weights:
    blocks = 1 + max(int(m[1]) for k in found if (m := re.search(r"up_blocks\.(\d+)", k)))
    renamed: Weights = {}
    for key, tensor in found.items():
        if m := re.match(r"(\w+)\.mid_block\.attentions\.0\.(.*)\.(weight|bias)", key):
            new = f"{m[1]}.mid.attn_1.{VAE_ATTENTION[m[2]]}.{m[3]}"
            is_matrix = m[3] == "weight" and tensor.ndim == 2
            renamed[new] = tensor[:, :, None, None] if is_matrix else tensor
            continue
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(
            r"up_blocks\.(\d)\.(resnets|upsamplers\.0)",
            lambda m: f"up.{blocks - 1 - int(m[1])}.{'block' if m[2] == 'resnets' else 'upsample'}",
            new,
        )
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        renamed[new] = tensor
    return renamed


def open_clip(found: Weights) -> Weights:
    bare = {k.removeprefix("text_model."): v for k, v in found.items()}
    renamed = {
        "token_embedding.weight": bare["embeddings.token_embedding.weight"],
        "positional_embedding": bare["embeddings.position_embedding.weight"],
        "ln_final.weight": bare["final_layer_norm.weight"],
        "ln_final.bias": bare["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6),
    }
    if "text_projection.weight" in bare:
        renamed["text_projection"] = bare["text_projection.weight"].T
    layers = 1 + max(int(m[1]) for k in bare if (m := re.search(r"layers\.(\d+)", k)))
    for i in range(layers):
        old, new = f"encoder.layers.{i}", f"transformer.resblocks.{i}"
        for kind in ("weight", "bias"):
            qkv = [bare[f"{old}.self_attn.{which}_proj.{kind}"] for which in "qkv"]
            renamed[f"{new}.attn.in_proj_{kind}"] = torch.cat(qkv)
            for theirs, original in OPEN_CLIP.items():
                renamed[f"{new}.{original}.{kind}"] = bare[f"{old}.{theirs}.{kind}"]
    return renamed


def sd3_transformer(found: Weights) -> Weights:
    renamed: Weights = {"pos_embed": found["pos_embed.pos_embed"]}
    last = max(int(m[1]) for k in found if (m := re.match(r"transformer_blocks\.(\d+)", k)))

    def copy(new: str, old: str, *, swap: bool = False) -> None:
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in found:
                tensor = found[f"{old}.{kind}"]
                halves = tensor.chunk(2)
                renamed[f"{new}.{kind}"] = torch.cat([halves[1], halves[0]]) if swap else tensor

    def stack(new: str, olds: list[str]) -> None:
        for kind in ("weight", "bias"):
            if f"{olds[0]}.{kind}" in found:
                renamed[f"{new}.{kind}"] = torch.cat([found[f"{old}.{kind}"] for old in olds])

    copy("x_embedder.proj", "pos_embed.proj")
    copy("context_embedder", "context_embedder")
    for ours, theirs in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        copy(f"{ours}.mlp.0", f"time_text_embed.{theirs}.linear_1")
        copy(f"{ours}.mlp.2", f"time_text_embed.{theirs}.linear_2")
    copy("final_layer.linear", "proj_out")
    copy("final_layer.adaLN_modulation.1", "norm_out.linear", swap=True)
    for i in range(last + 1):
        old, x, c = (
            f"transformer_blocks.{i}",
            f"joint_blocks.{i}.x_block",
            f"joint_blocks.{i}.context_block",
        )
        for n in ("", "2"):
            stack(f"{x}.attn{n}.qkv", [f"{old}.attn{n}.to_{which}" for which in "qkv"])
            copy(f"{x}.attn{n}.proj", f"{old}.attn{n}.to_out.0")
            copy(f"{x}.attn{n}.ln_q", f"{old}.attn{n}.norm_q")
            copy(f"{x}.attn{n}.ln_k", f"{old}.attn{n}.norm_k")
        stack(f"{c}.attn.qkv", [f"{old}.attn.add_{which}_proj" for which in "qkv"])
        copy(f"{c}.attn.ln_q", f"{old}.attn.norm_added_q")
        copy(f"{c}.attn.ln_k", f"{old}.attn.norm_added_k")
        copy(f"{c}.attn.proj", f"{old}.attn.to_add_out")
        copy(f"{x}.adaLN_modulation.1", f"{old}.norm1.linear")
        copy(f"{c}.adaLN_modulation.1", f"{old}.norm1_context.linear", swap=i == last)
        for side, own in ((x, "ff"), (c, "ff_context")):
            copy(f"{side}.mlp.fc1", f"{old}.{own}.net.0.proj")
            copy(f"{side}.mlp.fc2", f"{old}.{own}.net.2")
    return renamed


def shrink_blueprints(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have single files read with the settings of tiny folders, by family."""
    for family, folder in folders.items():
        monkeypatch.setitem(BLUEPRINTS, family, tiny_blueprint(family, folder))
