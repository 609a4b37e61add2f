"""Who is compared: every strategy alone, combinations, and what the field does by default.

All begin from the same plain recipe, so that a strategy's effect is its own. The field's settings
are those that other trainers ship or document for one subject on Stable Diffusion 1.x, with one
common factor on their learning rates, since the pocket is small: `FACTOR`, the best of those
tried by the diffusers setting's likeness there (`tools/field_rates.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
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
    """A recipe to be compared: a shipped one with settings on top."""

    name: str
    group: Group
    settings: tuple[str, ...] = ()
    recipe_name: str = "pocket-plain"
    source: str = ""

    def recipe(self) -> Recipe:
        return recipes.read(self.recipe_name, settings=(*self.settings, *QUICK))


def _field(
    name: str, source: str, *, rank: int, alpha: float, lr: float, steps: int, batch: int, more: str
) -> Contender:
    settings = (
        f"adapter.rank={rank}",
        f"adapter.alpha={alpha}",
        f"optimizer.lr={FACTOR * lr:g}",
        f"optimizer.steps={steps}",
        f"optimizer.batch_size={batch}",
        "strategies.flip=off",
    )
    return Contender(name, "field", (*settings, *more.split()), source=source)


# Pictures seen are as documented; steps of other batches stay as they are, and epochs are of 12.
FIELD = (
    _field(
        "diffusers",
        "huggingface/diffusers, examples/dreambooth/README.md",
        rank=4,
        alpha=4.0,
        lr=1e-4,
        steps=500,
        batch=1,
        more="",
    ),
    _field(
        "kohya",
        "kohya-ss/sd-scripts, docs/train_network.md",
        rank=16,
        alpha=1.0,
        lr=1e-4,
        steps=1600,
        batch=1,
        more=f"adapter.text_encoder=true optimizer.text_encoder_lr={FACTOR * 1e-5:g}",
    ),
    _field(
        "OneTrainer",
        "Nerogar/OneTrainer, training_presets (SD 1.5 LoRA)",
        rank=16,
        alpha=1.0,
        lr=3e-4,
        steps=300,
        batch=4,
        more=f"adapter.layers=attention+feedforward adapter.text_encoder=true "
        f"optimizer.text_encoder_lr={FACTOR * 3e-4:g}",
    ),
    _field(
        "ai-toolkit",
        "ostris/ai-toolkit, default job of its interface",
        rank=32,
        alpha=32.0,
        lr=1e-4,
        steps=3000,
        batch=1,
        more="adapter.layers=attention+feedforward+convolution adapter.convolution_rank=16 "
        "optimizer.weight_decay=0.0001 strategies.caption_dropout.p=0.05",
    ),
)
KNOBS = (
    Contender("rank 4", "knob", ("adapter.rank=4", "adapter.alpha=4")),
    Contender("rank 64", "knob", ("adapter.rank=64", "adapter.alpha=64")),
    Contender("half the rate", "knob", ("optimizer.lr=3e-4",)),
    Contender("half the steps", "knob", ("optimizer.steps=120",)),
    Contender("LoRA dropout .1", "knob", ("adapter.dropout=0.1",)),
    Contender("weight decay .1", "knob", ("optimizer.weight_decay=0.1",)),
    Contender(
        "weight decay .1 on the product",
        "knob",
        ("optimizer.weight_decay=0.1", "optimizer.weight_decay_on=product"),
    ),
    Contender("rsLoRA", "knob", ("adapter.scale=rslora",)),
    Contender("orthogonal start", "knob", ("adapter.init=orthogonal",)),
    Contender("text encoder too", "knob", ("adapter.text_encoder=true",)),
    Contender("early stopping", "knob", ("guard.mode=stop",)),
    Contender("autopilot", "knob", ("guard.mode=autopilot",)),
)
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
    Contender("default, autopilot", "combination", ("guard.mode=autopilot",), "pocket"),
)
DEFAULT = Contender("default", "default", (), "pocket")
PLAIN = Contender("plain", "plain")


@cache
def contenders() -> dict[str, Contender]:
    """All of them by name: plain and default first."""
    alone = (
        Contender(name, "strategy", (f"strategies.{name}=on",))
        for name in Strategies.model_fields
        if name not in ("flip", "buckets")  # in plain itself; and of no use where all are square
    )
    without = Contender("no flip", "knob", ("strategies.flip=off",))
    kinds = (Contender(kind, "kind", (f"adapter.kind={kind}",)) for kind in KINDS if kind != "lora")
    every = (PLAIN, DEFAULT, *FIELD, *COMBINATIONS, *alone, without, *KNOBS, *kinds)
    return {found.name: found for found in every}


def named(names: list[str]) -> list[Contender]:
    """The contenders of some names, or groups of them.

    Raises: RequestError with the names that there are.
    """
    known, picked = contenders(), dict[str, Contender]()
    for name in names:
        group = {k: c for k, c in known.items() if c.group == name}
        if name not in known and not group:
            raise RequestError(
                f"no strategy or group is called {name!r}; there are {', '.join(known)}; and the "
                "groups plain, default, field, strategy, kind, knob, combination"
            )
        picked |= {name: known[name]} if name in known else group
    return list(picked.values())
