"""An adapter on a model: while a block runs, or trainable; a model that is let go answers bit for
bit as before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from variegate import seeds
from variegate.adapter.begin import first_factors, first_places, specs_of
from variegate.adapter.dial import Dial
from variegate.adapter.noun import Adapter, Masking, halves, joined
from variegate.adapter.places import (
    LAID_KINDS,
    PARTS,
    entry_of,
    find,
    label,
    refuse_second,
    targets,
)
from variegate.adapter.timed import Clock, TimedLora, last_components
from variegate.adapter.timed import Factors as TimedFactors
from variegate.adapter.tuners import (
    SLOT,
    Seat,
    Spec,
    fill,
    inject,
    leave,
    make_room,
    parameters,
    remove,
    seats,
    set_dropping,
    update_of,
)
from variegate.adapter.updates import LayerUpdate, Update
from variegate.errors import AdapterError
from variegate.lowrank import Factors
from variegate.recipe import AdapterPlan, TloraPlan


@contextmanager
def attached(
    model: Any, adapter: Adapter | None, *, strength: float = 1.0, dial: Dial | None = None
) -> Iterator[None]:
    """Let the model answer with an adapter on while the block runs; None leaves it as it is.

    The updates take the precision of the layers they sit on. dial: what sets the strength of each
    row, on top of `strength`. On leaving, the model's own modules stand in their places again.

    Raises: AdapterError when a layer is not in the model, has another shape, or the model
    already carries an adapter.
    """
    if adapter is None or not adapter.layers:
        yield
        return
    refuse_second(model)  # before there is anything to take off again
    stop: Callable[[], None] = _nothing
    try:
        stop = _put_on(model, adapter.scaled(strength), dial)
        yield
    finally:
        remove(model)
        stop()


@contextmanager
def attached_in_turn(
    model: Any, adapters: Sequence[Adapter], *, dial: Dial | None = None
) -> Iterator[Callable[[int], None]]:
    """Let the model answer with one of several adapters at a time while the block runs: the number
    of one, called, puts it where the one before was. All are held in memory; none is at first.
    dial: what sets the strength of each row, whoever's turn it is.

    Raises: AdapterError as `attached`.
    """
    refuse_second(model)
    for adapter in adapters:
        if laid := {u.kind for u in adapter.layers.values()} & set(LAID_KINDS):
            raise AdapterError(
                f"an adapter that changes {', '.join(sorted(laid))} themselves cannot take turns "
                "with others; use LoRA files, or merge it into the base"
            )
    held: list[list[Seat]] = []
    stops: list[Callable[[], None]] = []
    on: list[Seat] = []

    def turn(number: int) -> None:
        leave(on)
        on[:] = held[number]
        for seat in on:
            setattr(seat.parent, seat.child, seat.layer)

    try:
        for adapter in adapters:
            stops.append(_put_on(model, adapter, dial))
            held.append(seats(model))
            remove(model)
        yield turn
    finally:
        remove(model)
        for stop in stops:
            stop()


def _put_on(model: Any, adapter: Adapter, dial: Dial | None = None) -> Callable[[], None]:
    """A finished adapter's layers in their places, not to be trained, and what ends their
    listening."""
    if not adapter.layers:
        return _nothing
    modules = find(model, adapter)
    layers: dict[str, Any]
    stop: Callable[[], None] = _nothing
    if adapter.masking:
        layers, stop = _place_halves(model, modules, adapter)
    else:
        laid = {n: u for n, u in adapter.layers.items() if u.kind in LAID_KINDS}
        specs = {n: Spec.of(u) for n, u in adapter.layers.items() if n not in laid}
        layers = inject(model, {name: modules[name] for name in specs}, specs)
        for name, layer in layers.items():
            make_room(layer, adapter.layers[name])
            fill(layer, adapter.layers[name])
            _weaken(layer, adapter.layers[name])
        stop = _lay_on(modules, laid, dial)
    for layer in layers.values():
        layer.requires_grad_(False)
        layer.eval()
        if dial is not None:
            dial.hang(layer)
    return stop


class Attached:
    """A trainable adapter on a model, from `attach`; float32 whatever the model's precision."""

    def __init__(
        self,
        model: Any,
        layers: dict[str, Any],
        *,
        specs: dict[str, Spec],
        masking: Masking | None = None,
        stop: Callable[[], None],
    ) -> None:
        self._model = model
        self._layers = layers
        self._specs = specs
        self._masking = masking
        self._stop = stop

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
        """(`<layer>.<factor>`, factor), such as `.down` and `.up`, layers in a fixed order."""
        for name, layer in self._layers.items():
            if not part or name.startswith(f"{part}."):
                for factor, parameter in parameters(layer).items():
                    yield f"{name}.{factor}", parameter

    @property
    def is_low_rank(self) -> bool:
        """Whether every update is one product of two factors."""
        kinds = {spec.kind for spec in self._specs.values()}
        return self._masking is None and kinds <= {"lora", "dora"}

    def low_rank(self) -> list[Factors]:
        """The updates as matrices with their scale, gradients reaching the factors.

        Raises: AdapterError for kinds whose update is not one product of two factors.
        """
        if not self.is_low_rank:
            kinds = {"tlora"} if self._masking else {spec.kind for spec in self._specs.values()}
            raise AdapterError(
                "norms, caps and dropouts of the update want an adapter of kind lora or dora;"
                f" found {', '.join(sorted(kinds))}"
            )
        return [
            Factors(
                name,
                layer.lora_B[SLOT].weight.flatten(1),
                layer.lora_A[SLOT].weight.flatten(1),
                float(layer.scaling[SLOT]),
            )
            for name, layer in self._layers.items()
        ]

    def shrink(self, names: Sequence[str], shares: Float[Tensor, " l"]) -> None:
        """Scale the named updates by these shares, each factor by the root of it."""
        with torch.no_grad():
            for name, share in zip(names, shares.float().sqrt(), strict=True):
                self._layers[name].lora_A[SLOT].weight.mul_(share)
                self._layers[name].lora_B[SLOT].weight.mul_(share)

    def put(self, updates: Sequence[Factors]) -> None:
        """Have these factors in place of those that `low_rank` told."""
        with torch.no_grad():
            for update in updates:
                layer = self._layers[update.name]
                a, b = layer.lora_A[SLOT].weight, layer.lora_B[SLOT].weight
                a.copy_(update.down.view_as(a))
                b.copy_(update.up.view_as(b))

    def base_weights(self) -> Mapping[str, Tensor]:
        """The frozen weight under each update."""
        return _Weights(self._layers)

    def between_factors(self, change: Callable[[Tensor], Tensor]) -> None:
        """Have what stands between down and up changed in training, never while it is watched.

        Raises: AdapterError as `low_rank`.
        """
        self.low_rank()
        for layer in self._layers.values():
            set_dropping(layer, True)

            def hook(module: nn.Module, given: Any, hidden: Tensor, layer: Any = layer) -> Tensor:
                return change(hidden) if layer.training else hidden

            layer.lora_A[SLOT].register_forward_hook(hook)

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
        modes = {layer: layer.training for layer in self._layers.values()}
        for layer in modes:
            set_dropping(layer, False)
        try:
            with torch.no_grad():
                yield
        finally:
            for layer, mode in modes.items():
                set_dropping(layer, mode)

    def adapter(
        self,
        metadata: Mapping[str, str] | None = None,
        *,
        factors: Mapping[str, Tensor] | None = None,
    ) -> Adapter:
        """A copy of what has been learnt so far, on the CPU.

        factors: by the names of `named_parameters`, in place of those that are attached.
        """
        if factors is not None:
            own = {name: p.detach().clone() for name, p in self.named_parameters()}
            self._put(factors)
            try:
                return self.adapter(metadata)
            finally:
                self._put(own)
        layers = {name: self._update(name) for name in self._layers}
        family, notes = str(self._model.family), dict(metadata or {})
        factors = {} if self._is_told_by(layers) else self._factors()
        return Adapter(family, layers, notes, self._masking, factors)

    def load(self, adapter: Adapter) -> None:
        """Copy an adapter's factors in.

        Raises: AdapterError when its layers, shapes or alpha differ from those attached, or when
        it does not hold all that its kind is trained by.
        """
        if adapter.factors:
            self._load_factors(adapter.factors)
            return
        if set(adapter.layers) != set(self._layers):
            odd = sorted(set(adapter.layers) ^ set(self._layers))
            raise AdapterError(
                f"the adapter's layers are not those attached; {len(odd)} differ, first {odd[0]!r}"
            )
        for name, layer in self._layers.items():
            update, spec = adapter.layers[name], self._specs[name]
            if update.kind != spec.kind:
                told = "; a T-LoRA is gone on with from a checkpoint" if self._masking else ""
                raise AdapterError(f"{name}: {update.kind}; attached is a {spec.kind}{told}")
            alpha = getattr(update, "alpha", spec.alpha)
            if not math.isclose(alpha, spec.alpha, rel_tol=1e-6):
                raise AdapterError(f"{name}: alpha {alpha}; attached with {spec.alpha}")
            fill(layer, update)

    def _put(self, factors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(factors[name])

    def detach(self) -> None:
        """Take the adapter off; the model's own modules stand in their places again."""
        remove(self._model)
        self._stop()

    def _update(self, name: str) -> Update:
        layer = self._layers[name]
        if not isinstance(layer, TimedLora):
            return update_of(layer, self._specs[name])
        return joined(_as_lora(layer.learnt()), _as_lora(layer.start()))

    def _is_told_by(self, layers: Mapping[str, Update]) -> bool:
        """Whether files give these layers back to the bit: kohya's have one alpha for all."""
        alphas = {getattr(update, "alpha", 0.0) for update in layers.values()}
        return self._masking is None and len(alphas) == 1

    def _factors(self) -> dict[str, Tensor]:
        held = {name: p.detach().cpu().clone() for name, p in self.named_parameters()}
        for name, layer in self._layers.items():
            if isinstance(layer, TimedLora):
                held |= {
                    f"{name}.{k}_0": v.cpu().clone() for k, v in layer.start()._asdict().items()
                }
        return held

    def _load_factors(self, factors: Mapping[str, Tensor]) -> None:
        places: dict[str, Tensor] = dict(self.named_parameters())
        for name, layer in self._layers.items():
            if isinstance(layer, TimedLora):
                places |= {f"{name}.{k}_0": v for k, v in layer.start()._asdict().items()}
        odd = sorted(set(places) ^ set(factors))
        odd += [n for n in places if n in factors and places[n].shape != factors[n].shape]
        if odd:
            raise AdapterError(
                f"the adapter's factors are not those attached; {len(odd)} differ, first {odd[0]!r}"
            )
        with torch.no_grad():
            for name, place in places.items():
                place.copy_(factors[name])


class _Weights(Mapping[str, Tensor]):
    """Weights under layers, each read when it is asked for: a base that is held in few bits works
    it out then, one that several processes hold parts of gathers it (all are to ask for it then),
    and all at once would take the memory that it saves."""

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers

    def __getitem__(self, name: str) -> Tensor:
        weight: Any = self._layers[name].get_base_layer().weight
        found: Tensor = weight.full_tensor() if isinstance(weight, DTensor) else weight
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def attach(model: Any, plan: AdapterPlan, *, seed: int) -> Attached:
    """Put a fresh trainable adapter on a model, so that nothing changes yet.

    First weights are drawn as PEFT draws them (a T-LoRA's as its authors do), each layer's from its
    own address under `seed`. plan.dropout draws from torch's global generator; seed that around
    each step.

    Raises: AdapterError when the model has none of the layers, already carries an adapter, or has
    layers that the plan's kind or sizes do not fit.
    """
    modules = dict(targets(model, plan))
    if not modules:
        raise AdapterError(f"{label(model)} has no {plan.layers} layers to adapt")
    specs = specs_of(plan, modules)
    if isinstance(plan, TloraPlan):
        return _attach_timed(model, plan, modules, specs, seed=seed)
    layers = inject(model, modules, specs, dropout=plan.dropout)
    for name, layer in layers.items():
        if plan.kind == "sparse":
            layer.shira_indices[SLOT] = first_places(layer, seed, name)
        first = first_factors(plan, layer, seed, name)
        for factor, parameter in parameters(layer).items():
            parameter.data = parameter.data.float()
            if factor in first:
                parameter.data.copy_(first[factor])
            parameter.requires_grad_(True)
        if plan.kind == "lokr" and update_of(layer, specs[name]).rank == 0:
            layer.scaling[SLOT] = 1.0  # both halves are whole: LyCORIS knows no scale then
        set_dropping(layer, plan.dropout > 0)
    return Attached(model, layers, specs=specs, stop=_nothing)


def attach_from(model: Any, adapter: Adapter, plan: AdapterPlan) -> Attached:
    """Put a trainable copy of a finished adapter on a model: its layers, ranks, alphas and factors.

    Raises: AdapterError when its kind is not the plan's, or it does not fit the model.
    """
    if adapter.kind != plan.kind or adapter.masking is not None:
        raise AdapterError(
            f"adapter.start is a {adapter.kind} and the recipe asks for {plan.kind}; set "
            f"adapter.kind={adapter.kind}, or start afresh (a T-LoRA cannot be started from)"
        )
    modules = find(model, adapter)
    specs = {name: Spec.of(update) for name, update in adapter.layers.items()}
    layers = inject(model, modules, specs, dropout=plan.dropout)
    for name, layer in layers.items():
        make_room(layer, adapter.layers[name])
        for parameter in parameters(layer).values():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        fill(layer, adapter.layers[name])
        set_dropping(layer, plan.dropout > 0)
    return Attached(model, layers, specs=specs, stop=_nothing)


def _attach_timed(
    model: Any,
    plan: TloraPlan,
    modules: Mapping[str, nn.Module],
    specs: dict[str, Spec],
    *,
    seed: int,
) -> Attached:
    masking = Masking(plan.min_rank, int(model.schedule.timesteps))
    starts = {}
    for name, module in modules.items():
        weight: Any = module.weight
        generator = seeds.at(seed, "adapter", name)
        starts[name] = last_components(weight, specs[name].rank, generator)
    layers, stop = _place(model, modules, {n: (s, s) for n, s in starts.items()}, masking)
    for layer in layers.values():
        if plan.dropout > 0:
            layer.dropout = nn.Dropout(plan.dropout)
        set_dropping(layer, plan.dropout > 0)
    return Attached(model, layers, specs=specs, masking=masking, stop=stop)


def _place_halves(
    model: Any, modules: Mapping[str, nn.Module], adapter: Adapter
) -> tuple[dict[str, Any], Callable[[], None]]:
    """A finished T-LoRA in its places, in the layers' own precision."""
    assert adapter.masking is not None
    pairs = {}
    for name, update in adapter.layers.items():
        assert isinstance(update, LayerUpdate)
        learnt, start = (
            TimedFactors(half.down, torch.full((half.rank,), half.scale), half.up)
            for half in halves(update)
        )
        pairs[name] = (learnt, start)
    layers, stop = _place(model, modules, pairs, adapter.masking)
    for name, layer in layers.items():
        own = (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
        for tensor in own:  # not the base's: scales of one held in few bits stay float32
            tensor.data = tensor.data.to(modules[name].weight.dtype)
    return layers, stop


def _place(
    model: Any,
    modules: Mapping[str, nn.Module],
    pairs: Mapping[str, tuple[TimedFactors, TimedFactors]],
    masking: Masking,
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Layers of a T-LoRA in the places of `modules`, in float32, and what ends their listening."""
    refuse_second(model)
    clocks: dict[str, Clock] = {}
    layers: dict[str, Any] = {}
    for part in dict.fromkeys(name.partition(".")[0] for name in modules):
        root = getattr(model, part)
        clocks[part] = Clock(root, masking)
        paths = {id(module): path for path, module in root.named_modules()}
        for name in [n for n in modules if n.startswith(f"{part}.")]:
            layers[name] = TimedLora(modules[name], *pairs[name], clocks[part])
            parent, _, child = paths[id(modules[name])].rpartition(".")
            setattr(root.get_submodule(parent), child, layers[name])

    def stop() -> None:
        for clock in clocks.values():
            clock.stop()

    return layers, stop


def _lay_on(
    modules: Mapping[str, nn.Module], updates: Mapping[str, Update], dial: Dial | None
) -> Callable[[], None]:
    """Changed copies in the places of weights and biases, and what puts the own ones back."""
    own = {name: modules[name]._parameters[entry_of(name)] for name in updates}

    def back() -> None:
        for name, parameter in own.items():
            modules[name]._parameters[entry_of(name)] = parameter

    def lay(strength: float) -> None:
        for name, update in updates.items():
            parameter = own[name]
            assert parameter is not None
            scaled = update if strength == 1 else update.scaled(strength)
            changed = parameter.detach().float() + scaled.delta(parameter).to(parameter.device)
            modules[name]._parameters[entry_of(name)] = nn.Parameter(
                changed.to(parameter.dtype), requires_grad=False
            )

    def lay_or_leave(strength: float) -> None:
        lay(strength) if strength else back()

    try:
        lay(1.0)
    except BaseException:
        back()
        raise
    if updates and dial is not None:
        dial.lay(lay_or_leave)
    return back


def _as_lora(factors: TimedFactors) -> LayerUpdate:
    """B S A as a LoRA of scale 1, S within up."""
    down, scale, up = (f.detach().cpu().float() for f in factors)
    by_column = scale.view(1, -1, *[1] * (up.ndim - 2))
    return LayerUpdate(down.clone(), up * by_column, alpha=float(len(scale)))


def _weaken(layer: nn.Module, update: Update) -> None:
    """Let a layer that turns its weight add only `update.strength` of what that changes."""
    strength = float(getattr(update, "strength", 1.0))
    if strength == 1.0:
        return

    def weaken(module: Any, given: Any, answer: Tensor) -> Tensor:
        base: Tensor = module.get_base_layer()(*given)
        return base + strength * (answer - base)

    layer.register_forward_hook(weaken)


def _nothing() -> None:
    """What is to be stopped where nothing listens."""
