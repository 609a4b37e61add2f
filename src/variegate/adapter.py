"""What was learnt, free of any file format, and how it sits on a model.

An adapter is a set of low-rank updates of named layers. Names are `unet.<path>` and
`text_encoder.<path>` with the paths of diffusers and transformers before its version 5
(`text_encoder.text_model.encoder...`); both spellings of the text encoder's path are found.
PEFT injects the layers; a model that is let go answers bit for bit as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from variegate import seeds
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
_SLOT = "default"  # PEFT's name for the one adapter a model carries


@dataclass(frozen=True)
class LayerUpdate:
    """One layer's update: delta = up @ down * alpha / r.

    down is `[r, in]` (`[r, in, kh, kw]` for a convolution), up `[out, r]` (`[out, r, 1, 1]`).
    """

    down: Tensor
    up: Tensor
    alpha: float

    def __post_init__(self) -> None:
        if self.down.ndim not in (2, 4) or self.up.ndim != self.down.ndim:
            raise AdapterError(
                f"factors of shapes {tuple(self.down.shape)} and {tuple(self.up.shape)}: "
                "expected two matrices or two convolution kernels"
            )
        if self.up.shape[1] != self.down.shape[0]:
            raise AdapterError(
                f"factors of shapes {tuple(self.down.shape)} and {tuple(self.up.shape)} do not "
                "share a rank"
            )

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self) -> Tensor:
        """The dense update, shaped as the layer's weight."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float() * self.scale
        return product.view(self.up.shape[0], *self.down.shape[1:])

    def spectrum(self) -> Float[Tensor, " k"]:
        """The update's singular values, largest first, without forming it.

        With up = Q1 R1 and down' = Q2 R2, they are those of R1 R2', an r x r matrix.
        """
        left = torch.linalg.qr(self.up.flatten(1).double(), mode="r").R
        right = torch.linalg.qr(self.down.flatten(1).double().T, mode="r").R
        values: Tensor = torch.linalg.svdvals(left @ right.T) * abs(self.scale)
        return values.float()


@dataclass(frozen=True)
class Adapter:
    """Low-rank updates by layer name, with free notes."""

    family: str
    layers: dict[str, LayerUpdate]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest rank of any layer."""
        return max((update.rank for update in self.layers.values()), default=0)

    def delta(self, name: str) -> Tensor:
        """One layer's dense update."""
        return self._update(name).delta()

    def spectrum(self, name: str) -> Float[Tensor, " k"]:
        """One layer's singular values, largest first."""
        return self._update(name).spectrum()

    def scaled(self, strength: float) -> Adapter:
        """The same adapter with every update `strength` times as large."""
        layers = {n: replace(u, alpha=u.alpha * strength) for n, u in self.layers.items()}
        return replace(self, layers=layers)

    def _update(self, name: str) -> LayerUpdate:
        if name not in self.layers:
            raise AdapterError(f"the adapter has no layer {name!r}; it has {len(self.layers)}")
        return self.layers[name]


@contextmanager
def attached(model: Any, adapter: Adapter | None, *, strength: float = 1.0) -> Iterator[None]:
    """Let the model answer with an adapter on while the block runs; None leaves it as it is.

    The updates take the precision of the layers they sit on. On leaving, the model's own modules
    stand in their places again.

    Raises: AdapterError when a layer is not in the model, has another shape, or the model
    already carries an adapter.
    """
    if adapter is None or not adapter.layers:
        yield
        return
    adapter = adapter.scaled(strength)
    modules = _find(model, adapter)
    ranks = {name: (u.rank, u.alpha) for name, u in adapter.layers.items()}
    layers = _inject(model, modules, ranks)
    try:
        for name, layer in layers.items():
            _fill(layer, adapter.layers[name])
            layer.requires_grad_(False)
            layer.eval()
        yield
    finally:
        _remove(model)


