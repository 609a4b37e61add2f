"""Pictures and captions as what the network sees: latents and embeddings, made once and kept.

Each picture has at most `recipe.variants` altered variants; a step picks picture, variant and
mirroring by address, so a batch depends on (recipe, pictures, step) alone. Everything is encoded
one by one: what a row holds must not depend on which others were made with it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from variegate import seeds
from variegate.adapter import Attached
from variegate.errors import ImagesError, NotFinite, RecipeError
from variegate.images import Fault, ImageSet, Picture, Shards
from variegate.models import Conditioning
from variegate.recipe import Recipe
from variegate.train.budget import budget_note
from variegate.train.examples import Cut, Example, TrainingSet, example_of, trigger_note
from variegate.train.frame import Frame, cut_middle
from variegate.train.latent_cache import MOST_BYTES, LatentCache
from variegate.train.mask_ways import MaskWays
from variegate.train.paint import ground_colour
from variegate.train.ranks import ALONE, Ranks
from variegate.train.split import split
from variegate.train.strategies import Seen, Shot, Strategy
from variegate.train.strategies.buckets import nearest_shape, shapes
from variegate.train.strategies.even_pictures import look_at, votes
from variegate.train.stream import Streamed, read_stream
from variegate.train.turns import Card, Turns
from variegate.train.wording import still_true

_log = logging.getLogger(__name__)

UNREAD = ("ignored", "outside", "metadata", "caption", "mask")  # faults of a folder's files
MOST_WORDS = 512 * 2**20  # bytes of embeddings kept: 2,000 prompts of SD 1.x
LARGEST_RATIO = 3.0  # sides beyond which cropping to a square leaves too little


@dataclass(frozen=True)
class Batch:
    """What one step learns from. masks: the subject's share of each place in the latents.

    frames: what part of its file each row shows, None for pictures that come from no file. moved:
    whether its subject lies on a ground that is not its own.
    """

    keys: list[str]
    captions: list[str]
    frames: list[Frame | None]
    latents: Float[Tensor, "b c y x"]
    masks: Float[Tensor, "b y x"]
    noise: Float[Tensor, "b c y x"]
    timesteps: Int[Tensor, " b"]
    moved: Bool[Tensor, " b"]


def read_training_set(
    images: ImageSet | Shards,
    recipe: Recipe,
    *,
    side: int,
    pocket: bool,
    needs_masks: bool,
    base: Any = None,
) -> TrainingSet:
    """Open, crop and split the pictures; find the masks if a strategy needs them.

    side: of the square pictures in pixels, or of the square that has the area of the buckets'.
    base: the bare base, asked for masks if the recipe says so; None: it is not asked.
    Pictures in tars are not opened here but when their turn comes (`stream.py`).
    Raises: ImagesError with every picture that cannot be opened.
    """
    if isinstance(images, Shards):
        return read_stream(images, recipe, side=side, pocket=pocket, needs_masks=needs_masks)
    hashes = [picture.content_hash() for picture in images]
    cuts, first, notes = _cut(images, hashes, recipe, side, pocket=pocket)
    masks = _masks(images, cuts, recipe, base, notes) if needs_masks else [None] * len(images)
    examples = [
        example_of(
            picture,
            cuts[i],
            masks[i],
            recipe,
            family=images.pictures[first[i]].key,
            pocket=pocket,
        )
        for i, picture in enumerate(images)
    ]
    notes += trigger_note([(e.key, e.caption) for e in examples], recipe, of=len(examples))
    parts = split(
        [cut.picture for cut in cuts], hashes, recipe.held_out, seed=recipe.seed, families=first
    )
    trained_on = len({examples[i].family for i in parts.train})
    for warning in filter(None, (faults_note(images.faults), budget_note(recipe, trained_on))):
        _log.warning("%s", warning)
        notes.append(warning)
    return TrainingSet(
        train=tuple(examples[i] for i in parts.train),
        held_out=tuple(examples[i] for i in parts.held_out),
        held_out_keys=tuple(examples[i].key for i in parts.held_out),
        notes=(*notes, parts.why),
        fingerprint=fingerprints(images),
    )


def faults_note(faults: Sequence[Fault]) -> str:
    """What of a folder was not read as it lies there, for who did not audit it; else nothing.

    >>> from pathlib import Path
    >>> faults_note([Fault(Path("a.txt"), "caption", "not UTF-8", "save it as UTF-8")])
    "1 of the folder's files was not read as it is ('a.txt': not UTF-8); `variegate audit` tells"
    >>> faults_note([])
    ''
    """
    told = [fault for fault in faults if fault.kind in UNREAD or not fault.usable]
    if not told:
        return ""
    which = "; ".join(f"{fault.file.name!r}: {fault.fault}" for fault in told[:3])
    verb = "was not read as it is" if len(told) == 1 else "were not read as they are"
    return f"{len(told)} of the folder's files {verb} ({which}); `variegate audit` tells"


class Encoded(NamedTuple):
    """A picture's latents, the subject's share of each place, and what can be told of it."""

    latent: Float[Tensor, "c y x"]
    mask: Float[Tensor, "y x"]
    seen: Seen
    frame: Frame | None


class _Row(NamedTuple):
    """One row of a batch."""

    key: str
    caption: str
    frame: Frame | None
    latent: Float[Tensor, "c y x"]
    mask: Float[Tensor, "y x"]
    moved: bool

    def told(self) -> dict[str, Any]:
        """All of it but the numbers, as JSON has it."""
        frame = self.frame and self.frame.to_json()
        shape = list(self.latent.shape)
        told = {"key": self.key, "caption": self.caption, "frame": frame, "shape": shape}
        return told | {"moved": self.moved}


class Latents:
    """Examples as batches of latents, encoded at need by the bare autoencoder and kept.

    They are kept in memory for the run, and on disk for later ones; not so the pocket's, which
    encodes faster than a disk is read. Those of pictures that are read as they come are not kept in
    memory, and on disk only where it holds all of them.
    """

    def __init__(self, model: Any, recipe: Recipe, strategies: Mapping[str, Strategy]) -> None:
        self._model = model
        self._recipe = recipe
        self._strategies = strategies
        self._alters = any(s.alters for s in strategies.values())
        self._kept: dict[tuple[str, int, bool], Encoded] = {}
        self._dealt: tuple[Sequence[Example], Turns] | None = None
        self._disk = None if model.pocket else LatentCache(model)
        self._passing = 0  # latents that a stream would leave; 0: all are kept

    def batch(
        self, examples: Sequence[Example] | Streamed, step: int, ranks: Ranks = ALONE
    ) -> Batch:
        """The rows of a step: pictures in turns, shuffled anew in each epoch, of one size.

        Of pictures that are read as they come each process makes rows of its own, for all.
        """
        recipe = self._recipe
        size = recipe.optimizer.batch_size
        if isinstance(examples, Streamed):
            self._passing = examples.count * (recipe.variants if self._alters else 1)
            rows = self._shared_out(examples, step, ranks)
        else:
            picked = self._picked(examples, step)
            rows = [self._row(example, step, row) for row, example in enumerate(picked)]
        latents = torch.stack([row.latent for row in rows])
        timesteps = self._model.schedule.draw(size, seeds.at(recipe.seed, "timesteps", step))
        noise = torch.randn(latents.shape, generator=seeds.at(recipe.seed, "noise", step))
        device = self._model.device
        return Batch(
            keys=[row.key for row in rows],
            captions=[row.caption for row in rows],
            frames=[row.frame for row in rows],
            latents=latents.to(device),
            masks=torch.stack([row.mask for row in rows]).to(device),
            noise=noise.to(device),
            timesteps=timesteps.to(device),
            moved=torch.tensor([row.moved for row in rows], device=device),
        )

    def _shared_out(self, stream: Streamed, step: int, ranks: Ranks) -> list[_Row]:
        """All rows of a step, of which each process makes its share.

        Raises: what goes wrong in one process there, WorkerLost in the others.
        """
        size = self._recipe.optimizer.batch_size
        own = range(ranks.rank, size, ranks.size)
        with ranks.as_one():
            picked = zip(own, stream.at(step, own), strict=True)
            made = {row: self._row(example, step, row) for row, example in picked}
        if ranks.size == 1:
            return [made[row] for row in range(size)]
        told = {"rows": {row: found.told() for row, found in made.items()}}
        notes = {} if ranks.first else {"notes": stream.notes()}
        facts = dict[int, dict[str, Any]]()
        for found in ranks.gathered(told | notes):
            facts |= {int(row): fact for row, fact in found["rows"].items()}
            stream.tell(found.get("notes", ()) if ranks.first else ())
        channels, height, width = facts[0]["shape"]
        planes = torch.zeros(size, channels + 1, height, width)
        for row, mine in made.items():
            planes[row, :channels], planes[row, channels] = mine.latent, mine.mask
        planes = ranks.laid_together(planes)
        return [
            _Row(
                facts[row]["key"],
                facts[row]["caption"],
                Frame.read(facts[row]["frame"]),
                planes[row, :channels],
                planes[row, channels],
                facts[row]["moved"],
            )
            for row in range(size)
        ]

    def _row(self, example: Example, step: int, row: int) -> _Row:
        strategies, variant = self._strategies.values(), 0
        if self._alters:
            draw = torch.rand((), generator=seeds.at(self._recipe.seed, "variant", step, row))
            variant = int(draw * self._recipe.variants)
        mirrored = any(s.mirrors(step, row) for s in strategies)
        found = self.encoded(example, variant, mirrored=mirrored)
        caption = still_true(
            example.caption,
            found.seen.changed,
            mirrored=mirrored,
            pocket=bool(self._model.pocket),
        )
        for strategy in strategies:
            caption = strategy.caption(caption, step, row, found.seen)
        moved = "ground" in found.seen.changed
        return _Row(example.key, caption, found.frame, found.latent, found.mask, moved)

    def encoded(self, example: Example, variant: int = -1, *, mirrored: bool = False) -> Encoded:
        """One variant of a picture; variant -1 is the picture itself.

        Raises: NotFinite when the autoencoder gives NaN or infinity.
        """
        address = (example.key, variant, mirrored)
        if (known := self._kept.get(address)) is not None:
            return known
        shot = example.shot
        if variant >= 0:
            for strategy in self._strategies.values():
                shot = strategy.alter(shot, (example.key, variant))
        found = self._encode(shot, address)
        if not self._passing or variant < 0:
            self._kept[address] = found
        return found

    def _picked(self, examples: Sequence[Example], step: int) -> list[Example]:
        if self._dealt is None or self._dealt[0] is not examples:
            size, seed = self._recipe.optimizer.batch_size, self._recipe.seed
            self._dealt = examples, deal(examples, size=size, seed=seed)
        return [examples[i] for i in self._dealt[1].at(step)]

    def _encode(self, shot: Shot, address: tuple[str, int, bool]) -> Encoded:
        key, variant, mirrored = address
        pixels, mask, frame = shot.pixels, shot.mask, shot.frame
        if mirrored:
            pixels, mask, frame = pixels.flip(-1), mask.flip(-1), frame and frame.mirrored()
        seed = seeds.number(self._recipe.seed, "encode", key, variant, int(mirrored))
        latent = self._latent(pixels, seed, key)
        share = F.adaptive_avg_pool2d(mask[None], (latent.shape[-2], latent.shape[-1]))[0]
        ground = ground_colour(pixels, mask) if shot.found else None
        seen = Seen(share if shot.found else None, ground, shot.changed)
        return Encoded(latent, share, seen, frame)

    def _latent(
        self, pixels: Float[Tensor, "3 h w"], seed: int, key: str
    ) -> Float[Tensor, "c y x"]:
        file = self._disk.file_of(pixels, seed) if self._disk else None
        if self._disk and file and (known := self._disk.read(file)) is not None:
            return known
        generator = torch.Generator().manual_seed(seed)
        latent: Tensor = self._model.encode(pixels[None] * 2 - 1, generator)[0].float().cpu()
        if not bool(latent.isfinite().all()):
            raise NotFinite(
                f"picture {key!r} has NaN or infinite latents; its pixels are fine, so the base's "
                "autoencoder overflows: use precision float32, or another base"
            )
        if self._disk and self._passing * latent.nbytes > MOST_BYTES:
            self._disk = None  # whatever is kept would be dropped before its turn comes again
        if self._disk and file:
            self._disk.write(file, latent)
        return latent


class Words:
    """Prompts as what the network reads: kept for the base, live while the text encoder learns.

    Of those kept the ones asked for longest ago go when they are more than `MOST_WORDS` bytes.
    pixels: the side of the pictures that are learnt, for bases that are told of it.
    """

    def __init__(self, model: Any, on: Attached, *, learns: bool, pixels: int) -> None:
        self._model = model
        self._on = on
        self._learns = learns
        self._pixels = pixels
        self._kept: dict[str, Conditioning] = {}
        self._bytes = 0

    def base(self, prompts: Sequence[str]) -> Conditioning:
        """As the base reads them."""
        read = {prompt: self._base(prompt) for prompt in dict.fromkeys(prompts)}
        while self._bytes > MOST_WORDS and len(self._kept) > len(read):
            self._bytes -= _nbytes(self._kept.pop(next(iter(self._kept))))
        return Conditioning.join([read[prompt] for prompt in prompts])

    def _base(self, prompt: str) -> Conditioning:
        found = self._kept.pop(prompt, None)
        if found is None:
            with self._on.silenced(), torch.no_grad():
                found = self._embed([prompt]).detach()
            self._bytes += _nbytes(found)
        self._kept[prompt] = found  # the last to be asked for
        return found

    def live(self, prompts: Sequence[str]) -> Conditioning:
        """As the adapter reads them, with gradients if it learns to read."""
        if not self._learns:
            return self.base(prompts)
        return self._embed(list(prompts))

    def _embed(self, prompts: list[str]) -> Conditioning:
        words: Conditioning = self._model.embed(prompts, pixels=self._pixels)
        return words


def _nbytes(words: Conditioning) -> int:
    parts = (words.embeddings, words.pooled, words.sizes)
    return sum(part.nbytes for part in parts if part is not None)


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


def deal(examples: Sequence[Example], *, size: int, seed: int) -> Turns:
    """The turns of a run: each epoch shows each picture `repeats` times, a family as one picture.

    A family has as many turns as the most repeated of its pictures. One deck for each shape.
    """
    held: dict[str, list[int]] = {}
    for i, example in enumerate(examples):
        held.setdefault(example.family, []).append(i)
    decks: dict[tuple[int, ...], list[Card]] = {}
    for members in held.values():
        shape = tuple(examples[members[0]].shot.mask.shape)
        turns = max(examples[i].repeats for i in members)
        decks.setdefault(shape, []).extend([tuple(members)] * turns)
    return Turns([decks[shape] for shape in sorted(decks)], size=size, seed=seed)


def stack_common(
    pictures: Sequence[Encoded],
) -> tuple[Float[Tensor, "b c y x"], list[Frame | None]]:
    """Latents of several sizes as one stack of their middles, for what compares them; and what part
    of its file each then shows."""
    y, x = (min(picture.latent.shape[axis] for picture in pictures) for axis in (1, 2))
    middles, frames = list[Tensor](), list[Frame | None]()
    for latent, _, _, frame in pictures:
        top, left = (latent.shape[1] - y) // 2, (latent.shape[2] - x) // 2
        middles.append(latent[:, top : top + y, left : left + x])
        if frame is not None:
            scale = frame.size[0] // latent.shape[1]
            frame = frame.window(*(scale * n for n in (top, left, y, x)))
        frames.append(frame)
    return torch.stack(middles), frames


def _cut(
    images: ImageSet, hashes: Sequence[str], recipe: Recipe, side: int, *, pocket: bool
) -> tuple[list[Cut], list[int], list[str]]:
    """The pictures cut to size, one open at a time; for each the first that it is a copy of (or
    itself); and what is to be told.

    Raises: ImagesError with every picture that cannot be opened.
    """
    buckets, evens = recipe.strategies.buckets, recipe.strategies.even_pictures is not None
    known = shapes(side, buckets, pocket=pocket) if buckets else [(side, side)]
    cuts, looks, long, faults = [], [], [], []
    for picture in images:
        try:
            image = picture.open()
        except ImagesError as error:
            faults.append(str(error))
            continue
        shape = nearest_shape((image.height, image.width), known)
        cuts.append(Cut(*cut_middle(image, shape)))
        looks += [look_at(image)] if evens else []
        if max(image.size) > LARGEST_RATIO * min(image.size):
            long.append(picture.key)
    if faults:
        raise ImagesError(
            "\n".join(faults)
            + f"\n{len(faults)} of {len(images)} pictures cannot be used; mend or remove them"
            " (`variegate audit` looks at the whole folder)"
        )
    first = votes(looks, hashes) if evens else list(range(len(cuts)))
    for i, picture in enumerate(images):
        size = cuts[first[i]].frame.size
        if cuts[i].frame.size != size:  # copies of other shapes go where their family is
            cuts[i] = Cut(*cut_middle(picture.open(), size))
    notes = _bucket_notes(cuts, recipe.optimizer.batch_size) if buckets else []
    if evens:
        notes.append(
            f"{len(images)} pictures have {len(set(first))} votes: copies of a picture share one"
        )
    if long:
        notes.append(
            f"{len(long)} pictures are more than {LARGEST_RATIO:g} times as long as wide, such as "
            f"{long[0]!r}; only their middle is seen"
        )
    return cuts, first, notes


def _bucket_notes(cuts: Sequence[Cut], batch_size: int) -> list[str]:
    counts = Counter(cut.frame.size for cut in cuts)
    told = ", ".join(f"{w}x{h}: {n}" for (h, w), n in sorted(counts.items()))
    notes = [f"pictures by shape, width x height: {told}"]
    if few := [n for n in counts.values() if n < batch_size]:
        notes.append(
            f"{len(few)} shapes have fewer pictures than the batch ({batch_size}): their batches "
            "show a picture more than once; a smaller batch helps, and so does a "
            "strategies.buckets.ratio_max nearer 1"
        )
    return notes


def _masks(
    images: ImageSet, cuts: Sequence[Cut], recipe: Recipe, base: Any, notes: list[str]
) -> list[Float[Tensor, "h w"] | None]:
    """Each picture's mask, None where it has none; and what is to be told of them."""
    ways = MaskWays(recipe, base)
    masks = [
        ways.of(cut.picture, key=p.key, caption=p.prompt, drawn=p.mask_file)
        for p, cut in zip(images, cuts, strict=True)
    ]
    notes.append(ways.note())
    return masks


def fingerprints(images: ImageSet | Shards) -> dict[str, str]:
    """What a resumed run must find again, by picture or by tar."""
    if isinstance(images, Shards):
        return images.fingerprint()
    return {picture.key: _fingerprint(picture) for picture in images}


def _fingerprint(picture: Picture) -> str:
    """Pixels, caption, mask and repeats."""
    digest = hashlib.sha256(picture.content_hash().encode())
    digest.update(repr((picture.prompt, picture.repeats)).encode())
    if picture.mask_file is not None:
        digest.update(picture.mask_file.read_bytes())
    return digest.hexdigest()[:16]
