"""Each kind's layers are PEFT's own: what PEFT is told of a layer, and where its factors are.

The one exception is T-LoRA, which PEFT has not; see `timed`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from peft import (
    BOFTConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    ShiraConfig,
    inject_adapter_in_model,
)
from peft.tuners.boft import layer as boft
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from variegate.adapter.places import PARTS, carries, refuse_second
from variegate.adapter.timed import TimedLora
from variegate.adapter.updates import UPDATES, LokrUpdate, OftUpdate, Update
from variegate.errors import AdapterError

SLOT = "default"  # PEFT's name for the one adapter a model carries
FLAT = {
    "loha": ("hada", ("w1_a", "w1_b", "w2_a", "w2_b")),
    "lokr": ("lokr", ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")),
}


@dataclass(frozen=True)
class Spec:
    """What PEFT is told of one layer; each kind reads its own.

    block: how many inputs are turned together. depth: butterfly factors. small: rows of the small
    matrix of a Kronecker product. both: whether that is of low rank too.
    """

    kind: str
    rank: int = 1
    alpha: float = 1.0
    block: int = 0
    depth: int = 1
    small: int = -1
    both: bool = False

    @staticmethod
    def of(update: Update) -> Spec:
        """What makes a layer that can hold an update."""
        spec = Spec(update.kind, max(1, update.rank), float(getattr(update, "alpha", 1.0)))
        if isinstance(update, OftUpdate):
            return replace(spec, block=update.block_size)
        if update.kind == "boft":
            rotations = update.factors()["rotations"]
            return replace(spec, block=rotations.shape[2], depth=len(rotations))
        return spec


def inject(
    model: Any,
    modules: Mapping[str, nn.Module],
    specs: Mapping[str, Spec],
    *,
    dropout: float = 0.0,
) -> dict[str, Any]:
    """PEFT layers in the places of `modules`, by the same names, in the same order."""
    refuse_second(model)
    layers: dict[str, Any] = {}
    for part in PARTS:
        names = {
            id(module): name for name, module in modules.items() if name.startswith(f"{part}.")
        }
        if not names:
            continue
        root = getattr(model, part)
        paths = {p: names[id(m)] for p, m in root.named_modules() if id(m) in names}
        gradients = [(p, p.requires_grad) for p in root.parameters()]
        groups: dict[Spec, dict[str, Spec]] = defaultdict(dict)
        for path, name in paths.items():
            groups[_group(specs[name])][path] = specs[name]
        # PEFT draws its own first weights from the global generator; ours replace them.
        with torch.random.fork_rng(devices=[]):
            for group, members in groups.items():
                if group.kind == "boft":
                    _make_boft_whole()
                inject_adapter_in_model(_config(group, members, dropout), root, SLOT)
                del root.peft_config
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)
        layers |= {name: root.get_submodule(path) for path, name in paths.items()}
    for layer in layers.values():
        if isinstance(layer, boft.BOFTLayer) or hasattr(layer, "oft_R"):
            # Rotations are solved for, which halves cannot be.
            for parameter in parameters(layer).values():
                parameter.data = parameter.data.float()
    return {name: layers[name] for name in modules}


def _group(spec: Spec) -> Spec:
    """Layers that one of PEFT's settings can serve: ranks and alphas may differ where PEFT takes
    patterns of them."""
    return spec if spec.kind == "sparse" else replace(spec, rank=1, alpha=1.0)


def _config(group: Spec, members: Mapping[str, Spec], dropout: float) -> Any:
    paths = list(members)
    patterns = {
        "rank_pattern": {_anchored(path): spec.rank for path, spec in members.items()},
        "alpha_pattern": {_anchored(path): spec.alpha for path, spec in members.items()},
    }
    match group.kind:
        case "lora" | "dora":
            return LoraConfig(
                target_modules=paths,
                lora_dropout=dropout,
                use_dora=group.kind == "dora",
                **patterns,
            )
        case "loha":
            return LoHaConfig(target_modules=paths, rank_dropout=dropout, **patterns)
        case "lokr":
            return LoKrConfig(
                target_modules=paths,
                rank_dropout=dropout,
                rank_dropout_scale=True,
                decompose_factor=group.small,
                decompose_both=group.both,
                **patterns,
            )
        case "oft":
            # Neumann's series is not quite a rotation; solving is.
            return OFTConfig(
                target_modules=paths, r=0, oft_block_size=group.block, use_cayley_neumann=False
            )
        case "boft":
            return BOFTConfig(
                target_modules=paths,
                boft_block_size=group.block,
                boft_n_butterfly_factor=group.depth,
                boft_dropout=dropout,
            )
        case "sparse":
            config = ShiraConfig(target_modules=paths, r=group.rank)
            config.mask_fn = None  # the places are filled in from our own address
            if not torch.sparse.check_sparse_tensor_invariants.is_enabled():
                # As it is by default; said aloud, or PyTorch warns at the first step.
                torch.sparse.check_sparse_tensor_invariants.disable()
            return config
    raise AssertionError(group.kind)


def _anchored(path: str) -> str:
    return "^" + path.replace(".", r"\.")


class _BlockDiagonal:
    """What PEFT's CUDA extension for BOFT does, in PyTorch, forward and backward."""

    @staticmethod
    def forward(blocks: Tensor) -> tuple[Tensor]:
        return (torch.stack([torch.block_diag(*factor) for factor in blocks]),)

    @staticmethod
    def backward(gradient: Tensor, blocks: Tensor) -> tuple[Tensor]:
        m, k, b, _ = blocks.shape
        tiles = gradient.reshape(m, k, b, k, b)
        return (tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous(),)


