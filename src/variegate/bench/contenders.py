"""Who is compared: every strategy alone, combinations, and what the field does by default.

All begin from the same plain recipe, so that a strategy's effect is its own. The field's settings
are those that other trainers ship or document for one subject on Stable Diffusion 1.x; on the
pocket, which is small, with one common factor on their learning rates: `FACTOR`, the best of those
tried by the diffusers setting's likeness there (`tools/field_rates.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from variegate import recipes
from variegate.catalogue import KINDS
from variegate.errors import RequestError
from variegate.recipe import Recipe, Strategies

Group = Literal["plain", "strategy", "kind", "knob", "field", "combination", "default"]
# Drawn as a verdict of the product would be, in fewer denoising steps.
QUICK = ("sampling.preset=quick", "sampling.steps=10")
FACTOR = 16.0


@dataclass(frozen=True)
class Contender:
    """A recipe to be compared: a shipped one with settings on top.

    shared: settings that all contenders of a benchmark have, laid on last.
    """

    name: str
    group: Group
    settings: tuple[str, ...] = ()
    recipe_name: str = "pocket-plain"
    source: str = ""
    shared: tuple[str, ...] = QUICK

    def recipe(self) -> Recipe:
        return recipes.read(self.recipe_name, settings=(*self.settings, *self.shared))


def _setting(
    name: str, source: str, *, rank: int, alpha: float, lr: float, steps: int, batch: int, more: str
) -> Contender:
    settings = (
        f"adapter.rank={rank}",
        f"adapter.alpha={alpha}",
        f"optimizer.lr={lr:g}",
        f"optimizer.steps={steps}",
        f"optimizer.batch_size={batch}",
        "strategies.flip=off",
    )
    return Contender(name, "field", (*settings, *more.split()), source=source)


def field(factor: float) -> tuple[Contender, ...]:
    """What the field does by default, its learning rates times `factor`.

    Pictures seen are as documented; steps of other batches stay as they are, and epochs are of 12.
    """
    return (
        _setting(
            "diffusers",
            "huggingface/diffusers, examples/dreambooth/README.md",
            rank=4,
            alpha=4.0,
            lr=factor * 1e-4,
            steps=500,
            batch=1,
            more="",
        ),
        _setting(
            "kohya",
            "kohya-ss/sd-scripts, docs/train_network.md",
            rank=16,
            alpha=1.0,
            lr=factor * 1e-4,
            steps=1600,
            batch=1,
            more=f"adapter.text_encoder=true optimizer.text_encoder_lr={factor * 1e-5:g}",
        ),
        _setting(
            "OneTrainer",
            "Nerogar/OneTrainer, training_presets (SD 1.5 LoRA)",
            rank=16,
            alpha=1.0,
            lr=factor * 3e-4,
            steps=300,
            batch=4,
            more=f"adapter.layers=attention+feedforward adapter.text_encoder=true "
            f"optimizer.text_encoder_lr={factor * 3e-4:g}",
        ),
        _setting(
            "ai-toolkit",
            "ostris/ai-toolkit, default job of its interface",
            rank=32,
            alpha=32.0,
            lr=factor * 1e-4,
            steps=3000,
            batch=1,
            more="adapter.layers=attention+feedforward+convolution adapter.convolution_rank=16 "
            "optimizer.weight_decay=0.0001 strategies.caption_dropout.p=0.05",
        ),
    )


FIELD = field(FACTOR)


def knobs(plain: Recipe) -> tuple[Contender, ...]:
    """One setting alone, as far as the plain recipe has it otherwise."""
    plan, steps = plain.adapter, plain.optimizer.steps
    ranks = [r for r in (4, 16, 64) if r != getattr(plan, "rank", None)]
    flip = [("no flip", "strategies.flip=off")] if plain.strategies.flip else []
    alone = {
        **dict(flip),
        **{f"rank {rank}": f"adapter.rank={rank} adapter.alpha={rank}" for rank in ranks},
        "half the rate": f"optimizer.lr={plain.optimizer.lr / 2:g}",
        "half the steps": f"optimizer.steps={steps // 2}",
        "LoRA dropout .1": "adapter.dropout=0.1",
        "weight decay .1": "optimizer.weight_decay=0.1",
        "weight decay .1 on the product": "optimizer.weight_decay=0.1 "
        "optimizer.weight_decay_on=product",
        "rsLoRA": "adapter.scale=rslora",
        "orthogonal start": "adapter.init=orthogonal",
        "text encoder too": "adapter.text_encoder=true",
        "early stopping": "guard.mode=stop",
        "autopilot": "guard.mode=autopilot",
    }
    return tuple(Contender(name, "knob", tuple(told.split())) for name, told in alone.items())


COMBINATIONS = (
    Contender(
        "stay near + zoom and shift",
        "combination",
        ("strategies.stay_near=on", "strategies.zoom_shift=on"),
    ),
    Contender(
        "stay near + masked + zoom and shift",
        "combination",
        ("strategies.stay_near=on", "strategies.masked_loss=on", "strategies.zoom_shift=on"),
    ),
    Contender(
        "stay near + zoom and shift + new background",
        "combination",
        ("strategies.stay_near=on", "strategies.zoom_shift=on", "strategies.new_background=on"),
    ),
    Contender(
        "stay near + layout prior .85",
        "combination",
        ("strategies.stay_near=on", "strategies.layout_prior.boundary=0.85"),
    ),
)
DEFAULT = Contender("default", "default", (), "pocket")
PLAIN = Contender("plain", "plain")


@cache
def contenders() -> dict[str, Contender]:
    """All of the pocket's by name: plain and default first."""
    # Flip is in plain itself, and all pictures are square.
    return assemble(PLAIN, DEFAULT, FIELD, without=("flip", "buckets"))


def assemble(
    plain: Contender,
    default: Contender,
    field: Sequence[Contender],
    *,
    without: Sequence[str] = (),
) -> dict[str, Contender]:
    """All that can be compared with a plain recipe, by name, plain and default first.

    without: strategies that are not tried alone.
    """

    def on_top(found: Contender, of: Contender = plain) -> Contender:
        return replace(found, recipe_name=of.recipe_name, shared=of.shared)

    guided = default.recipe().guard.mode == "autopilot"
    other = ("default, watched", "watch") if guided else ("default, autopilot", "autopilot")
    alone = (
        Contender(name, "strategy", (f"strategies.{name}=on",))
        for name in Strategies.model_fields
        if name not in without
    )
    kinds = (Contender(kind, "kind", (f"adapter.kind={kind}",)) for kind in KINDS if kind != "lora")
    guard = Contender(other[0], "combination", (f"guard.mode={other[1]}",))
    every = (
        *(plain, default, *map(on_top, (*field, *COMBINATIONS)), on_top(guard, default)),
        *map(on_top, (*alone, *knobs(plain.recipe()), *kinds)),
    )
    return {found.name: found for found in every}


def named(names: Sequence[str], known: Mapping[str, Contender]) -> list[Contender]:
    """The contenders of some names, or groups of them.

    Raises: RequestError with the names that there are.
    """
    picked = dict[str, Contender]()
    for name in names:
        group = {k: c for k, c in known.items() if c.group == name}
        if name not in known and not group:
            raise RequestError(
                f"no strategy or group is called {name!r}; there are {', '.join(known)}; and the "
                "groups plain, default, field, strategy, kind, knob, combination"
            )
        picked |= {name: known[name]} if name in known else group
    return list(picked.values())
