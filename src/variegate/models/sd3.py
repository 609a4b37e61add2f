"""Stable Diffusion 3 and 3.5: a transformer that follows a flow, and up to three text encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from jaxtyping import Float, Real
from torch import Tensor
from torch.nn.functional import pad
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel

from variegate.models.face import Conditioning, DiffusionModel
from variegate.models.text import penultimate_layer, tokens

CLIP_TOKENS = 77
T5_TOKENS = 256  # of which the base reads 77 or 256 as it was trained; diffusers' default


@dataclass(eq=False, kw_only=True)
class StableDiffusion3(DiffusionModel):
    """CLIP-L and CLIP-G side by side, filled up to T5's width, then T5's states after them.

    The base was trained with encoders left out at random, so each may be missing: what it would
    have said is zeros.

    Source: Esser et al. 2024, arXiv 2403.03206, section 4 and appendix B.3.
    """

    transformer: SD3Transformer2DModel
    text_encoder: CLIPTextModelWithProjection | None = None
    text_encoder_2: CLIPTextModelWithProjection | None = None
    text_encoder_3: T5EncoderModel | None = None
    tokenizer: CLIPTokenizer | None = None
    tokenizer_2: CLIPTokenizer | None = None
    tokenizer_3: Any = None

    @property
    def network(self) -> SD3Transformer2DModel:
        return self.transformer

    def embed(self, prompts: list[str], *, pixels: int | None = None) -> Conditioning:
        states, pooled = self._clip(prompts)
        width = int(self.transformer.config.joint_attention_dim)
        states = pad(states, (0, width - states.shape[-1]))
        return Conditioning(torch.cat([states, self._t5(prompts)], dim=1), pooled)

    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        words = words.to(self.device, self.dtype)
        answer: Tensor = self.transformer(
            hidden_states=latents.to(self.device, self.dtype),
            timestep=timesteps.to(self.device),
            encoder_hidden_states=words.embeddings,
            pooled_projections=words.pooled,
            return_dict=False,
        )[0]
        return answer.to(latents.dtype)

    def _clip(self, prompts: list[str]) -> tuple[Float[Tensor, "b t d"], Float[Tensor, "b p"]]:
        """Both encoders' states, and both vectors, side by side; zeros for one that is missing."""
        encoders = (self.text_encoder, self.tokenizer), (self.text_encoder_2, self.tokenizer_2)
        read = [
            penultimate_layer(encoder, tokenizer, prompts, skip=self.clip_skip)
            if encoder is not None
            else None
            for encoder, tokenizer in encoders
        ]
        there = [states for states in read if states is not None]
        total = int(self.transformer.config.pooled_projection_dim)
        if not there:
            return self._zeros(prompts, CLIP_TOKENS, 1), self._zeros(prompts, 1, total)[:, 0]
        length = there[0][0].shape[1]
        missing = total - sum(_vector(pooled).shape[-1] for _, pooled in there)
        states = [self._zeros(prompts, length, missing) if r is None else r[0] for r in read]
        pooled = [
            self._zeros(prompts, 1, missing)[:, 0] if r is None else _vector(r[1]) for r in read
        ]
        return torch.cat(states, dim=-1), torch.cat(pooled, dim=-1)

    def _t5(self, prompts: list[str]) -> Float[Tensor, "b t d"]:
        if self.text_encoder_3 is None:
            width = int(self.transformer.config.joint_attention_dim)
            return self._zeros(prompts, T5_TOKENS, width)
        ids = tokens(self.tokenizer_3, prompts, T5_TOKENS).input_ids.to(self.device)
        states: Tensor = self.text_encoder_3(ids)[0]
        return states

    def _zeros(self, prompts: list[str], length: int, width: int) -> Float[Tensor, "b t d"]:
        return torch.zeros(len(prompts), length, width, device=self.device, dtype=self.dtype)


def _vector(pooled: Tensor | None) -> Tensor:
    assert pooled is not None  # every encoder of this family has a projection
    return pooled
