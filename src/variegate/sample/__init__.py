"""Pictures from a base with or without an adapter: the same noise for the same seed, resumable."""

from variegate.sample.apart import Hands, Source, sample_apart
from variegate.sample.denoise import denoise, initial_noise
from variegate.sample.draw import Request, grid, sample, seconds_to_draw
from variegate.sample.files import FORMATS, Format, Named
from variegate.sample.sheet import contact_sheet, sample_json
from variegate.sample.vary import varied

__all__ = [
    "FORMATS",
    "Format",
    "Hands",
    "Named",
    "Request",
    "Source",
    "contact_sheet",
    "denoise",
    "grid",
    "initial_noise",
    "sample",
    "sample_apart",
    "sample_json",
    "seconds_to_draw",
    "varied",
]
