"""What can be changed of a finished adapter without training it: pure functions of its updates.

Each edit is a frozen option that carries its own settings; `edited` applies several in turn. What
an edit has to know beside the adapter (the base's weights, what layers hear) is in a `Ground`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from variegate.adapter import Adapter, LayerUpdate, Masking, Update
from variegate.adapter.noun import joined
from variegate.blend.products import NOTHING, Product, compress, svd
from variegate.errors import AdapterError, RequestError
from variegate.formats.names import canonical

# fmt: off
Part = Literal[
    "whole", "down", "mid", "up", "early", "middle", "late",
    "self", "cross", "feedforward", "convolution", "text",
]
# fmt: on
ALIKE = 0.5  # cosine below which a direction is none of the base's: Shuttleworth et al.
LOOKED_AT = 10  # leading directions of each layer in which intruders are looked for, as they do
MOST_FILLED = 2.0  # times as strong: what little is left of a layer is mostly rounding and chance
RIDGE = 1e-4  # of the mean square heard: what two matrices of moments may differ by and be one


@dataclass(frozen=True)
class Ground:
    """What edits stand on. weights: the base's, by canonical name of the layer. trigger, others:
    second moments `[i, i]` of each layer's inputs, of the adapter under its trigger where the
    subject is, and of the base without it; layers that are not there are left as they are by what
    needs them.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict)
    trigger: Mapping[str, Tensor] = field(default_factory=dict)
    others: Mapping[str, Tensor] = field(default_factory=dict)

    def weight(self, name: str) -> Tensor | None:
        return self.weights.get(canonical(name))


@dataclass(frozen=True)
class Weaken:
    """A part of the adapter acts `to` times as strongly; 0 takes it off."""

    name: ClassVar[str] = "strength"
    part: Part = "whole"
    to: float = 1.0

    @property
    def words(self) -> str:
        where = "everything" if self.part == "whole" else PART_WORDS[self.part]
        return f"{where} {self.to:g} times as strong" if self.to else f"{where} off"

    def apply(self, adapter: Adapter, ground: Ground) -> Adapter:
        own = parts_of(adapter)[self.part] if self.part != "whole" else set(adapter.layers)
        layers: dict[str, Update] = {}
        for name, update in adapter.layers.items():
            if name not in own:
                layers[name] = update
            elif self.to:
                layers[name] = _settled(name, update.scaled(self.to), ground)
        if not layers:  # a file wants a layer, and none of them may act
            name, update = next(iter(adapter.layers.items()))
            layers[name] = _settled(name, update.scaled(0.0), ground)
        return replace(adapter, layers=layers, factors={})


@dataclass(frozen=True)
class Truncate:
    """Of each update's singular directions the largest share stays, or the smallest."""

    name: ClassVar[str] = "truncate"
    keep: float
    end: Literal["largest", "smallest"] = "largest"

    @property
    def words(self) -> str:
        return f"the {self.end} {self.keep:.0%} of each update's directions alone"

    def apply(self, adapter: Adapter, ground: Ground) -> Adapter:
        def cut(name: str, product: Product) -> Product:
            left, values, right = svd(product)
            values = _real(values)
            kept = max(1, round(self.keep * len(values)))
            taken = slice(0, kept) if self.end == "largest" else slice(len(values) - kept, None)
            rows = torch.arange(len(values))[taken]
            return Product(left[:, rows] * values[rows], right[rows], product.shape)

        return _each(adapter, ground, cut)


@dataclass(frozen=True)
class Cap:
    """No singular value of an update above this quantile of its own; 0 makes all of them equal."""

    name: ClassVar[str] = "cap"
    quantile: float

    @property
    def words(self) -> str:
        return f"each update's singular values capped at their {self.quantile:.0%} quantile"

    def apply(self, adapter: Adapter, ground: Ground) -> Adapter:
        def cap(name: str, product: Product) -> Product:
            left, values, right = svd(product)
            values = _real(values)
            if len(values):
                values = values.clamp(max=float(values.quantile(self.quantile)))
            return Product(left[:, : len(values)] * values, right[: len(values)], product.shape)

        return _each(adapter, ground, cap)


