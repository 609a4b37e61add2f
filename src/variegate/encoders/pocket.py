"""The pocket encoder: features of 64-pixel pictures and of captions, with no download.

A small convolutional tower gives two unit vectors side by side: one trained contrastively against
a text tower on rendered scenes and their captions, one trained to tell about a thousand sprites
apart, so that it also says who is in the picture. The subjects held out of the pocket's world were
held out of both. On pictures far from that world its word is weak, and it says so.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

PIXELS = 64
WORDS = 96  # width of the part that is aligned with captions
IDENTITY = 96  # width of the part that knows the subject


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()
    )


class ImageTower(nn.Module):
    """Pictures `[n, 3, 64, 64]` in -1..1 -> (caption part, identity part), unit rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _block(3, 32, 2),
            _block(32, 64, 1),
            _block(64, 96, 2),
            _block(96, 96, 1),
            _block(96, 192, 2),
            _block(192, 192, 1),
        )
        self.place = nn.Sequential(nn.Conv2d(192, 8, 1), nn.Flatten())
        self.words = nn.Linear(192 * 2 + 8 * 64, WORDS)
        self.identity = nn.Linear(192, IDENTITY)

    def forward(
        self, x: Float[Tensor, "n 3 64 64"]
    ) -> tuple[Float[Tensor, "n w"], Float[Tensor, "n i"]]:
        h = self.trunk(x)
        peak = h.amax((2, 3))
        words = self.words(torch.cat([h.mean((2, 3)), peak, self.place(h)], 1))
        return F.normalize(words, dim=-1), F.normalize(self.identity(peak), dim=-1)


class TextTower(nn.Module):
    """Token ids `[n, t]` -> unit rows `[n, w]`."""

    def __init__(self, tokens: int, length: int, end: int, width: int = 128) -> None:
        super().__init__()
        self.end = end
        self.token = nn.Embedding(tokens, width)
        self.place = nn.Parameter(0.02 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, WORDS)

    def forward(self, ids: Int[Tensor, "n t"]) -> Float[Tensor, "n w"]:
        padded = (ids == self.end).cumsum(1) > 1
        h = self.layers(self.token(ids) + self.place[: ids.shape[1]], src_key_padding_mask=padded)
        kept = (~padded).unsqueeze(-1)
        return F.normalize(self.out((h * kept).sum(1) / kept.sum(1)), dim=-1)


class PocketEncoder:
    """The shipped towers behind the encoders' common face."""

    has_text = True

    def __init__(self, folder: Path | None = None) -> None:
        at = folder or Path(str(resources.files(__package__) / "pocket_weights"))
        config = json.loads((at / "config.json").read_text(encoding="utf8"))
        self.id = f"pocket-{config['version']}"
        self._tokens = Tokenizer.from_file(str(at / "tokenizer.json"))
        self._length = int(config["length"])
        self._end = int(config["end"])
        state = {k: v.float() for k, v in load_file(at / "encoder.safetensors").items()}
        self._image = ImageTower().eval().requires_grad_(False)
        self._text = TextTower(config["tokens"], self._length, self._end)
        self._text.eval().requires_grad_(False)
        self._image.load_state_dict(_part(state, "image."))
        self._text.load_state_dict(_part(state, "text."))
        self._world_mean = state["world.mean"]
        self._world_precision = state["world.precision"]
        self._world_limit = float(config["world_limit"])

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Unit rows; the cosine of two is the mean of both parts' cosines."""
        small = [p.convert("RGB").resize((PIXELS, PIXELS), Image.Resampling.BOX) for p in pictures]
        x = torch.from_numpy(np.stack([np.asarray(p) for p in small]))
        x = x.permute(0, 3, 1, 2).float() / 127.5 - 1
        return torch.cat([torch.cat(self._image(part), 1) for part in x.split(256)]) / math.sqrt(2)

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Unit rows in the caption part; the identity part is zero. The cosine with a picture is
        at most 1/sqrt(2)."""
        rows = []
        for encoding in self._tokens.encode_batch([p.lower() for p in prompts]):
            ids = encoding.ids[: self._length]
            if ids[-1] != self._end:
                ids[-1] = self._end
            rows.append(ids + [self._end] * (self._length - len(ids)))
        words = self._text(torch.tensor(rows))
        return torch.cat([words, words.new_zeros(len(words), IDENTITY)], 1)

    def identity(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n i"]:
        """The part of features that says who is in the picture, as unit rows."""
        return F.normalize(features[:, WORDS:], dim=-1)

    def unfamiliar(self, features: Float[Tensor, "n d"]) -> bool:
        """Whether most of the pictures lie farther from the pocket's world (in Mahalanobis
        distance of their features) than 999 of 1000 of its own scenes do."""
        centred = features - self._world_mean
        distance = ((centred @ self._world_precision) * centred).sum(1)
        return bool((distance > self._world_limit).float().mean() > 0.5)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
