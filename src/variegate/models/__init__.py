"""The frozen base behind one face: encode, decode, embed, predict, and its noise schedule."""

from variegate.models.sd import StableDiffusion, load

__all__ = ["StableDiffusion", "load"]