@dataclass(frozen=True)
class ShrinkIntruders:
    """Intruder dimensions of W + delta `to` times as long: its leading singular directions that are
    like none of W's.

    Source: Shuttleworth et al., LoRA vs Full Fine-tuning: An Illusion of Equivalence, 2024, arXiv
    2410.21228, section 5, which scales them so.
    """

    name: ClassVar[str] = "intruders"
    to: float = 0.0

    @property
    def words(self) -> str:
        return f"directions that are like none of the base's {self.to:g} times as long"

    def apply(self, adapter: Adapter, ground: Ground) -> Adapter:
        def shrink(name: str, product: Product) -> Product:
            weight = _needed(ground, name, "to find intruders")
            own, _, _ = svd(Product.whole(weight))
            left, values, right = svd(
                Product.whole(weight.double() + product.dense().view(weight.shape))
            )
            count = min(LOOKED_AT, len(values))
            strange = (own.mT @ left[:, :count]).abs().amax(0) < ALIKE
            rows = strange.nonzero().flatten()
            if not len(rows):
                return product
            taken = Product(left[:, rows] * values[rows], right[rows], product.shape)
            return Product.sum([(1.0, product), (self.to - 1, taken)])

        return _each(adapter, ground, shrink)


@dataclass(frozen=True)
class Align:
    """Each update within the base weight's leading singular directions of both sides, or out of
    them.

    share: of the weight's directions that count as leading. Within: U U' delta V V'; outside:
    (1 - U U') delta (1 - V V'). Both are projections.
    """

    name: ClassVar[str] = "align"
    share: float
    side: Literal["within", "outside"] = "within"

    @property
    def words(self) -> str:
        return f"each update {self.side} the base's leading {self.share:.0%} of directions"

    def apply(self, adapter: Adapter, ground: Ground) -> Adapter:
        def project(name: str, product: Product) -> Product:
            weight = _needed(ground, name, "to align with its directions")
            left, values, right = svd(Product.whole(weight))
            count = max(1, round(self.share * len(values)))
            u, v = left[:, :count], right[:count]
            up, down = u @ (u.mT @ product.left), (product.right @ v.mT) @ v
            if self.side == "outside":
                up, down = product.left - up, product.right - down
            return Product(up, down, product.shape)

        return _each(adapter, ground, project)


@dataclass(frozen=True)
class Contrast:
    """Each update answers to what its layer hears of the subject under the trigger, and not to what
    it hears anyway.

    delta becomes c delta P, with P = T (T + price C)^-1: of all P the one that makes
    E|delta x - delta P x|^2 over inputs x of the subject (second moments T, under the trigger with
    the adapter on) plus price E|delta P y|^2 over inputs y without it (C, the base alone) the
    least, whatever delta is. c makes it as strong on the subject as it was, E|c delta P x|^2 =
    E|delta x|^2, and is `MOST_FILLED` at most. Rank stays. Of a convolution x are its channels,
    each place of the kernel alike.

    A ridge regression in closed form, as in Gandikota et al., Unified Concept Editing, 2024, arXiv
    2308.14761, section 4, there for the words that cross attention reads; that an update harms
    nothing which its layer does not hear: Wang et al., Training Networks in Null Space of Feature
    Covariance, 2021, arXiv 2103.07113.
    """

    name: ClassVar[str] = "contrast"
    price: float

    @property
    def words(self) -> str:
        return f"each update held to what the trigger alone brings (price {self.price:g})"

    def apply(self, adapter: Adapter, ground: Ground) -> Adapter:
        def hold(name: str, product: Product) -> Product:
            trigger, others = ground.trigger.get(name), ground.others.get(name)
            if trigger is None or others is None:
                return product
            right = through(product.right, contrast(trigger, others, self.price))
            held = Product(product.left, right, product.shape)
            was, now = (power(p, trigger) for p in (product, held))
            fill = min(MOST_FILLED, math.sqrt(was / now)) if now > 0 else 1.0
            return Product(product.left * fill, right, product.shape)

        own = {name for name in adapter.layers if name in ground.trigger}
        return _each(adapter, ground, hold, only=own)


