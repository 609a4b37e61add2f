"""How a run fits its machine: precision, gradient checkpointing, and what a stated memory holds.

What autograd keeps is counted on the model itself, at two small sizes, and carried over to the
run's: it grows with rows and with area, attention being worked out in blocks. The rest is
arithmetic on weights, gradients and optimizer state. Nothing here is measured on a GPU while the
run goes on; `parts.within_memory` answers when the estimate was too low.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from variegate import models
from variegate.adapter import Attached
from variegate.errors import RecipeError
from variegate.recipe import AdamW, AdamW8bit, OptimizerPlan, Recipe

Precision = Literal["float32", "bf16", "fp16"]
DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
GIB = 1024**3
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "JointTransformerBlock")
BACKEND = "inductor"  # of torch.compile
CONTEXT = 0.6 * GIB  # what CUDA and its libraries take before the first tensor
SLACK = 1.15  # on what a pass keeps: gradients of activations, scratch, fragments
# Numbers of state per number learnt, beside the factor and its gradient.
STATE = {"adamw": 2.0, "adamw8bit": 0.52, "adafactor": 0.1, "prodigy": 4.0, "schedulefree": 3.0}


@dataclass(frozen=True)
class Means:
    """By what means a run is done: as asked, or chosen to fit; `why` is empty as asked."""

    optimizer: OptimizerPlan
    precision: Precision
    gradient_checkpointing: bool
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """As the journal keeps it."""
        return {
            "optimizer": self.optimizer.model_dump(mode="json"),
            "precision": self.precision,
            "gradient_checkpointing": self.gradient_checkpointing,
            "text": self.why,
        }


@dataclass(frozen=True)
class Needs:
    """Bytes: of weights, of what is learnt (factors), and what a pass keeps for going back."""

    weights: int
    factors: int
    fixed: float
    per_row: float
    fixed_checkpointed: float
    per_row_checkpointed: float

    def total(self, rows: int, *, kind: str, checkpointing: bool, context: float) -> float:
        """With `rows` per pass and an optimizer's kind."""
        if checkpointing:
            kept = self.fixed_checkpointed + rows * self.per_row_checkpointed
        else:
            kept = self.fixed + rows * self.per_row
        return self.weights + self.factors * (2 + STATE[kind]) + SLACK * kept + context


def load_base(recipe: Recipe, divide: Callable[[nn.Module], None] | None = None) -> Any:
    """The base on the best device, its frozen weights in the precision that the run works in, or in
    as few bits as it asks for. divide: as `models.load` takes it."""
    device = models.pick_device()
    dtype = DTYPES[precision_of(recipe, device)]
    return models.load(
        recipe.base,
        device=device,
        dtype=dtype,
        clip_skip=recipe.clip_skip,
        zero_terminal_snr=recipe.zero_terminal_snr,
        t5_tokenizer=recipe.t5_tokenizer,
        bits=recipe.memory.base_bits,
        divide=divide,
    )


def precision_of(recipe: Recipe, device: str | torch.device) -> Precision:
    """As asked; where a memory is stated and float32 is not insisted on, half on an NVIDIA GPU."""
    if recipe.memory.vram is None or recipe.precision != "float32":
        return recipe.precision
    if torch.device(device).type != "cuda":
        return "float32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def imitated(precision: Precision, device: str | torch.device) -> str:
    """What to tell of a precision that this processor has not, and imitates slowly; or ""."""
    own = {"bf16": "_is_mkldnn_bf16_supported", "fp16": "_is_mkldnn_fp16_supported"}
    if torch.device(device).type != "cpu" or precision == "float32":
        return ""
    known = getattr(torch.ops.mkldnn, own[precision], None)  # not in every build
    if known is None or known():
        return ""
    return (
        f"this processor has no {precision} of its own: steps will take many times as long as with "
        "precision=float32 (`variegate doctor` measures both)"
    )


def autocast(model: Any, precision: Precision) -> Any:
    """Half precision where it is safe, while the block runs; nothing for float32."""
    kind, device = DTYPES[precision], torch.device(model.device).type
    return torch.autocast(device, dtype=kind, enabled=kind != torch.float32)