class Attached:
    """A trainable adapter on a model, from `attach`; float32 whatever the model's precision."""

    def __init__(
        self, model: Any, layers: dict[str, Any], family: str, alphas: dict[str, float]
    ) -> None:
        self._model = model
        self._layers = layers
        self._family = family
        self._alphas = alphas

    @property
    def parameters(self) -> list[dict[str, Any]]:
        """One optimizer group per part of the model: `{"name", "params", "names"}`."""
        groups = []
        for part in PARTS:
            named = dict(self.named_parameters(part))
            if named:
                groups.append({"name": part, "params": list(named.values()), "names": list(named)})
        return groups

    def named_parameters(self, part: str = "") -> Iterator[tuple[str, nn.Parameter]]:
        """(`<layer>.down` or `<layer>.up`, factor), layers in a fixed order."""
        for name, layer in self._layers.items():
            if not part or name.startswith(f"{part}."):
                yield f"{name}.down", layer.lora_A[_SLOT].weight
                yield f"{name}.up", layer.lora_B[_SLOT].weight

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """While the block runs the model, text encoder included, answers as the base.

        Blocks may be nested: an inner one that ends leaves the outer one silent.
        """
        layers = [layer for layer in self._layers.values() if not layer.disable_adapters]
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While the block runs, no dropout in the updates and no gradients."""
        dropped = [layer.lora_dropout for layer in self._layers.values()]
        modes = [drop.training for drop in dropped]
        for drop in dropped:
            drop.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            for drop, mode in zip(dropped, modes, strict=True):
                drop.train(mode)

    def adapter(self, metadata: Mapping[str, str] | None = None) -> Adapter:
        """A copy of what has been learnt so far, on the CPU."""
        layers = {
            name: LayerUpdate(
                down=layer.lora_A[_SLOT].weight.detach().cpu().clone(),
                up=layer.lora_B[_SLOT].weight.detach().cpu().clone(),
                alpha=self._alphas[name],
            )
            for name, layer in self._layers.items()
        }
        return Adapter(self._family, layers, dict(metadata or {}))

    def load(self, adapter: Adapter) -> None:
        """Copy an adapter's factors in.

        Raises: AdapterError when its layers, shapes or alpha differ from those attached.
        """
        if set(adapter.layers) != set(self._layers):
            odd = sorted(set(adapter.layers) ^ set(self._layers))
            raise AdapterError(
                f"the adapter's layers are not those attached; {len(odd)} differ, first {odd[0]!r}"
            )
        for name, layer in self._layers.items():
            update = adapter.layers[name]
            alpha = self._alphas[name]
            if not math.isclose(update.alpha, alpha, rel_tol=1e-6):
                raise AdapterError(f"{name}: alpha {update.alpha}; attached with {alpha}")
            _fill(layer, update)

    def detach(self) -> None:
        """Take the adapter off; the model's own modules stand in their places again."""
        _remove(self._model)


def attach(model: Any, plan: AdapterPlan, *, seed: int) -> Attached:
    """Put a fresh trainable adapter on a model: down random, up zero, so nothing changes yet.

    down is uniform in +-1/sqrt(in) as PEFT draws it, each layer from its own address under
    `seed`. plan.dropout draws from torch's global generator; seed that around each step.

    Raises: AdapterError when the model has none of the layers or already carries an adapter.
    """
    modules = dict(_targets(model, plan))
    if not modules:
        raise AdapterError(f"{_label(model)} has no {plan.layers} layers to adapt")
    ranks = {name: _rank(module, plan) for name, module in modules.items()}
    layers = _inject(model, modules, ranks, dropout=plan.dropout)
    for name, layer in layers.items():
        down, up = layer.lora_A[_SLOT], layer.lora_B[_SLOT]
        bound = 1 / math.sqrt(down.weight[0].numel())
        draws = torch.rand(down.weight.shape, generator=seeds.at(seed, "adapter", name))
        with torch.no_grad():
            down.float().weight.copy_((2 * draws - 1) * bound)
            up.float().weight.zero_()
        down.requires_grad_(True)
        up.requires_grad_(True)
        layer.lora_dropout.train()
    alphas = {name: alpha for name, (_, alpha) in ranks.items()}
    return Attached(model, layers, family=str(model.family), alphas=alphas)


def _rank(module: nn.Module, plan: AdapterPlan) -> tuple[int, float]:
    """(rank, alpha) of a layer: every layer's update has the scale alpha / rank of the plan."""
    rank = plan.rank
    if isinstance(module, nn.Conv2d) and plan.convolution_rank is not None:
        rank = plan.convolution_rank
    return rank, plan.alpha * rank / plan.rank


