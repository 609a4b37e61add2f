"""The frozen base behind one face: encode, decode, embed, predict, schedule, sampler."""

from variegate.device import pick_device
from variegate.models.face import Conditioning, DiffusionModel
from variegate.models.loading import fingerprint, load

__all__ = ["Conditioning", "DiffusionModel", "fingerprint", "load", "pick_device"]
