"""Which layers of a model learn, and where a named layer is.

Names are `unet.<path>` or `transformer.<path>`, and `text_encoder.<path>`, with the paths of
diffusers and of transformers before its version 5 (`text_encoder.text_model.encoder...`); both
spellings of the text encoder's path are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from variegate.adapter.noun import Adapter
from variegate.adapter.timed import TimedLora
from variegate.errors import AdapterError
from variegate.recipe import AdapterPlan

PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")
TEXT_PARTS = ("text_encoder", "text_encoder_2")  # T5 is not learnt
# A UNet's names, then those that SD 3's transformer has beside them for the words.
ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
FEEDFORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
# What LoCon (kohya's conv_dim, LyCORIS) learns beside: ResNet blocks, resampling, 1x1 projections.
CONVOLUTION = (
    *("conv1", "conv2", "conv_shortcut", "time_emb_proj", "proj_in", "proj_out"),
    *("downsamplers.0.conv", "upsamplers.0.conv"),
)
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
FAMILIES = {
    "sd1": "Stable Diffusion 1",
    "sd2": "Stable Diffusion 2",
    "sdxl": "Stable Diffusion XL",
    "sd3": "Stable Diffusion 3",
}
# Kinds that turn or mask a matrix; see recipe.MatrixLayers.
MATRIX_KINDS = ("oft", "boft", "sparse")
# Kinds that no layer of PEFT can hold: their delta is laid on the weight itself.
LAID_KINDS = ("full", "decomposed", "turned")


def targets(model: Any, plan: AdapterPlan) -> Iterator[tuple[str, nn.Module]]:
    """The layers that a plan lets learn, by name."""
    inner = ATTENTION + (FEEDFORWARD if "feedforward" in plan.layers else ())
    outer = CONVOLUTION if "convolution" in plan.layers else ()
    part = "unet" if hasattr(model, "unet") else "transformer"
    for path, module in getattr(model, part).named_modules():
        ends = inner if ".transformer_blocks." in f".{path}" else outer
        if path.endswith(tuple(f".{end}" for end in ends)):
            yield f"{part}.{path}", module
    for part in TEXT_PARTS if plan.text_encoder else ():
        encoder = getattr(model, part, None)
        for path, module in encoder.named_modules() if encoder is not None else ():
            if path.endswith(tuple(f".self_attn.{end}" for end in TEXT_ATTENTION)):
                yield f"{part}.text_model.{path.removeprefix('text_model.')}", module


def find(model: Any, adapter: Adapter) -> dict[str, nn.Module]:
    """The module of every layer of an adapter; all faults are told at once.

    Raises: AdapterError when a layer is missing, of another shape, or taken.
    """
    missing, misfits, found = [], [], {}
    for name, update in adapter.layers.items():
        module = _module(model, name)
        own = getattr(module, entry_of(name), None)
        if module is not None and update.kind in LAID_KINDS:
            own = module._parameters.get(entry_of(name))  # what few bits hold takes no laying on
        known = update.kind == "full" or isinstance(module, nn.Linear | nn.Conv2d)
        if module is None or own is None or not known:
            missing.append(name)
            continue
        found[name] = module
        shape = tuple(own.shape)
        matrix = isinstance(module, nn.Linear) or update.kind not in MATRIX_KINDS
        if not (matrix and update.fits(shape)):
            misfits.append(f"{name}: layer {shape}, update {update.size}")
    if missing or misfits:
        facts = []
        if missing:
            facts.append(f"{len(missing)} of {len(adapter.layers)} layers are not in it")
            facts.append(f"first: {missing[0]}")
        if misfits:
            facts.append(f"{len(misfits)} have another shape, first {misfits[0]}")
        raise AdapterError(
            f"the adapter, of {FAMILIES.get(adapter.family, adapter.family)}, does not fit "
            f"{label(model)}: "
            f"{'; '.join(facts)}; use the base model that it was trained on"
        )
    return found


def entry_of(name: str) -> str:
    """Which of its module's tensors a layer changes."""
    return "bias" if name.endswith(".bias") else "weight"


def _module(model: Any, name: str) -> Any:
    part, _, path = name.removesuffix(".bias").partition(".")
    root = getattr(model, part, None) if part in PARTS else None
    if root is None:
        return None
    short = path.removeprefix("text_model.")
    for spelling in dict.fromkeys((path, short, f"text_model.{short}")):
        try:
            module = root.get_submodule(spelling)
        except AttributeError:
            continue
        if carries(module):
            raise AdapterError(f"{label(model)} already carries an adapter; let that go first")
        return module
    return None


def carries(module: nn.Module) -> bool:
    """Whether a module is a layer of an adapter."""
    return isinstance(module, BaseTunerLayer | TimedLora)


def refuse_second(model: Any) -> None:
    """Raises: AdapterError when any part of a model carries an adapter."""
    roots = [root for part in PARTS if (root := getattr(model, part, None)) is not None]
    if any(carries(module) for root in roots for module in root.modules()):
        raise AdapterError(f"{label(model)} already carries an adapter; let that go first")


def label(model: Any) -> str:
    return f"base {getattr(model, 'name', 'model')!r}"