def _targets(model: Any, plan: AdapterPlan) -> Iterator[tuple[str, nn.Module]]:
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


def _find(model: Any, adapter: Adapter) -> dict[str, nn.Module]:
    """Every layer's module by name; all faults are told at once."""
    missing, misfits, found = [], [], {}
    for name, update in adapter.layers.items():
        module = _module(model, name)
        if module is None:
            missing.append(name)
            continue
        found[name] = module
        shape = tuple(module.weight.shape)
        expected = (update.up.shape[0], *update.down.shape[1:])
        if shape != expected:
            misfits.append(f"{name}: layer {shape}, update {expected}")
    if missing or misfits:
        facts = []
        if missing:
            facts.append(f"{len(missing)} of {len(adapter.layers)} layers are not in it")
            facts.append(f"first: {missing[0]}")
        if misfits:
            facts.append(f"{len(misfits)} have another shape, first {misfits[0]}")
        raise AdapterError(
            f"the adapter (family {adapter.family}) does not fit {_label(model)}: "
            f"{'; '.join(facts)}; use the base model that it was trained on"
        )
    return found


def _module(model: Any, name: str) -> Any:
    part, _, path = name.partition(".")
    root = getattr(model, part, None) if part in PARTS else None
    if root is None:
        return None
    short = path.removeprefix("text_model.")
    for spelling in dict.fromkeys((path, short, f"text_model.{short}")):
        try:
            module = root.get_submodule(spelling)
        except AttributeError:
            continue
        if isinstance(module, LoraLayer):
            raise AdapterError(f"{_label(model)} already carries an adapter; let that go first")
        return module if isinstance(module, nn.Linear | nn.Conv2d) else None
    return None


def _inject(
    model: Any,
    modules: Mapping[str, nn.Module],
    ranks: Mapping[str, tuple[int, float]],
    *,
    dropout: float = 0.0,
) -> dict[str, Any]:
    """PEFT layers in the places of `modules`, by the same names, in the same order."""
    layers: dict[str, Any] = {}
    for part in PARTS:
        names = {
            id(module): name for name, module in modules.items() if name.startswith(f"{part}.")
        }
        if not names:
            continue
        root = getattr(model, part)
        paths = {p: names[id(m)] for p, m in root.named_modules() if id(m) in names}
        if any(isinstance(m, LoraLayer) for m in root.modules()):
            raise AdapterError(f"{_label(model)} already carries an adapter; let that go first")
        gradients = [(p, p.requires_grad) for p in root.parameters()]
        config = LoraConfig(
            target_modules=list(paths),
            rank_pattern={_anchored(p): ranks[name][0] for p, name in paths.items()},
            alpha_pattern={_anchored(p): ranks[name][1] for p, name in paths.items()},
            lora_dropout=dropout,
        )
        # PEFT draws its own first weights from the global generator; ours replace them.
        with torch.random.fork_rng(devices=[]):
            inject_adapter_in_model(config, root, _SLOT)
        for parameter, wanted in gradients:
            parameter.requires_grad_(wanted)
        layers |= {name: root.get_submodule(path) for path, name in paths.items()}
    return {name: layers[name] for name in modules}


def _anchored(path: str) -> str:
    return "^" + path.replace(".", r"\.")


def _fill(layer: Any, update: LayerUpdate) -> None:
    down, up = layer.lora_A[_SLOT].weight, layer.lora_B[_SLOT].weight
    if down.shape != update.down.shape or up.shape != update.up.shape:
        raise AdapterError(
            f"an update of shapes {tuple(update.down.shape)}, {tuple(update.up.shape)} does not "
            f"fit one of {tuple(down.shape)}, {tuple(up.shape)}"
        )
    with torch.no_grad():
        down.copy_(update.down)
        up.copy_(update.up)


def _remove(model: Any) -> None:
    for part in PARTS:
        root = getattr(model, part, None)
        if root is None:
            continue
        for path, module in list(root.named_modules()):
            if isinstance(module, LoraLayer):
                parent, _, child = path.rpartition(".")
                setattr(root.get_submodule(parent), child, module.get_base_layer())
        if hasattr(root, "peft_config"):
            del root.peft_config


def _label(model: Any) -> str:
    return f"base {getattr(model, 'name', 'model')!r}"
