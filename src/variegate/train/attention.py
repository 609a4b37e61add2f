"""Where the base looks for a word in a picture: its own cross-attention, as a map.

A picture is noised a little, the base is asked to clean it under a prompt with the word in it, and
what each place pays the word in attention is averaged over layers, heads, noise levels and draws
(Tang et al. 2022, "What the DAAM", arXiv 2210.04885, who take it over the steps of a sample). No
weights are needed beyond the base's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from variegate import seeds

# Of the noise schedule: what is there shows still, and where exactly is being asked.
LEVELS = (0.2, 0.35, 0.5)
DRAWS = 2  # of noise at each level


def attention_map(
    model: Any, pixels: Float[Tensor, "3 h w"], prompt: str, word: str
) -> Float[Tensor, "h w"] | None:
    """How much each place of a picture in 0..1 attends to a word of the prompt, from 0 to 1.

    None where the prompt does not have the word, or the base has no cross-attention to look at.
    """
    tokens = _tokens_of(model.tokenizer, prompt, word)
    if not tokens:
        return None
    latent = model.encode(pixels[None] * 2 - 1).float().cpu()
    levels = model.schedule.timesteps
    timesteps = torch.tensor([int(level * levels) for level in LEVELS for _ in range(DRAWS)])
    clean = latent.expand(len(timesteps), *latent.shape[1:])
    noise = torch.randn(clean.shape, generator=seeds.at(0, "attention map"))
    with torch.no_grad(), _recorded(model.network) as seen:
        words = model.embed([prompt]).repeat(len(timesteps))
        model.predict(model.schedule.noised(clean, noise, timesteps), timesteps, words)
    if not seen:
        return None
    height, width = latent.shape[2:]
    maps = []
    for probabilities in seen:  # [rows, places, tokens] of one layer
        paid = probabilities[..., tokens].mean((0, 2))
        map_ = laid_out(paid / paid.mean(), height, width)[None, None]
        maps.append(F.interpolate(map_, pixels.shape[1:], mode="bicubic")[0, 0])
    mean = torch.stack(maps).mean(0)
    return (mean - mean.min()) / (mean.max() - mean.min()).clamp_min(1e-6)


def laid_out(places: Float[Tensor, " n"], height: int, width: int) -> Float[Tensor, "rows columns"]:
    """A layer's places, row by row, as the grid that is left of latents halved some times."""
    down = round((height * width / len(places)) ** 0.5)
    return places.reshape(-(-height // down), -1)


def _tokens_of(tokenizer: Any, prompt: str, word: str) -> list[int]:
    """Where the word's tokens stand in the prompt's, the start token counted."""
    inner = tokenizer(word, add_special_tokens=False).input_ids
    whole = tokenizer(prompt, truncation=True).input_ids
    for start in range(len(whole) - len(inner) + 1):
        if inner and whole[start : start + len(inner)] == inner:
            return list(range(start, start + len(inner)))
    return []


@contextmanager
def _recorded(unet: Any) -> Iterator[list[Tensor]]:
    """What the cross-attention layers pay to each token, head after head, while this is open."""
    seen: list[Tensor] = []
    before = dict(unet.attn_processors)
    unet.set_attn_processor(
        {
            name: _Recorder(seen) if ".attn2." in name else processor
            for name, processor in before.items()
        }
    )
    try:
        yield seen
    finally:
        unet.set_attn_processor(before)


class _Recorder:
    """Cross-attention with its probabilities written down, as diffusers calls a processor."""

    def __init__(self, seen: list[Tensor]) -> None:
        self.seen = seen

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        read = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(x)
            for x in (attn.to_q(hidden_states), attn.to_k(read), attn.to_v(read))
        )
        paid = attn.get_attention_scores(query, key, attention_mask)
        self.seen.append(paid.detach().float().cpu())
        found = attn.batch_to_head_dim(torch.bmm(paid, value))
        answer: Tensor = attn.to_out[1](attn.to_out[0](found))
        return answer