def _make_boft_whole() -> None:
    """Without its CUDA extension, which it tries to compile, PEFT takes BOFT for OFT: it sets the
    number of butterfly factors to one. The extension only lays out blocks; so can PyTorch."""
    if boft._FBD_CUDA is None:
        boft._FBD_CUDA = _BlockDiagonal


def parameters(layer: Any) -> dict[str, nn.Parameter]:
    """The trainable factors of one layer, by name."""
    if isinstance(layer, TimedLora):
        return {name: getattr(layer, name) for name in ("down", "scale", "up")}
    if isinstance(layer, LoraLayer):
        found = {"down": layer.lora_A[SLOT].weight, "up": layer.lora_B[SLOT].weight}
        if SLOT in layer.lora_magnitude_vector:
            found["magnitude"] = layer.lora_magnitude_vector[SLOT].weight
        return found
    for start, names in FLAT.values():
        if hasattr(layer, f"{start}_w1_a"):
            held = {name: getattr(layer, f"{start}_{name}") for name in names}
            return {name: group[SLOT] for name, group in held.items() if SLOT in group}
    if hasattr(layer, "oft_R"):
        return {"blocks": layer.oft_R[SLOT].weight}
    if hasattr(layer, "boft_R"):
        return {"rotations": layer.boft_R[SLOT], "scale": layer.boft_s[SLOT]}
    return {"values": layer.shira_weight[SLOT]}


def update_of(layer: Any, spec: Spec) -> Update:
    """A copy of what a layer of PEFT has learnt, on the CPU."""
    held = {name: p.detach().cpu().clone() for name, p in parameters(layer).items()}
    for name in ("magnitude", "scale"):
        if name in held:
            held[name] = held[name].flatten()
    rest: dict[str, Any] = {}
    if spec.kind == "sparse":
        rest["indices"] = layer.shira_indices[SLOT].cpu().clone()
        rest["shape"] = torch.tensor(layer.get_base_layer().weight.shape, dtype=torch.int32)
    elif spec.kind not in ("oft", "boft"):
        rest["alpha"] = spec.alpha
    return UPDATES[spec.kind](**held, **rest)


def fill(layer: Any, update: Update) -> None:
    """Copy an update's factors into a layer of PEFT that has the same.

    Raises: AdapterError when their names or shapes differ.
    """
    held, given = parameters(layer), update.factors()
    if update.kind == "sparse":
        layer.shira_indices[SLOT] = given.pop("indices").to(torch.int)
        del given["shape"]
    if {n: _size(n, p) for n, p in held.items()} != {n: _size(n, t) for n, t in given.items()}:
        raise AdapterError(
            f"an update of {', '.join(f'{n} {tuple(t.shape)}' for n, t in given.items())} does not "
            f"fit one of {', '.join(f'{n} {tuple(p.shape)}' for n, p in held.items())}"
        )
    with torch.no_grad():
        for name, parameter in held.items():
            parameter.copy_(given[name].view_as(parameter))


def _size(name: str, factor: Tensor) -> tuple[int, ...]:
    """A factor's shape; one number per output is laid out as each of PEFT's layers wants it."""
    return (factor.numel(),) if name in ("magnitude", "scale") else tuple(factor.shape)


def make_room(layer: Any, update: Update) -> None:
    """Give a layer of PEFT factors of an update's own shapes, where PEFT's settings could not: a
    Kronecker product may be split in any way, and of single entries there may be any number."""
    weight = layer.get_base_layer().weight
    empty = {
        name: nn.Parameter(torch.empty(factor.shape, device=weight.device, dtype=weight.dtype))
        for name, factor in update.factors().items()
        if factor.is_floating_point()
    }
    if isinstance(update, LokrUpdate):
        for name in FLAT["lokr"][1]:
            kept = {SLOT: empty[name]} if name in empty else {}
            setattr(layer, f"lokr_{name}", nn.ParameterDict(kept))
        layer.scaling[SLOT] = update.scale
    elif update.kind == "sparse":
        layer.shira_weight[SLOT] = empty["values"]


def set_dropping(layer: Any, dropping: bool) -> None:
    """Let dropout in a layer's update act or not; the base's own module stays as it is."""
    layer.training = dropping
    for child in layer.children():
        if child is not layer.base_layer:
            child.train(dropping)


class Seat(NamedTuple):
    """Where a layer of an adapter sits: `parent.child`."""

    parent: nn.Module
    child: str
    layer: Any


def seats(model: Any) -> list[Seat]:
    """All layers of adapters that a model carries."""
    found = []
    for part in PARTS:
        root: Any = getattr(model, part, None)
        for path, module in root.named_modules() if root is not None else ():
            if carries(module):
                parent, _, child = path.rpartition(".")
                found.append(Seat(root.get_submodule(parent), child, module))
    return found


def leave(taken: Sequence[Seat]) -> None:
    """The model's own modules in these places again."""
    for seat in taken:
        setattr(seat.parent, seat.child, seat.layer.get_base_layer())


def remove(model: Any) -> None:
    """The model's own modules in all their places again."""
    leave(seats(model))
    for part in PARTS:
        root: Any = getattr(model, part, None)
        if hasattr(root, "peft_config"):
            del root.peft_config
