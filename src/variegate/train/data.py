"""Pictures and captions as what the network sees: latents and embeddings, made once and kept.

Each picture has at most `recipe.variants` altered variants; a step picks picture, variant and
mirroring by address, so a batch depends on (recipe, pictures, step) alone. Everything is encoded
one by one: what a row holds must not depend on which others were made with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image, ImageOps
from torch import Tensor

from variegate import seeds
from variegate.adapter import Attached
from variegate.errors import ImagesError, NotFinite, RecipeError
from variegate.images import ImageSet, Picture
from variegate.models import Conditioning
from variegate.recipe import Recipe
from variegate.train.masks import find_masks
from variegate.train.paint import ground_colour
from variegate.train.split import split
from variegate.train.strategies import Seen, Shot, Strategy

LARGEST_RATIO = 3.0  # sides beyond which cropping to a square leaves too little


@dataclass(frozen=True)
class Example:
    """A picture ready for training: its pixels at the run's resolution, mask, and caption."""

    key: str
    shot: Shot
    caption: str
    repeats: int


@dataclass(frozen=True)
class Batch:
    """What one step learns from. masks: the subject's share of each place in the latents."""

    keys: list[str]
    captions: list[str]
    latents: Float[Tensor, "b c y x"]
    masks: Float[Tensor, "b y x"]
    noise: Float[Tensor, "b c y x"]
    timesteps: Int[Tensor, " b"]


