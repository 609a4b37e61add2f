"""The methods of a plan at work in one batch: what the network is asked, and what is made of it.

    words     late_adapter and cads say how the prompts are read at this step
    guidance  interval, delayed and cfg_pp say how strongly, picture by picture
    asking    the network, for each prompt, and where needed for nothing and of a weaker adapter
    mixing    guidance, autoguidance, rescale
    moving    particle, spell and shield shift clean estimates
    after     cfg_pp puts other noise back

Everything goes row by row, but for particle, spell and noise_choice, which look at the rows of one
group: the pictures of one prompt and strength in a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from variegate.errors import RequestError
from variegate.models import Conditioning, DiffusionModel
from variegate.models.samplers import diffusers_warnings_off
from variegate.recipe import SamplingMethods, SamplingPlan
from variegate.sample.methods import noise_choice, spell
from variegate.sample.methods.autoguidance import autoguided
from variegate.sample.methods.cads import annealed, kept
from variegate.sample.methods.cfg_pp import noised_unguided
from variegate.sample.methods.delayed import Basin
from variegate.sample.methods.interval import guided_at
from variegate.sample.methods.late_adapter import share_at
from variegate.sample.methods.moment import Moment
from variegate.sample.methods.particle import pushed
from variegate.sample.methods.rescale import rescaled

# Both readings of a batch's prompts, asked and empty, with the adapter at a share of its strength.
Words = Callable[[float], tuple[Conditioning, Conditioning]]


@dataclass(frozen=True, eq=False)
class Scene:
    """What methods are told of a batch beside its noise.

    groups: which rows belong together. words, weaker: how prompts are read by the adapter at a
    share of its strength, and who is the weaker one that autoguidance asks (reading by itself), or
    None where the methods do not ask. away: latents that the shield keeps away from. at_once: rows
    that the network is asked together; None: all.
    """

    words: Words
    groups: Int[Tensor, " b"]
    weaker: DiffusionModel | None = None
    weaker_words: tuple[Conditioning, Conditioning] | None = None
    away: Float[Tensor, "k c y x"] | None = None
    at_once: int | None = None


class Conductor:
    """One batch's methods, from its first noise to its last step."""

    def __init__(
        self,
        model: DiffusionModel,
        plan: SamplingPlan,
        methods: SamplingMethods,
        scene: Scene,
        picture_seeds: Sequence[int],
    ) -> None:
        if methods.cfg_pp and plan.sampler not in ("ddim", "euler"):
            raise RequestError(
                f"cfg_pp noises again by itself; found sampler {plan.sampler!r}, expected ddim or "
                "euler"
            )
        self._model = model
        self._plan = plan
        self._on = methods
        self._scene = scene
        self._seeds = picture_seeds
        self._basin = Basin()
        self._renoise: Tensor | None = None

    # --- before the first step ------------------------------------------------------------------

    def noise(self, noise: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c y x"]:
        """The noises to start from, in place of the seeds' own."""
        plan = self._on.noise_choice
        if plan is None:
            return noise
        chosen = noise.clone()
        for group in self._scene.groups.unique():
            rows = (self._scene.groups == group).nonzero().flatten().tolist()
            own = noise[rows]
            if plan.way == "balanced":
                chosen[rows] = noise_choice.balanced(own)
            elif plan.way == "antithetic":
                chosen[rows] = noise_choice.antithetic(own)
            elif plan.way == "optimise":
                chosen[rows] = noise_choice.optimised(
                    own, self._estimate(rows), rounds=plan.rounds, step=plan.step
                ).to(own)
            elif len(rows) > 1:
                seeds = [self._seeds[row] for row in rows]
                more = noise_choice.candidates(own, seeds, plan.candidates)
                n, k = more.shape[:2]
                clean = self._estimate([row for row in rows for _ in range(k)])(more.flatten(0, 1))
                taken = noise_choice.farthest(noise_choice.looks(clean).view(n, k, -1))
                chosen[rows] = more[torch.arange(n), taken]
        return chosen

    def _estimate(self, rows: Sequence[int]) -> noise_choice.Estimate:
        """One-step clean estimates of noises for these rows' prompts, without guidance."""
        scheduler = self._model.sampler(self._plan.sampler)
        with diffusers_warnings_off():
            scheduler.set_timesteps(self._plan.steps, device=self._model.device)
        timestep = scheduler.timesteps[0]
        words = self._words(0, self._share(scheduler, 0))[0][list(rows)]

        def estimate(noise: Float[Tensor, "n c y x"]) -> Float[Tensor, "n c y x"]:
            start = noise.to(self._model.device, torch.float32) * scheduler.init_noise_sigma
            shown = scheduler.scale_model_input(start, timestep)
            moment = Moment.of(self._model.schedule, scheduler, 0, shown)
            return moment.clean(self._ask(self._model, shown, timestep, words))

        return estimate

    # --- one step -------------------------------------------------------------------------------

    def predict(
        self, scheduler: Any, index: int, shown: Float[Tensor, "b c y x"]
    ) -> Float[Tensor, "b c y x"]:
        """The prediction that the sampler goes on with; shown: its latents, scaled for the
        network."""
        moment = Moment.of(self._model.schedule, scheduler, index, shown)
        timestep = scheduler.timesteps[index]
        asked, empty = self._words(index, moment.share)
        towards, without = self._both(moment, shown, timestep, asked, empty)
        scale = self._scales(moment, towards, without)
        guided = towards
        if without is not None:
            guided = without + scale.view(-1, 1, 1, 1) * (towards - without)
        if self._on.autoguidance is not None and self._scene.weaker is not None:
            guided = autoguided(
                guided,
                towards,
                self._weaker(shown, timestep, asked, empty),
                weight=self._on.autoguidance.weight,
            )
        if self._on.rescale is not None:
            guided = rescaled(guided, towards, share=self._on.rescale.share)
        guided = self._moved(moment, guided)
        self._renoise = None
        if self._on.cfg_pp is not None and without is not None and self._is_guided(moment):
            self._renoise = without
        return guided

    def after(
        self,
        scheduler: Any,
        index: int,
        shown: Float[Tensor, "b c y x"],
        prediction: Float[Tensor, "b c y x"],
        latents: Float[Tensor, "b c y x"],
    ) -> Float[Tensor, "b c y x"]:
        """What becomes of the latents that the sampler's step gave."""
        if self._renoise is None:
            return latents
        return noised_unguided(
            latents,
            Moment.of(self._model.schedule, scheduler, index, shown),
            guided=prediction,
            unguided=self._renoise,
            schedule=self._model.schedule,
            scheduler=scheduler,
        )

    # --- how prompts are read -------------------------------------------------------------------

    def _share(self, scheduler: Any, index: int) -> float:
        nothing = torch.empty(0, 1, 1, 1)
        return Moment.of(self._model.schedule, scheduler, index, nothing).share

    def _words(self, index: int, share: float) -> tuple[Conditioning, Conditioning]:
        late, cads, of_adapter = self._on.late_adapter, self._on.cads, 1.0
        if late is not None:
            of_adapter = share_at(share, early=late.early, boundary=late.boundary, width=late.width)
        asked, empty = self._scene.words(of_adapter)
        if cads is not None:
            asked = annealed(
                asked,
                gamma=kept(share, full=cads.full, none=cads.none),
                strength=cads.strength,
                rescaled=cads.rescaled,
                picture_seeds=self._seeds,
                index=index,
            )
        return asked, empty

    # --- how strongly pictures are guided -------------------------------------------------------

    def _is_guided(self, moment: Moment) -> bool:
        """Whether any picture may be guided at this step."""
        if self._plan.guidance_scale <= 1 and self._on.cfg_pp is None:
            return False
        within = self._on.interval
        return within is None or guided_at(moment.ratio, low=within.low, high=within.high)

    def _scales(
        self,
        moment: Moment,
        towards: Float[Tensor, "b c y x"],
        without: Float[Tensor, "b c y x"] | None,
    ) -> Float[Tensor, " b"]:
        scale = self._plan.guidance_scale
        if self._on.cfg_pp is not None:
            scale = self._on.cfg_pp.scale
        scales = torch.full((len(towards),), scale, device=towards.device)
        delayed = self._on.delayed
        if delayed is None or without is None:
            return scales
        begun = torch.full_like(scales, moment.share <= delayed.until, dtype=torch.bool)
        if delayed.way == "basin":
            begun = begun | self._basin.left((towards - without).flatten(1).norm(dim=1))
        return torch.where(begun, scales, torch.full_like(scales, delayed.before))

    # --- asking ---------------------------------------------------------------------------------

    def _both(
        self,
        moment: Moment,
        shown: Float[Tensor, "b c y x"],
        timestep: Tensor,
        asked: Conditioning,
        empty: Conditioning,
    ) -> tuple[Float[Tensor, "b c y x"], Float[Tensor, "b c y x"] | None]:
        if not self._is_guided(moment):
            return self._ask(self._model, shown, timestep, asked), None
        both = Conditioning.join([empty, asked])
        answer = self._ask(self._model, torch.cat([shown, shown]), timestep, both)
        without, towards = answer.chunk(2)
        return towards, without

    def _weaker(
        self,
        shown: Float[Tensor, "b c y x"],
        timestep: Tensor,
        asked: Conditioning,
        empty: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        plan, scene = self._on.autoguidance, self._scene
        assert plan is not None
        assert scene.weaker is not None
        if plan.weaker == "file":
            assert scene.weaker_words is not None
            asked, empty = scene.weaker_words
        else:
            asked, empty = scene.words(plan.strength if plan.weaker == "scaled" else 0.0)
        words = asked if plan.asked == "same" else empty
        return self._ask(scene.weaker, shown, timestep, words)

    def _ask(
        self,
        model: DiffusionModel,
        shown: Float[Tensor, "b c y x"],
        timestep: Tensor,
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        size = len(shown) if self._scene.at_once is None else 2 * self._scene.at_once
        parts = [slice(start, start + size) for start in range(0, len(shown), size)]
        answers = [
            model.predict(shown[rows], timestep.reshape(1).expand(len(shown[rows])), words[rows])
            for rows in parts
        ]
        return torch.cat(answers)

    # --- moving clean estimates -----------------------------------------------------------------

    def _moved(
        self, moment: Moment, prediction: Float[Tensor, "b c y x"]
    ) -> Float[Tensor, "b c y x"]:
        on, scene = self._on, self._scene
        groups = scene.groups.to(prediction.device)
        shifts = []
        if on.particle is not None and moment.ratio >= on.particle.least_noise:
            shifts.append(
                pushed(
                    moment.x,
                    groups,
                    alpha=moment.alpha,
                    sigma=moment.sigma,
                    weight=on.particle.weight,
                )
            )
        if on.spell is not None or on.shield is not None:
            clean = moment.clean(prediction)
            if on.spell is not None:
                felt = spell.neighbours(groups)
                shifts.append(
                    spell.repelled(clean, clean, felt, radius=on.spell.radius, over=on.spell.over)
                )
            if on.shield is not None:
                assert scene.away is not None
                felt = torch.ones(len(clean), len(scene.away), dtype=torch.bool).to(clean.device)
                shifts.append(
                    spell.repelled(
                        clean, scene.away, felt, radius=on.shield.radius, over=on.shield.over
                    )
                )
        for shift in shifts:
            prediction = moment.shifted(prediction, shift)
        return prediction


def plain_scene(asked: Conditioning, empty: Conditioning) -> Scene:
    """A batch of one group, of words that no dial reads anew."""

    def words(share: float) -> tuple[Conditioning, Conditioning]:
        def at(part: Conditioning) -> Conditioning:
            own = torch.ones(len(part)) if part.strength is None else part.strength
            return replace(part, strength=share * own)

        return (asked, empty) if share == 1 else (at(asked), at(empty))

    return Scene(words, torch.zeros(len(asked), dtype=torch.long))
