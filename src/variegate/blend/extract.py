"""What a finetuned model has that its base has not, as an adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from variegate.adapter import PARTS, Adapter
from variegate.adapter.places import entry_of, find
from variegate.blend.products import Product
from variegate.blend.together import Blended, check_size, sized
from variegate.errors import AdapterError, RequestError
from variegate.formats import describe
from variegate.formats.names import canonical
from variegate.models import DiffusionModel

# What no adapter holds.
BESIDE = ("vae", "text_encoder_3")


def extract(
    base: DiffusionModel,
    tuned: DiffusionModel,
    *,
    rank: int | None = None,
    energy: float | None = None,
) -> Blended:
    """The change of every matrix and convolution from base to tuned, as a LoRA of this size.

    Both in float32. Changes that may be the rounding of the narrower of the two files are nothing.
    `left_out` tells what changed beside the weights of layers.

    Raises: RequestError without a size, AdapterError when the models differ in their layers or
    when no layer's weight changed.
    """
    if rank is None and energy is None:
        raise RequestError("no size for the adapter: give --rank, --energy or both")
    check_size(rank, energy)
    if base.family != tuned.family:
        raise AdapterError(
            f"{base.name} is of family {base.family}, {tuned.name} of {tuned.family}; an adapter "
            "is what one base learnt"
        )
    before, after = dict(_weights(base)), dict(_weights(tuned))
    odd = sorted(before.keys() ^ after.keys())
    odd += [n for n in before.keys() & after.keys() if before[n].shape != after[n].shape]
    if odd:
        raise AdapterError(
            f"{base.name} and {tuned.name} differ in {len(odd)} layers, such as {odd[0]}; expected "
            "a base and a model that was finetuned from it"
        )
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    floors = {name: _rounding(before[name], after[name]) for name in changed}
    products = (
        (name, Product.whole(after[name].double() - before[name].double())) for name in changed
    )
    metadata = describe(base=base.name, family=base.family, prediction=base.schedule.prediction)
    found = sized(products, base.family, metadata, rank=rank, energy=energy, floors=floors)
    kept = {name: layer for name, layer in found.layers.items() if layer.of_rank}
    if not kept:
        raise AdapterError(
            f"no layer of {tuned.name} differs from {base.name} by more than rounding; there is "
            "nothing to extract"
        )
    adapter = replace(found.adapter, layers={name: found.adapter.layers[name] for name in kept})
    return Blended(adapter, kept, left_out=tuple(_beside(base, tuned)))


def base_weights(model: DiffusionModel, adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """The base's weights (and biases) under the layers of some adapters, by canonical name.

    Raises: AdapterError when an adapter does not fit the model.
    """
    return {
        canonical(name): getattr(module, entry_of(name)).detach()
        for adapter in adapters
        for name, module in find(model, adapter).items()
    }


def _weights(model: DiffusionModel) -> Iterator[tuple[str, Tensor]]:
    """The weight of every layer that an adapter can hold, by the layer's name."""
    for part in PARTS:
        root = getattr(model, part, None)
        for path, module in root.named_modules() if root is not None else ():
            if isinstance(module, nn.Linear | nn.Conv2d):
                yield canonical(f"{part}.{path}"), module.weight.detach()


def _rounding(before: Tensor, after: Tensor) -> float:
    """How large a singular value of the difference rounding alone can make.

    Each entry is off by half a unit in its last place, eps |w| / 2, at most; a random matrix of
    entries of size s has a largest singular value of about s (sqrt(o) + sqrt(i)).
    """
    eps = max(_grain(before), _grain(after))
    spread = float(before.float().square().mean().sqrt())
    matrix = before.flatten(1)
    return float(eps * spread * (matrix.shape[0] ** 0.5 + matrix.shape[1] ** 0.5))


def _grain(weight: Tensor) -> float:
    """The resolution of the narrowest kind of number that holds these."""
    for kind in (torch.bfloat16, torch.float16):
        if bool((weight.to(kind).to(weight.dtype) == weight).all()):
            return torch.finfo(kind).eps
    return torch.finfo(torch.float32).eps


def _beside(base: DiffusionModel, tuned: DiffusionModel) -> Iterator[str]:
    """What changed and is in no adapter."""
    changed = []
    for part in (*PARTS, *BESIDE):
        one, other = getattr(base, part, None), getattr(tuned, part, None)
        if (one is None) != (other is None):
            yield f"{part} is in one model only"
        if one is None or other is None:
            continue
        held = {
            f"{path}.weight"
            for path, module in one.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        }
        here: Mapping[str, Any] = one.state_dict()
        there: Mapping[str, Any] = other.state_dict()
        keys = here.keys() & there.keys() - (set() if part in BESIDE else held)
        odd = [
            k for k in keys if here[k].shape != there[k].shape or not torch.equal(here[k], there[k])
        ]
        if odd and part in BESIDE:
            yield f"{part} differs, which no adapter holds"
        elif odd:
            changed += [f"{part}.{key}" for key in odd]
    if changed:
        yield (
            f"{len(changed)} biases, norms or embeddings changed too, such as {min(changed)}, and "
            "no LoRA holds them"
        )
