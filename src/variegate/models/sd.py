"""Stable Diffusion 1.x and 2.x (and the pocket, which is one): the frozen base of an adapter."""

from __future__ import annotations

from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from jaxtyping import Float, Real
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from variegate.models.face import Conditioning, DiffusionModel
from variegate.models.text import last_layer


@dataclass(eq=False, kw_only=True)
class StableDiffusion(DiffusionModel):
    """A UNet that reads the states of one CLIP text encoder."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer

    @property
    def network(self) -> UNet2DConditionModel:
        return self.unet

    def embed(self, prompts: list[str], *, pixels: int | None = None) -> Conditioning:
        return Conditioning(
            last_layer(self.text_encoder, self.tokenizer, prompts, skip=self.clip_skip)
        )

    def predict(
        self,
        latents: Float[Tensor, "b c y x"],
        timesteps: Real[Tensor, " b"],
        words: Conditioning,
    ) -> Float[Tensor, "b c y x"]:
        answer: Tensor = self.unet(
            latents.to(self.device, self.dtype),
            timesteps.to(self.device),
            encoder_hidden_states=words.embeddings.to(self.device, self.dtype),
            return_dict=False,
        )[0]
        return answer.to(latents.dtype)
