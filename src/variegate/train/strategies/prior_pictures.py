"""Train class pictures beside the subject's, so that the class stays what it is.

Prior preservation as DreamBooth has it (Ruiz et al. 2023, arXiv 2208.12242): pictures of the class
under its noun, given or drawn by the base, with the loss of any training picture.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from variegate import seeds
from variegate.errors import RecipeError
from variegate.images import ImageSet
from variegate.measure.prompts import article
from variegate.recipe import PriorPictures, Recipe
from variegate.sample import Request
from variegate.train.frame import Frame, cut_middle
from variegate.train.strategies.base import Beside, Rows, Setting, Strategy, draw_kept


class TrainTheClassToo(Strategy):
    def __init__(self, plan: PriorPictures, recipe: Recipe) -> None:
        self.plan = plan
        self.recipe = recipe
        self.size = plan.batch_size or recipe.optimizer.batch_size

    def prepare(self, setting: Setting) -> None:
        """Raises: RecipeError without class noun or pictures to take its place."""
        model, recipe = setting.model, self.recipe
        noun = recipe.class_noun
        if not noun and self.plan.images is None:
            raise RecipeError(
                "strategies.prior_pictures: no class is named; give class_noun (--class NOUN) or "
                "a folder of class pictures (strategies.prior_pictures.images)"
            )
        self.schedule = model.schedule
        prompt = article(noun or "picture")
        prompt = prompt if model.pocket else f"a photo of {prompt}"
        if self.plan.images is not None:
            pictures = ImageSet.read(Path(self.plan.images))
        else:
            first = seeds.number(recipe.seed, "prior_pictures") % 1_000_000
            asked = [Request(prompt, first + i, group="prior") for i in range(self.plan.count)]
            pictures = draw_kept(setting, asked, "prior")
        side = recipe.resolution or model.resolution
        self.captions = [picture.prompt or prompt for picture in pictures]
        latents, self.frames = [], list[Frame | None]()
        for picture in pictures:
            square, frame = cut_middle(picture.open(), (side, side))
            self.frames.append(frame)
            pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).float() / 127.5 - 1
            generator = seeds.at(recipe.seed, "prior encode", picture.key)
            latents.append(model.encode(pixels[None], generator)[0].float().cpu())
        self.latents = torch.stack(latents)

    def beside(self, step: int) -> Beside | None:
        rng = seeds.at(self.recipe.seed, "prior", step)
        picked = torch.randint(len(self.latents), (self.size,), generator=rng)
        timesteps = torch.randint(self.schedule.timesteps, (self.size,), generator=rng)
        clean = self.latents[picked]
        noise = torch.randn(clean.shape, generator=rng)
        prompts = [self.captions[i] for i in picked.tolist()]
        frames = [self.frames[i] for i in picked.tolist()]
        rows = Rows(self.schedule.noised(clean, noise, timesteps), timesteps, prompts, frames)
        return Beside(rows, prompts, self.schedule.target(clean, noise, timesteps))

    def beside_weight(self) -> float:
        return self.plan.weight * self.control.hold