@dataclass(frozen=True)
class Late:
    """Silent above one share of the noise levels, whole below another, its directions coming on one
    by one between, the largest last.

    What no plain LoRA can be. It is written as a T-LoRA (`adapter/timed.py`) whose components are
    padded with empty ones, so that every verb here takes it; other tools would draw it whole at
    every noise. The text encoder hears no noise level: its layers are left out.
    Source of the idea, switching it on late: Soboleva et al. 2025, arXiv 2502.05895.
    """

    name: ClassVar[str] = "late"
    silent: float
    whole: float
    timesteps: int = 1000

    @property
    def words(self) -> str:
        return (
            f"silent in the noisiest {1 - self.silent:.0%} of noise levels, whole from "
            f"{self.whole:.0%} on"
        )

    def apply(self, adapter: Adapter, ground: Ground) -> Adapter:
        if not 0 <= self.whole < self.silent <= 1:
            raise RequestError(
                f"silent above {self.silent} and whole below {self.whole} of the noise levels; "
                "expected 0 <= whole < silent <= 1"
            )
        plain = _each(adapter, ground, lambda name, product: product)
        kept = {n: u for n, u in plain.layers.items() if not n.startswith("text_encoder")}
        odd = [n for n, u in kept.items() if not _is_plain(u)]
        if odd or not kept:
            raise AdapterError(
                "a strength that depends on the noise wants layers of a LoRA in the network; found "
                f"{odd[0] if odd else 'the text encoder alone'}; leave --timed out"
            )
        rank = max(u.rank for u in kept.values())
        whole = max(rank + 1, math.ceil(rank / (self.silent - self.whole)))
        before = round(whole * (1 - self.silent))
        layers: dict[str, Update] = {}
        for name, update in kept.items():
            assert isinstance(update, LayerUpdate)
            layers[name] = _padded(update, before, whole)
        masking = Masking(1, self.timesteps)
        return replace(plain, layers=layers, masking=masking, factors={})


Edit = Weaken | Truncate | Cap | ShrinkIntruders | Align | Contrast | Late
PART_WORDS: dict[str, str] = {
    "down": "the blocks that go down",
    "mid": "the block in the middle",
    "up": "the blocks that go up",
    "early": "the first third of the blocks",
    "middle": "the second third of the blocks",
    "late": "the last third of the blocks",
    "self": "self-attention",
    "cross": "cross-attention",
    "feedforward": "feed-forward layers",
    "convolution": "convolutions",
    "text": "the text encoder",
}


def edited(adapter: Adapter, edits: Sequence[Edit], ground: Ground) -> Adapter:
    """The adapter with all edits, in their order.

    Raises: AdapterError where an edit needs a base's weight that is not there, or a LoRA where the
    adapter is a T-LoRA; RequestError for numbers that make no sense.
    """
    for edit in edits:
        if adapter.masking and not isinstance(edit, Weaken):
            raise AdapterError(
                "the adapter is a T-LoRA, whose rank falls with the noise: only its strength can "
                "be changed; no single update is the same"
            )
        adapter = edit.apply(adapter, ground)
    return adapter


def told(edit: Edit) -> dict[str, Any]:
    """An edit as a table: its name and its settings."""
    return {"edit": edit.name, **asdict(edit)}