@contextmanager
def checkpointed(
    model: Any, wanted: bool, *, how: Callable[..., Any] | None = None
) -> Iterator[None]:
    """While the block runs the UNet keeps what enters its blocks, and works the rest out again.

    Not the re-entrant form: with frozen weights nothing that enters the first block has a
    gradient, and that form would then silently give none.
    """
    if not wanted:
        yield
        return
    model.network.enable_gradient_checkpointing(how or _again)
    try:
        yield
    finally:
        model.network.disable_gradient_checkpointing()


def layout_of(model: Any) -> torch.memory_format:
    """Channels last where tensor cores want it: half precision on a GPU.

    On CPUs oneDNN orders each layer's input as it likes: float32 steps were 0 to 20 % slower with
    channels last and bf16 steps the same, at a second copy of the weights.
    """
    half = model.dtype != torch.float32 and torch.device(model.device).type == "cuda"
    return torch.channels_last if half else torch.contiguous_format


@contextmanager
def laid_out(model: Any) -> Iterator[None]:
    """The network in the memory layout that it is quickest in, as it was afterwards."""
    if layout_of(model) == torch.contiguous_format:
        yield
        return
    model.network.to(memory_format=layout_of(model))
    try:
        yield
    finally:
        model.network.to(memory_format=torch.contiguous_format)


@contextmanager
def compiled(model: Any, wanted: bool) -> Iterator[None]:
    """While the block runs the network's repeated blocks go through torch.compile.

    Blocks, as the whole would be compiled for minutes more at every switch of the adapter.
    Raises: RecipeError when they cannot be compiled.
    """
    if not wanted:
        yield
        return
    blocks = [part for part in model.network.modules() if type(part).__name__ in BLOCKS]
    for block in blocks:
        block.compile(dynamic=False, backend=BACKEND)
    try:
        # Each width and side of a UNet's blocks is compiled for itself, with and without adapter.
        with torch._dynamo.config.patch(recompile_limit=128):
            yield
    except torch._dynamo.exc.TorchDynamoException as error:
        raise RecipeError(
            f"memory.compile: torch.compile failed: {' '.join(str(error).split()[:40])}; it needs "
            "a C++ compiler (and Triton on a GPU): install one, or leave memory.compile off"
        ) from error
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def settle(recipe: Recipe, model: Any, on: Attached, *, rows: int, side: int) -> Means:
    """By what means to run: as asked, or what fits `memory.vram` at the least cost in time.

    rows: of one step, with those beside the pictures. side: of the pictures, in pixels. Tried in
    order: all as asked, fewer rows at a time, then gradient checkpointing; 8-bit state where
    bitsandbytes is there.
    Raises: RecipeError when the least does not fit, with how much it takes.
    """
    memory, plan = recipe.memory, recipe.optimizer
    precision = precision_of(recipe, model.device)
    if memory.vram is None:
        return Means(plan, precision, bool(memory.gradient_checkpointing))
    needs = count(model, on, precision=precision, side=side)
    cuda = torch.device(model.device).type == "cuda"
    context = CONTEXT if cuda else 0.0
    least = float("inf")
    by_hand = memory.gradient_checkpointing
    for checkpointing in (False, True) if by_hand is None else (by_hand,):
        for size in _halves(min(plan.micro_batch or rows, rows)):
            for kind in _kinds(plan, cuda):
                total = needs.total(
                    size, kind=kind.kind, checkpointing=checkpointing, context=context
                )
                least = min(least, total)
                if total <= memory.vram * GIB:
                    chosen = kind.model_copy(update={"micro_batch": size if size < rows else None})
                    weights = f"{precision}{_held(model, precision)}"
                    why = _sentence(memory.vram, total, weights, checkpointing, chosen, rows)
                    return Means(chosen, precision, checkpointing, why)
    fewer = "" if model.bits == 4 else f", or memory.base_bits={4 if model.bits else 8}"
    raise RecipeError(
        f"memory.vram: {memory.vram:g} GiB do not hold this run, which takes about "
        f"{least / GIB:.1f} GiB at the least ({needs.weights / GIB:.1f} of them weights in "
        f"{f'{model.bits} bits' if model.bits else precision}): use a smaller resolution or rank, "
        f"or a smaller base{fewer}"
    )


def read_means(entry: dict[str, Any]) -> Means:
    """The means of a journal line, so that a run goes on as it began, on other machines too."""
    plan = Recipe.build({"optimizer": entry["optimizer"]}, where="the journal").optimizer
    return Means(plan, entry["precision"], bool(entry["gradient_checkpointing"]), entry["text"])