@dataclass(frozen=True)
class TrainingSet:
    """Examples to learn from and examples held out, with what is to be told about them."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    notes: tuple[str, ...]
    fingerprint: dict[str, str]


def read_training_set(
    images: ImageSet, recipe: Recipe, *, side: int, pocket: bool, needs_masks: bool
) -> TrainingSet:
    """Open, crop and split the pictures; find the masks if a strategy needs them.

    side: of the square pictures, in pixels.
    Raises: ImagesError with every picture that cannot be opened.
    """
    squares, notes = _squares(images, side)
    masks, found = _masks(images, squares, notes) if needs_masks else (None, None)
    examples = []
    captions = [caption_of(picture, recipe, pocket=pocket) for picture in images]
    for i, picture in enumerate(images):
        pixels = torch.from_numpy(np.array(squares[i])).permute(2, 0, 1).float() / 255
        known = masks is not None and found is not None and bool(found[i])
        mask = masks[i] if masks is not None and known else torch.ones(side, side)
        examples.append(
            Example(picture.key, Shot(pixels, mask, known), captions[i], picture.repeats)
        )
    notes += _caption_notes(examples, recipe)
    hashes = [picture.content_hash() for picture in images]
    parts = split(squares, hashes, recipe.held_out, seed=recipe.seed)
    return TrainingSet(
        train=tuple(examples[i] for i in parts.train),
        held_out=tuple(examples[i] for i in parts.held_out),
        notes=(*notes, parts.why),
        fingerprint=fingerprints(images),
    )


class Encoded(NamedTuple):
    """A picture's latents, the subject's share of each place, and what can be told of it."""

    latent: Float[Tensor, "c y x"]
    mask: Float[Tensor, "y x"]
    seen: Seen


class Latents:
    """Examples as batches of latents, encoded at need by the bare autoencoder and kept."""

    def __init__(self, model: Any, recipe: Recipe, strategies: Mapping[str, Strategy]) -> None:
        self._model = model
        self._recipe = recipe
        self._strategies = strategies
        self._alters = any(s.alters for s in strategies.values())
        self._kept: dict[tuple[str, int, bool], Encoded] = {}

    def batch(self, examples: Sequence[Example], step: int) -> Batch:
        """The rows of a step: pictures in turns, shuffled anew in each epoch."""
        recipe, strategies = self._recipe, self._strategies.values()
        size = recipe.optimizer.batch_size
        picked = [examples[i] for i in _turns(examples, step, size, recipe.seed)]
        rows, captions = list[Encoded](), list[str]()
        for row, example in enumerate(picked):
            variant = 0
            if self._alters:
                draw = torch.rand((), generator=seeds.at(recipe.seed, "variant", step, row))
                variant = int(draw * recipe.variants)
            mirrored = any(s.mirrors(step, row) for s in strategies)
            rows.append(self.encoded(example, variant, mirrored=mirrored))
            caption = example.caption
            for strategy in strategies:
                caption = strategy.caption(caption, step, row, rows[-1].seen)
            captions.append(caption)
        latents = torch.stack([row.latent for row in rows])
        timesteps = self._model.schedule.draw(size, seeds.at(recipe.seed, "timesteps", step))
        noise = torch.randn(latents.shape, generator=seeds.at(recipe.seed, "noise", step))
        device = self._model.device
        return Batch(
            keys=[example.key for example in picked],
            captions=captions,
            latents=latents.to(device),
            masks=torch.stack([row.mask for row in rows]).to(device),
            noise=noise.to(device),
            timesteps=timesteps.to(device),
        )

    def encoded(self, example: Example, variant: int = -1, *, mirrored: bool = False) -> Encoded:
        """One variant of a picture; variant -1 is the picture itself.

        Raises: NotFinite when the autoencoder gives NaN or infinity.
        """
        address = (example.key, variant, mirrored)
        if address not in self._kept:
            shot = example.shot
            if variant >= 0:
                for strategy in self._strategies.values():
                    shot = strategy.alter(shot, (example.key, variant))
            self._kept[address] = self._encode(shot, address)
        return self._kept[address]

    def _encode(self, shot: Shot, address: tuple[str, int, bool]) -> Encoded:
        key, variant, mirrored = address
        pixels, mask = shot.pixels, shot.mask
        if mirrored:
            pixels, mask = pixels.flip(-1), mask.flip(-1)
        generator = seeds.at(self._recipe.seed, "encode", key, variant, int(mirrored))
        latent = self._model.encode(pixels[None] * 2 - 1, generator)[0].float().cpu()
        if not bool(latent.isfinite().all()):
            raise NotFinite(
                f"picture {key!r} has NaN or infinite latents; its pixels are fine, so the base's "
                "autoencoder overflows: use precision float32, or another base"
            )
        share = F.adaptive_avg_pool2d(mask[None], (latent.shape[-2], latent.shape[-1]))[0]
        ground = ground_colour(pixels, mask) if shot.found else None
        return Encoded(latent, share, Seen(share if shot.found else None, ground))


class Words:
    """Prompts as what the network reads: kept for the base, live while the text encoder learns.

    pixels: the side of the pictures that are learnt, for bases that are told of it.
    """

    def __init__(self, model: Any, on: Attached, *, learns: bool, pixels: int) -> None:
        self._model = model
        self._on = on
        self._learns = learns
        self._pixels = pixels
        self._kept: dict[str, Conditioning] = {}

    def base(self, prompts: Sequence[str]) -> Conditioning:
        """As the base reads them."""
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._kept:
                with self._on.silenced(), torch.no_grad():
                    self._kept[prompt] = self._embed([prompt]).detach()
        return Conditioning.join([self._kept[prompt] for prompt in prompts])

    def live(self, prompts: Sequence[str]) -> Conditioning:
        """As the adapter reads them, with gradients if it learns to read."""
        if not self._learns:
            return self.base(prompts)
        return self._embed(list(prompts))

    def _embed(self, prompts: list[str]) -> Conditioning:
        words: Conditioning = self._model.embed(prompts, pixels=self._pixels)
        return words


def picture_side(recipe: Recipe, model: Any) -> int:
    """The side of the training pictures in pixels.

    Raises: RecipeError when the base cannot take that size.
    """
    side = int(recipe.resolution or model.resolution)
    # UNets halve the latents up to three times and double them back.
    step = int(model.downscale) * (1 if side == model.resolution else 8)
    if side % step:
        raise RecipeError(
            f"resolution: found {side}; this base takes multiples of {step}, such as "
            f"{max(step, round(side / step) * step)}"
        )
    return side


def _turns(examples: Sequence[Example], step: int, size: int, seed: int) -> list[int]:
    """Which examples step `step` (from 1) takes: each epoch shows each one `repeats` times."""
    deck = [i for i, example in enumerate(examples) for _ in range(example.repeats)]
    first = (step - 1) * size
    picked = []
    for place in range(first, first + size):
        epoch, at = divmod(place, len(deck))
        order = torch.randperm(len(deck), generator=seeds.at(seed, "order", epoch))
        picked.append(deck[int(order[at])])
    return picked


def caption_of(picture: Picture, recipe: Recipe, *, pocket: bool) -> str:
    """Its own, else one that names the trigger and the class noun."""
    if picture.prompt is not None:
        return picture.prompt
    if pocket:
        return f"a {recipe.trigger or recipe.class_noun or 'picture'}"
    return " ".join(w for w in ("a photo of", recipe.trigger, recipe.class_noun) if w)


def _caption_notes(examples: Sequence[Example], recipe: Recipe) -> list[str]:
    if not recipe.trigger:
        return []
    without = [e.key for e in examples if recipe.trigger not in e.caption]
    if not without:
        return []
    return [
        f"{len(without)} of {len(examples)} captions do not name the trigger {recipe.trigger!r}, "
        f"such as that of {without[0]!r}; they are used as they are, so those pictures do not "
        "teach the trigger"
    ]


def _squares(images: ImageSet, side: int) -> tuple[list[Image.Image], list[str]]:
    """The pictures cut to squares, one open at a time, and what that loses of long ones.

    Raises: ImagesError with every picture that cannot be opened.
    """
    squares, long, faults = [], [], []
    for picture in images:
        try:
            image = picture.open()
        except ImagesError as error:
            faults.append(str(error))
            continue
        squares.append(ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS))
        if max(image.size) > LARGEST_RATIO * min(image.size):
            long.append(picture.key)
    if faults:
        raise ImagesError(
            "\n".join(faults)
            + f"\n{len(faults)} of {len(images)} pictures cannot be used; mend or remove them"
            " (`variegate audit` looks at the whole folder)"
        )
    if not long:
        return squares, []
    return squares, [
        f"{len(long)} pictures are more than {LARGEST_RATIO:g} times as long as wide, such as "
        f"{long[0]!r}; only their middle square is seen"
    ]


def _masks(
    images: ImageSet, squares: Sequence[Image.Image], notes: list[str]
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, " n"]]:
    """Hand-drawn masks where there are any, else those found in the pixels."""
    pixels = torch.stack([torch.from_numpy(np.array(s)).permute(2, 0, 1) for s in squares])
    masks, confidence = find_masks(pixels)
    drawn = 0
    for i, picture in enumerate(images):
        if picture.mask_file is not None:
            masks[i] = _drawn_mask(picture.mask_file, squares[i].size)
            confidence[i] = 1.0
            drawn += 1
    lost = [p.key for p, sure in zip(images, confidence, strict=True) if sure == 0]
    notes.append(
        f"masks: {drawn} hand-drawn, {len(squares) - drawn - len(lost)} found in the pixels"
        + (
            f", {len(lost)} not found (such as {lost[0]!r}): those pictures count as a whole; "
            "draw a mask beside them named NAME-masklabel.png"
            if lost
            else ""
        )
    )
    return masks, confidence


def _drawn_mask(file: Path, size: tuple[int, int]) -> Float[Tensor, "h w"]:
    try:
        with Image.open(file, formats=("PNG", "JPEG", "WEBP", "BMP")) as image:
            grey = ImageOps.fit(image.convert("L"), size, Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImagesError(
            f"mask {file} cannot be read: {error}; draw it again as a grey PNG, white on the "
            "subject, or remove it"
        ) from error
    return torch.from_numpy(np.array(grey)).float() / 255


def fingerprints(images: ImageSet) -> dict[str, str]:
    """What a resumed run must find again, by picture."""
    return {picture.key: _fingerprint(picture) for picture in images}


def _fingerprint(picture: Picture) -> str:
    """Pixels, caption, mask and repeats."""
    digest = hashlib.sha256(picture.content_hash().encode())
    digest.update(repr((picture.prompt, picture.repeats)).encode())
    if picture.mask_file is not None:
        digest.update(picture.mask_file.read_bytes())
    return digest.hexdigest()[:16]