def parts_of(adapter: Adapter) -> dict[str, set[str]]:
    """Layer names by part. A UNet is parted into down, mid and up; a transformer's blocks into
    thirds; and both by what a layer does. Norms and embeddings are in none."""
    found: dict[str, set[str]] = {part: set() for part in PART_WORDS}
    depth = 1 + max((_depth(name) for name in adapter.layers), default=0)
    for name in adapter.layers:
        if name.startswith("text_encoder"):
            found["text"].add(name)
            continue
        for block, part in (("down_blocks", "down"), ("mid_block", "mid"), ("up_blocks", "up")):
            if f".{block}." in name:
                found[part].add(name)
        if name.startswith("transformer.transformer_blocks."):
            found[("early", "middle", "late")[3 * _depth(name) // depth]].add(name)
        if ".attn2." in name or re.search(r"\.(add_[qkv]_proj|to_add_out)", name):
            found["cross"].add(name)
        elif re.search(r"\.attn1?\.", name):
            found["self"].add(name)
        elif re.search(r"\.ff(_context)?\.", name):
            found["feedforward"].add(name)
        elif re.search(r"\.(conv\w*|time_emb_proj|proj_in|proj_out)(\.|$)", name):
            found["convolution"].add(name)
    return found


def contrast(
    trigger: Float[Tensor, "i i"], others: Float[Tensor, "i i"], price: float
) -> Float[Tensor, "i i"]:
    """P = T (T + price C + ridge)^-1 of `Contrast`, by which an update's right side is multiplied.

    A price of 0 leaves all that is ever heard as it is.
    """
    trigger, others = trigger.double(), others.double()
    ridge = RIDGE * float((trigger + others).diagonal().mean()) * min(1.0, price)
    if not price:
        return torch.eye(len(trigger), dtype=torch.float64)
    whole = trigger + price * others + ridge * torch.eye(len(trigger), dtype=torch.float64)
    # (T + price C) is symmetric, so P = ((T + price C)^-1 T)'.
    return torch.linalg.solve(whole, trigger).mT


def through(right: Float[Tensor, "r n"], turn: Float[Tensor, "i i"]) -> Float[Tensor, "r n"]:
    """right @ turn; of a convolution (n = i * kh * kw) the channels are turned at each place."""
    inputs = len(turn)
    by_channel = right.view(len(right), inputs, -1)
    return torch.einsum("rik,ij->rjk", by_channel, turn).reshape(len(right), -1)


def power(product: Product, moments: Float[Tensor, "i i"]) -> float:
    """E|delta x|^2 over inputs of these second moments; of a convolution, with the places of its
    kernel taken as unrelated."""
    heard = through(product.right, moments.double())
    return float(((product.left.mT @ product.left) * (heard @ product.right.mT)).sum())


def _depth(name: str) -> int:
    """Which of a transformer's blocks a layer is in, 0 elsewhere."""
    found = re.match(r"transformer\.transformer_blocks\.(\d+)\.", name)
    return int(found[1]) if found else 0


def _each(
    adapter: Adapter, ground: Ground, change: Any, *, only: set[str] | None = None
) -> Adapter:
    """Every layer's update through a function of its product, as a LoRA; vectors (biases, norms)
    stay what they are, and layers outside `only`."""
    layers: dict[str, Update] = {}
    for name, update in adapter.layers.items():
        if (only is not None and name not in only) or update.of_vector:
            layers[name] = update
            continue
        product = Product.of(name, update, _where_needed(update, ground, name))
        changed = change(name, product)
        layers[name] = update if changed is product and _is_plain(update) else compress(changed)[0]
    return replace(adapter, layers=layers, factors={})


def _settled(name: str, update: Update, ground: Ground) -> Update:
    """An update whose strength no file of its kind holds, as the LoRA that it is."""
    if getattr(update, "strength", 1.0) == 1.0:
        return update
    return compress(Product.of(name, update, _where_needed(update, ground, name)))[0]


def _where_needed(update: Update, ground: Ground, name: str) -> Tensor | None:
    return None if _is_plain(update) else ground.weight(name)


def _needed(ground: Ground, name: str, what: str) -> Tensor:
    weight = ground.weight(name)
    if weight is None:
        raise AdapterError(
            f"the base's weight under {name} is needed {what}; name the base that the adapter was "
            "trained on"
        )
    return weight.detach().float().cpu()


def _is_plain(update: Update) -> bool:
    return isinstance(update, LayerUpdate) and update.kind == "lora"


def _real(values: Float[Tensor, " k"]) -> Float[Tensor, " r"]:
    """The singular values that are not rounding, largest first."""
    return values[values > NOTHING * float(values[0])] if len(values) else values


def _padded(update: LayerUpdate, before: int, rank: int) -> LayerUpdate:
    """The update's singular components, smallest first, from place `before` on of `rank` in all;
    as the half of a T-LoRA that was learnt, beside one that was nothing at the start."""
    product = Product.of("", update)
    left, values, right = svd(product)
    values = _real(values).flip(0)
    count, root = len(values), values.sqrt()
    down = torch.zeros(rank, *update.down.shape[1:])
    up = torch.zeros(update.up.shape[0], rank, *update.up.shape[2:])
    ones = [1] * (update.up.ndim - 2)
    rows = slice(before, before + count)
    down[rows] = (root[:, None] * right[:count].flip(0)).float().view(count, *down.shape[1:])
    up[:, rows] = (left[:, :count].flip(1) * root).float().view(-1, count, *ones)
    learnt = LayerUpdate(down, up, float(rank))
    return joined(learnt, LayerUpdate(torch.zeros_like(down), torch.zeros_like(up), float(rank)))