def count(model: Any, on: Attached, *, precision: Precision, side: int) -> Needs:
    """What a pass over pictures of `side` pixels keeps, from three passes over small ones."""
    whole = side // int(model.downscale)
    middle = whole if whole < 32 else 8 * round(whole / 16)
    small = max(8, 8 * round(middle / 16)) if middle >= 16 else middle
    one, two = _kept(model, precision, small, 1), _kept(model, precision, small, 2)
    large = _kept(model, precision, middle, 1) if middle != small else one
    found = []
    for i in (0, 1):
        row = two[i] - one[i]
        fixed = float(one[i] - row)
        growth = (large[i] - one[i]) / (middle**2 - small**2) if middle != small else 0.0
        found += [fixed, row + growth * (whole**2 - small**2)]
    parts = _frozen(model)
    learnt = {id(p) for _, p in on.named_parameters()}
    weights = sum(t.nbytes for part in parts for t in _tensors(part) if id(t) not in learnt)
    factors = sum(p.nbytes for _, p in on.named_parameters())
    return Needs(weights, factors, *found)


def _kept(model: Any, precision: Precision, side: int, rows: int) -> tuple[int, int]:
    """(bytes that autograd keeps of one pass, the same with gradient checkpointing)."""
    frozen = _frozen(model)
    seen = {_storage(t) for part in frozen for t in _tensors(part)}
    kept, units, entering = 0, list[int](), 0

    def pack(tensor: Tensor) -> None:
        nonlocal kept
        if (place := _storage(tensor)) not in seen:
            seen.add(place)
            alive.append(tensor)  # or its address could be given to the next one
            kept += tensor.untyped_storage().nbytes()

    def unit(module: Any, *given: Any) -> Any:
        nonlocal entering
        before = kept
        answer = module(*given)
        units.append(kept - before)
        entering += given[0].nbytes
        return answer

    alive: list[Tensor] = []
    device, channels = model.device, model.latent_channels
    latents = torch.zeros(rows, channels, side, side, device=device)
    with (
        torch.random.fork_rng(),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing),
        autocast(model, precision),
        checkpointed(model, True, how=unit),
    ):
        model.predict(latents, torch.zeros(rows, device=device).long(), model.embed([""] * rows))
    return kept, kept - sum(units) + entering + max(units, default=0)


def _frozen(model: Any) -> list[nn.Module]:
    """The networks of a base: its own, the autoencoder, and what text encoders it has."""
    return [part for part in vars(model).values() if isinstance(part, nn.Module)]


def _tensors(part: nn.Module) -> Iterator[Tensor]:
    """All that a network holds; layers in few bits hold theirs as buffers."""
    yield from part.parameters()
    yield from part.buffers()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _again(module: Any, *given: Any) -> Any:
    return checkpoint(module.__call__, *given, use_reentrant=False)


def _halves(rows: int) -> Iterator[int]:
    yield rows
    while rows > 1:
        rows = (rows + 1) // 2
        yield rows


def _kinds(plan: OptimizerPlan, cuda: bool) -> list[OptimizerPlan]:
    """The plan, and the same with its state in 8 bits where that can be had."""
    if type(plan) is not AdamW or not cuda or importlib.util.find_spec("bitsandbytes") is None:
        return [plan]
    return [plan, AdamW8bit(**plan.model_dump(exclude={"kind"}))]


def _held(model: Any, precision: Precision) -> str:
    """In what the weights are, beside a precision."""
    if model.bits:
        return f" passes, weights in {model.bits} bits"
    same = next(model.network.parameters()).dtype == DTYPES[precision]
    return " weights" if same else " passes, weights as given"


def _sentence(
    vram: float,
    total: float,
    weights: str,
    checkpointing: bool,
    plan: OptimizerPlan,
    rows: int,
) -> str:
    words = [
        weights,
        plan.kind,
        f"{plan.micro_batch or rows} of {rows} rows at a time",
        "gradient checkpointing" if checkpointing else "no gradient checkpointing",
    ]
    return (
        f"to fit {vram:g} GiB: {', '.join(words)}; an estimated {total / GIB:.2f} GiB, weights, "
        "optimizer and what a pass keeps counted"
    )
