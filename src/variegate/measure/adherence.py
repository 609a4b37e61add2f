"""Whether the adapter still does what the prompt says, as well as its base does."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from variegate.measure.evidence import Line, View
from variegate.measure.paired import Difference, summarise, summarise_gap

AT_LEAST_LINES = 3


@dataclass(frozen=True)
class Adherence:
    """scaled: change of the contrast in units of the base's own (0 as the base, -1 prompts no
    longer tell pictures apart). cosine: plain change of the cosine of picture and prompt.
    base_gap: the base's contrast itself."""

    scaled: Difference
    cosine: Difference
    base_gap: float


def compare_adherence(
    view: View, rows: tuple[int, ...], lines: tuple[Line, ...], *, unit: float | None = None
) -> Adherence | str:
    """The adapter's pictures against the base's, each beside the words it was drawn from.

    rows: which rows of `view.texts` belong to the lines. unit: the contrast to measure in, however
    small that of this view's base is; None: the base's own. Both models' pictures are compared with
    the base's words, the class noun in place of the trigger, which no text tower knows.

    Cosines of different encoders live on different scales, and an adapter that rightly draws one
    subject changes all of them alike. So the headline is a contrast: the cosine with a picture's
    own prompt less the mean cosine with the other prompts of the set, as a share of the base's own
    contrast. A model that pays no heed to prompts scores -1 whatever it draws.

    Returns a sentence why not, when it cannot be had.
    """
    if view.texts is None:
        return f"{view.encoder} has no text tower; name a CLIP encoder as well"
    if len({line.base_prompt for line in lines}) < AT_LEAST_LINES:
        return f"fewer than {AT_LEAST_LINES} different prompts"
    texts = view.texts[list(rows)]
    differs = torch.tensor([[a.base_prompt != b.base_prompt for b in lines] for a in lines])
    contrasts, cosines, base_contrasts, base_cosines = [], [], [], []
    for i, line in enumerate(lines):
        own_a, gap_a = _contrast(view.of_adapter(line), texts, i, differs[i])
        own_b, gap_b = _contrast(view.of_base(line), texts, i, differs[i])
        contrasts.append(gap_a.tolist())
        cosines.append(own_a.tolist())
        base_contrasts.append(gap_b.tolist())
        base_cosines.append(own_b.tolist())
    base_gap = summarise(base_contrasts, tail="greater", address="adherence.base")
    if unit is None and (base_gap.low <= 0 or base_gap.p >= 0.05):
        return f"{view.encoder} does not see the base follow these prompts either"
    scale = unit or base_gap.value
    scaled, base_scaled = (
        [[v / scale for v in values] for values in of] for of in (contrasts, base_contrasts)
    )
    return Adherence(
        summarise_gap(scaled, base_scaled, address="adherence"),
        summarise_gap(cosines, base_cosines, address="adherence.cosine"),
        float(np.round(scale, 6)),
    )


def _contrast(
    pictures: Float[Tensor, "k d"], texts: Float[Tensor, "l d"], own: int, differs: Tensor
) -> tuple[Tensor, Tensor]:
    """Per picture: the cosine with its own prompt, and how much that exceeds the others' mean."""
    cosines = pictures @ texts.T
    return cosines[:, own], cosines[:, own] - cosines[:, differs].mean(1)
