"""`rescale`: guided predictions with the spread of unguided ones.

    p_rescaled = p_guided std(p_asked) / std(p_guided)
    p = share p_rescaled + (1 - share) p_guided

with the standard deviation over all numbers of one picture.

Source: Lin et al., Common Diffusion Noise Schedules and Sample Steps are Flawed, 2023, arXiv
2305.08891, section 3.4.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def rescaled(
    guided: Float[Tensor, "b c y x"], asked: Float[Tensor, "b c y x"], *, share: float
) -> Float[Tensor, "b c y x"]:
    """The guided prediction brought `share` of the way to the spread of the one that was asked."""
    sizes = [part.flatten(1).std(1).view(-1, 1, 1, 1) for part in (asked, guided)]
    back: Tensor = guided * (sizes[0] / sizes[1].clamp(min=1e-12))
    return share * back + (1 - share) * guided
