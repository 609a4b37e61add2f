"""`autoguidance`: away from what a weaker adapter would draw.

    p = p_guided + weight (p_asked - p_weaker)

The weaker one makes the same mistakes more: an earlier checkpoint, less of the adapter, or the
base. With no guidance else it is Karras et al.'s D_weak + w (D - D_weak), weight = w - 1.

Source: Karras et al., Guiding a Diffusion Model with a Bad Version of Itself, 2024, arXiv
2406.02507, equation 3; together with classifier-free guidance as a sum of the two differences.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def autoguided(
    guided: Float[Tensor, "b c y x"],
    asked: Float[Tensor, "b c y x"],
    weaker: Float[Tensor, "b c y x"],
    *,
    weight: float,
) -> Float[Tensor, "b c y x"]:
    """The guided prediction and `weight` of what the weaker one lacks."""
    return guided + weight * (asked - weaker)
