"""How long a picture may be looked at before it is learnt by heart.

The steps until memorising starts grow in proportion to the number of pictures, those until a model
draws well hardly do (Bonnaire et al. 2025, "Why Diffusion Models Don't Memorize", arXiv
2505.17638). So what matters is views per picture, steps x batch / pictures, and few pictures leave
a narrow window.
"""

from __future__ import annotations

from dataclasses import dataclass

from variegate.recipe import Recipe

# Views per picture. What is usual, from the documentation of those who train this: 500 steps on the
# five pictures of diffusers' DreamBooth LoRA example are 100; ten epochs of ten repeats, as guides
# to kohya's scripts have it, are 100; 750 steps of two on 14 pictures in PEFT's benchmark of image
# generation are 107; 500 steps of four on five in diffusers' SDXL example, the longest, are 400.
USUAL, MOST = 150, 400
# Altered variants are other pictures in part; that they double what a picture bears is a guess. The
# pocket's shipped recipe alters pictures, shows each of the demo's about 400 times, and ends well.
ALTERED = 2
ALTERING = ("zoom_shift", "new_background", "crop", "affine", "erase")


@dataclass(frozen=True)
class Budget:
    """views: of each picture in the whole run. most: beyond which memorising is to be feared.
    steps: an optimizer step count that gives the usual number of views."""

    views: float
    most: float
    steps: int

    @property
    def exceeded(self) -> bool:
        return self.views > self.most


def budget(*, pictures: int, steps: int, batch_size: int, altered: bool) -> Budget:
    """What a run spends on each picture, beside what is usual.

    pictures: that are trained on, copies of one counted once. altered: whether steps see them
    moved, cut or on other grounds.
    """
    bears = ALTERED if altered else 1
    return Budget(
        views=steps * batch_size / pictures,
        most=float(MOST * bears),
        steps=max(1, round(USUAL * bears * pictures / batch_size)),
    )


def budget_note(recipe: Recipe, pictures: int) -> str | None:
    """A warning for a recipe that looks at each picture far too often; None where it does not."""
    plan = recipe.optimizer
    altered = any(getattr(recipe.strategies, name) is not None for name in ALTERING)
    spent = budget(pictures=pictures, steps=plan.steps, batch_size=plan.batch_size, altered=altered)
    if not spent.exceeded:
        return None
    return (
        f"{plan.steps} steps of {plan.batch_size} on {pictures} pictures show each of them "
        f"{spent.views:.0f} times; beyond about {spent.most:.0f} they are learnt by heart: set "
        f"optimizer.steps={spent.steps}, or add pictures"
    )
