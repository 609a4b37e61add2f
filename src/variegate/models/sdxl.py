"""Stable Diffusion XL: two text encoders, and a UNet that is told the sizes of pictures."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from jaxtyping import Float, Real
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from variegate.models.face import Conditioning, DiffusionModel
from variegate.models.text import penultimate_layer, zero_rows


@dataclass(eq=False, kw_only=True)
class StableDiffusionXL(DiffusionModel):
    """zeros_for_empty: the empty caption reads as zeros, as the base was trained without words and
    as diffusers' `force_zeros_for_empty_prompt` has it; else as the encoders read "".

    Source: Podell et al. 2023, arXiv 2307.01952, section 2.
    """

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    tokenizer_2: CLIPTokenizer
    zeros_for_empty: bool = True

    @property
    def network(self) -> UNet2DConditionModel:
        return self.unet

    def embed(self, prompts: list[str], *, pixels: int | None = None) -> Conditioning:
        one, _ = penultimate_layer(self.text_encoder, self.tokenizer, prompts, skip=self.clip_skip)
        two, pooled = penultimate_layer(
            self.text_encoder_2, self.tokenizer_2, prompts, skip=self.clip_skip
        )
        assert pooled is not None
        embeddings = torch.cat([one, two], dim=-1)
        if self.zeros_for_empty:
            embeddings, pooled = zero_rows(embeddings, prompts), zero_rows(pooled, prompts)
        side = float(pixels or self.resolution)
        sizes = torch.tensor([[side, side, 0.0, 0.0, side, side]], device=self.device)
        return Conditioning(embeddings, pooled, sizes.repeat(len(prompts), 1))

    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        words = words.to(self.device, self.dtype)
        answer: Tensor = self.unet(
            latents.to(self.device, self.dtype),
            timesteps.to(self.device),
            encoder_hidden_states=words.embeddings,
            added_cond_kwargs={"text_embeds": words.pooled, "time_ids": words.sizes},
            return_dict=False,
        )[0]
        return answer.to(latents.dtype)
