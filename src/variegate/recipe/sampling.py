"""What changes how a finished adapter samples: one entry each, and named combinations of them."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from variegate.plugins import Entry

Variety = Literal["off", "low", "medium", "high"]
VARIETIES: tuple[Variety, ...] = get_args(Variety)


class Rescale(Entry):
    """Bring guided predictions back to the spread that unguided ones have (arXiv 2305.08891)."""

    share: float = Field(0.7, gt=0, le=1, description="of the way back")


class CfgPlusPlus(Entry):
    """Guide the clean estimate only and noise it again without guidance (arXiv 2406.08070)."""

    scale: float = Field(
        0.6, ge=0, le=1, description="in the guidance scale's place; 0.6 is about 7.5 there"
    )


class Interval(Entry):
    """Guide only at middle noise, where it helps (arXiv 2404.07724)."""

    low: float = Field(
        0.28, ge=0, description="noise over signal, sigma / alpha, up to which nothing is guided"
    )
    high: float = Field(5.42, gt=0, description="noise over signal above which nothing is guided")

    @model_validator(mode="after")
    def _low_before_high(self) -> Interval:
        if self.low >= self.high:
            raise ValueError("low must lie below high")
        return self


class Delayed(Entry):
    """Guide only once the picture has left the basin that draws it to one place (2411.16738)."""

    way: Literal["basin", "fixed"] = Field(
        "basin",
        description="basin: from the first least distance between asked and empty on, each picture "
        "by its own; fixed: from `until` on",
    )
    until: float = Field(
        0.5, ge=0, lt=1, description="share of the noise schedule where guidance begins at last"
    )
    before: float = Field(
        0.0, le=1, description="guidance scale until then; 0: the empty prompt, below 0: away"
    )


class Autoguidance(Entry):
    """Guide by what the adapter knows better than a weaker one of itself (arXiv 2406.02507)."""

    weight: float = Field(0.5, gt=0, description="of the difference that is added")
    weaker: Literal["base", "scaled", "file"] = Field(
        "scaled", description="who is weaker: no adapter, less of it, or an earlier checkpoint"
    )
    strength: float = Field(0.5, ge=0, lt=1, description="of `scaled`, as a share of the adapter's")
    file: str = Field("", description="of `file`: the earlier checkpoint")
    asked: Literal["same", "empty"] = Field(
        "same", description="what the weaker one is asked: the same prompt, or the empty one"
    )

    @model_validator(mode="after")
    def _a_file_is_named(self) -> Autoguidance:
        if (self.weaker == "file") != bool(self.file):
            raise ValueError("weaker = 'file' and file belong together: give both or neither")
        return self


class LateAdapter(Entry):
    """Let the base lay the picture out, and the adapter act when the noise is lower."""

    early: float = Field(0.0, ge=0, le=1, description="share of its strength at high noise")
    boundary: float = Field(
        0.85, gt=0, lt=1, description="share of the noise schedule below which it acts fully"
    )
    width: float = Field(0.0, ge=0, le=1, description="over which it fades in; 0: at once")


class Cads(Entry):
    """Noise what is read of the prompt while noise is high (arXiv 2310.17347)."""

    strength: float = Field(0.1, gt=0, le=1, description="the paper's s")
    full: float = Field(
        0.6, ge=0, lt=1, description="share of the schedule below which the prompt is whole: tau1"
    )
    none: float = Field(
        0.9, gt=0, le=1, description="share of the schedule above which it is hidden: tau2"
    )
    rescaled: float = Field(
        1.0, ge=0, le=1, description="how far it keeps its mean and spread: psi"
    )

    @model_validator(mode="after")
    def _full_before_none(self) -> Cads:
        if self.full >= self.none:
            raise ValueError("full must lie below none")
        return self


class Particle(Entry):
    """Let the pictures of one prompt push each other apart while noise is high (2310.13102)."""

    weight: float = Field(30.0, gt=0, description="of the push")
    least_noise: float = Field(
        1.0, ge=0, description="noise over signal, sigma / alpha, below which there is none"
    )


class Spell(Entry):
    """Push a prompt's pictures apart where they would land too near (arXiv 2410.06025)."""

    radius: float = Field(
        0.5, gt=0, description="too near: root mean square difference of latents, whose own is 1"
    )
    over: float = Field(1.6, gt=0, description="how far beyond the radius it pushes: lambda")


class Shield(Entry):
    """Push pictures away from those learnt, where they would land too near (arXiv 2410.06025)."""

    images: str = Field("", description="folder of the pictures to keep away from")
    radius: float = Field(
        0.4, gt=0, description="too near: root mean square difference of latents, whose own is 1"
    )
    over: float = Field(1.6, gt=0, description="how far beyond the radius it pushes: lambda")


class NoiseChoice(Entry):
    """Start the pictures of one prompt from noises that lead apart."""

    way: Literal["select", "optimise", "balanced", "antithetic"] = Field(
        "select",
        description="select: of several noises of each seed the one that leads farthest from the "
        "others; optimise: moved apart by their gradient (arXiv 2510.03813); balanced: adding up "
        "to nothing (arXiv 2605.11311); antithetic: every other one the negative of the one before",
    )
    candidates: int = Field(4, ge=2, le=64, description="of `select`: noises of each seed")
    rounds: int = Field(3, ge=1, le=50, description="of `optimise`: steps of the gradient")
    step: float = Field(0.05, gt=0, le=1, description="of `optimise`: how far, as a share of noise")


class SamplingMethods(Entry):
    """Whatever changes how pictures are drawn; a table that is present is on."""

    late_adapter: LateAdapter | None = None
    cads: Cads | None = None
    interval: Interval | None = None
    delayed: Delayed | None = None
    rescale: Rescale | None = None
    cfg_pp: CfgPlusPlus | None = None
    autoguidance: Autoguidance | None = None
    particle: Particle | None = None
    spell: Spell | None = None
    shield: Shield | None = None
    noise_choice: NoiseChoice | None = None

    @property
    def on(self) -> tuple[str, ...]:
        """The names of those that are on."""
        return tuple(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def coupled(self) -> bool:
        """Whether the pictures of one prompt know of each other."""
        return bool({"particle", "spell", "noise_choice"} & set(self.on))

    @property
    def of_base(self) -> SamplingMethods | None:
        """Those that mean anything where there is no adapter; None for none."""
        rest = self.model_copy(update={"late_adapter": None, "autoguidance": None})
        return rest if rest.on else None

    @property
    def dialled(self) -> bool:
        """Whether the adapter acts at more than one strength."""
        weaker = self.autoguidance is not None and self.autoguidance.weaker != "file"
        return self.late_adapter is not None or weaker


@cache
def combination(variety: Variety) -> SamplingMethods | None:
    """The methods of a degree of variety, from `variety.toml`; None for none."""
    if variety == "off":
        return None
    text = (resources.files(__package__) / "variety.toml").read_text(encoding="utf8")
    return SamplingMethods.model_validate(tomllib.loads(text)[variety])


def joined(variety: Variety | None, methods: SamplingMethods | None) -> SamplingMethods | None:
    """A degree's methods with others over them; None where nothing is on."""
    tables: dict[str, Any] = {}
    for part in (combination(variety or "off"), methods):
        if part is not None:
            tables |= part.model_dump(exclude_none=True)
    return SamplingMethods.model_validate(tables) if tables else None
