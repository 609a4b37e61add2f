"""Frozen networks that turn pictures into rows of features, behind one face.

`load` finds one by name. The pocket encoder ships with the package; DINOv2, CLIP and SigLIP come
from a local folder or the hub; SSCD from its published TorchScript file, Inception from one that
the user vouches for. The pixel encoders (`variegate.encoders.pixels`) need no network at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from variegate.errors import EncoderError

# What to name when the shipped encoder is out of its depth.
REAL_ENCODER = "facebook/dinov2-base"


@runtime_checkable
class Encoder(Protocol):
    """Pictures in, one row of features each out.

    id: names weights and preprocessing, so that features can be cached under it.
    """

    id: str
    has_text: bool

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Unit rows in float32 on the CPU (the thumbnails' are not scaled)."""
        ...

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit rows to compare with those of pictures. Raises: EncoderError without has_text."""
        ...

    def unfamiliar(self, features: Float[Tensor, "n d"]) -> bool:
        """Whether pictures with these features are far from all that the encoder has learnt."""
        ...


@runtime_checkable
class KnowsIdentity(Protocol):
    """An encoder that can tell who is in the picture apart from what surrounds it."""

    def identity(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n i"]:
        """The part of features that says who is in the picture, as unit rows."""
        ...


def load(name_or_path: str, *, device: str | None = None) -> Encoder:
    """The encoder of that name: `pocket`, a hub name or local folder of DINOv2, CLIP or SigLIP,
    `sscd=FILE`, or `inception=FILE#SHA256`.

    device: where a large network runs; None takes an accelerator when there is one.
    Raises: EncoderError when it cannot be found, read or trusted.
    """
    name = name_or_path.strip()
    if not name:
        raise EncoderError(
            f"no encoder was named; name 'pocket', 'sscd=FILE' or for example {REAL_ENCODER!r}"
        )
    if name == "pocket":
        return _load_pocket()
    from variegate.encoders import hub

    kind, equals, file = name.partition("=")
    if equals and kind.lower() == "sscd":
        return hub.load_sscd(file, device=device)
    if equals and kind.lower() == "inception":
        return hub.load_inception(file, device=device)
    return hub.load_transformer(name, device=device)


def load_encoders(names: Sequence[str]) -> list[Encoder]:
    """Those encoders; the pocket's where none is named."""
    return [load(name) for name in names or ("pocket",)]


def _load_pocket() -> Encoder:
    from variegate.encoders.pocket import PocketEncoder

    try:
        return PocketEncoder()
    except FileNotFoundError as error:
        raise EncoderError(
            f"the pocket encoder's weights are missing ({error.filename}); they come with the"
            " package, so install variegate again"
        ) from error
