"""How a plan's layers begin: their sizes, and first weights that change nothing yet.

Whatever is random is drawn on the CPU at the layer's own address, whatever PEFT drew before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from variegate import seeds
from variegate.adapter.tuners import Spec, parameters
from variegate.errors import AdapterError
from variegate.recipe import (
    AdapterPlan,
    BoftPlan,
    LokrPlan,
    LoraPlan,
    OftPlan,
    RankedPlan,
    SparsePlan,
)


def specs_of(plan: AdapterPlan, modules: Mapping[str, nn.Module]) -> dict[str, Spec]:
    """What each layer of a plan is made with.

    Raises: AdapterError when a layer is too small for the plan, or a pattern names none.
    """
    if isinstance(plan, RankedPlan):
        _check_patterns(plan, modules)
    specs, faults = {}, []
    for name, module in modules.items():
        try:
            specs[name] = _spec(plan, name, module)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise AdapterError(
            f"adapter.kind {plan.kind} does not fit {len(faults)} of {len(modules)} layers, first "
            f"{faults[0]}"
        )
    return specs


def _spec(plan: AdapterPlan, name: str, module: Any) -> Spec:
    """Raises: ValueError with what does not fit."""
    out, inputs = module.weight.shape[0], module.weight[0].numel()
    if isinstance(plan, RankedPlan):
        rank, alpha = _rank(plan, name, module)
        if isinstance(plan, LokrPlan):
            return Spec(plan.kind, rank, alpha, small=plan.factor, both=plan.decompose_both)
        return Spec(plan.kind, rank, alpha)
    if isinstance(plan, OftPlan):
        return Spec(plan.kind, block=_block(plan.block_size, inputs, step=1, depth=1))
    if isinstance(plan, BoftPlan):
        block = _block(plan.block_size, inputs, step=2, depth=plan.factors)
        return Spec(plan.kind, block=block, depth=plan.factors)
    if isinstance(plan, SparsePlan):
        if plan.rank * (out + inputs) > out * inputs:
            most = out * inputs // (out + inputs)
            raise ValueError(f"it has {out} x {inputs} weights; adapter.rank is at most {most}")
        return Spec(plan.kind, plan.rank)
    if plan.rank > min(out, inputs):
        raise ValueError(f"it is {out} x {inputs}; adapter.rank is at most {min(out, inputs)}")
    return Spec(plan.kind, plan.rank, float(plan.rank))


def _rank(plan: RankedPlan, name: str, module: nn.Module) -> tuple[int, float]:
    """(rank, alpha) of a layer, such that alpha / rank is its scale."""
    rank = plan.rank
    if isinstance(module, nn.Conv2d) and plan.convolution_rank is not None:
        rank = plan.convolution_rank
    if name.startswith(("text_encoder.", "text_encoder_2.")) and plan.text_encoder_rank is not None:
        rank = plan.text_encoder_rank
    for pattern, wanted in (plan.ranks or {}).items():
        rank = wanted if _names(pattern, name) else rank
    own = [alpha for pattern, alpha in (plan.alphas or {}).items() if _names(pattern, name)]
    if isinstance(plan, LoraPlan) and plan.scale == "rslora":
        return rank, (own[-1] if own else plan.alpha) * math.sqrt(rank)
    return rank, own[-1] if own else plan.alpha * rank / plan.rank


def _names(pattern: str, layer: str) -> bool:
    """Whether a layer's name has these parts, whole and in a row."""
    return f".{pattern}." in f".{layer}."


def _check_patterns(plan: RankedPlan, modules: Mapping[str, nn.Module]) -> None:
    for key in ("ranks", "alphas"):
        for pattern in getattr(plan, key) or {}:
            if not any(_names(pattern, name) for name in modules):
                raise AdapterError(
                    f"adapter.{key}: {pattern!r} names none of the {len(modules)} layers that "
                    f"learn; expected whole parts of a name such as {next(iter(modules))!r}"
                )


def _block(wanted: int, inputs: int, *, step: int, depth: int) -> int:
    """The largest block up to `wanted` that divides the inputs as `depth` butterflies need.

    Raises: ValueError when there is none.
    """
    for block in range(min(wanted, inputs) // step * step, 1, -step):
        if inputs % (block * 2 ** (depth - 1)) == 0:
            return block
    raise ValueError(f"its {inputs} inputs do not fall into blocks; fewer factors, or other layers")


def first_factors(plan: AdapterPlan, layer: Any, seed: int, name: str) -> dict[str, Tensor]:
    """A layer's random first factors: uniform in +-1 / sqrt(numbers in a row) where PEFT draws,
    zero or as PEFT has them elsewhere."""
    held = parameters(layer)
    if "down" in held:
        down = held["down"]
        generator = seeds.at(seed, "adapter", name)
        if isinstance(plan, LoraPlan) and plan.init == "orthogonal":
            drawn = _orthogonal(down.shape[0], down[0].numel(), generator).view_as(down)
        else:
            bound = 1 / math.sqrt(down[0].numel())
            drawn = (2 * torch.rand(down.shape, generator=generator) - 1) * bound
        return {"down": drawn, "up": torch.zeros(held["up"].shape)}
    if plan.kind not in ("loha", "lokr"):
        return {}
    return {
        factor: (2 * torch.rand(p.shape, generator=seeds.at(seed, "adapter", name, factor)) - 1)
        / math.sqrt(p[0].numel())
        for factor, p in held.items()
        if bool(p.any())
    }


def _orthogonal(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Rows at right angles (columns, where there are fewer), as long as default rows are on
    average: sqrt(1 / 3)."""
    drawn = torch.randn(max(rows, columns), min(rows, columns), generator=generator)
    turn, upper = torch.linalg.qr(drawn)
    turn = turn * upper.diagonal().sign()  # else the signs are the library's choice
    matrix = turn if rows >= columns else turn.T
    scale = math.sqrt(max(1.0, rows / columns) / 3)
    return matrix.contiguous() * scale


def first_places(layer: Any, seed: int, name: str) -> Int[Tensor, "2 n"]:
    """Which single entries of a layer's weight learn, drawn without replacement, in order."""
    weight = layer.get_base_layer().weight
    count = parameters(layer)["values"].numel()
    drawn = torch.randperm(weight.numel(), generator=seeds.at(seed, "adapter", name))
    flat = drawn[:count].sort().values
    places = torch.stack([flat // weight.shape[1], flat % weight.shape[1]])
    return places.to(torch.int)
