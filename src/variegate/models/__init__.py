"""The frozen base behind one face: encode, decode, embed, predict, and its noise schedule."""

from variegate.device import pick_device
from variegate.models.sd import StableDiffusion, load

__all__ = ["StableDiffusion", "load", "pick_device"]
