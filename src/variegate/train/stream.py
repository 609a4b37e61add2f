"""Training pictures that lie in tars and are read as they come: memory does not grow with the set.

Blocks of neighbours are read ahead by threads of their own, a window of blocks before the first of
its pictures has its turn (`BlockTurns`), and the pictures of the next step are decoded while this
one is learnt. What a step gets depends on the recipe, the tars and its number alone: so runs go on
to the bit, mid-tar too, and all processes of a run see the same.

A picture that cannot be used is found when its turn comes. It is then told, and another one, of the
same window if there is any, takes its turn; when they are many the run stops. In the same way
whatever looks like a picture held out is passed over, so that no twin of it is learnt from.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageOps

from variegate import seeds
from variegate.errors import ImagesError, RecipeError
from variegate.images import Picture, Shards
from variegate.images.decode import examine_bytes
from variegate.images.shards import Block, Member
from variegate.recipe import Recipe
from variegate.train.budget import budget_note
from variegate.train.examples import Cut, Example, TrainingSet, caption_of, example_of, trigger_note
from variegate.train.frame import cut_middle
from variegate.train.mask_ways import MaskWays
from variegate.train.split import NEAR_BITS, looks_of
from variegate.train.turns import BlockTurns

# Blocks in a window, and bytes that they are to have; two windows are held, for a moment three.
FEWEST, MOST, WINDOW_BYTES = 8, 32, 128 * 2**20
READERS, DECODERS = 4, 2  # threads
MOST_HELD = 32  # pictures held out: the probes ask no more
WATCHED = 32  # pictures learnt from that the probes ask
SPARES = 64  # other pictures that are tried in the place of one that cannot be used
BAD_PICTURES, BAD_SHARE = 10, 0.05  # beyond both the run stops
CAPTIONS_LOOKED_AT = 1000
MOST_NOTES = 20
STALLS = 10  # steps that waited for reading, when it is told


class Streamed:
    """The examples of each step, from tars.

    count: how many pictures are learnt from. stalls: for how many steps reading was waited for,
    after the first window.
    """

    def __init__(
        self,
        shards: Shards,
        recipe: Recipe,
        *,
        side: int,
        pocket: bool,
        needs_masks: bool,
        at_once: int | None = None,
    ) -> None:
        """at_once: blocks in a window; None: as many as hold 128 MiB, 8 to 32."""
        plan = recipe.optimizer
        self.shards = shards
        self.stalls = 0
        self._recipe, self._side, self._pocket = recipe, side, pocket
        self._ways = MaskWays(recipe, None) if needs_masks else None
        self._turns = BlockTurns(
            shards.ends,
            at_once=at_once or min(MOST, max(FEWEST, WINDOW_BYTES // shards.block_bytes)),
            size=plan.batch_size,
            seed=recipe.seed,
        )
        self._last = plan.steps
        self._held: frozenset[int] = frozenset()
        self._looks: Bool[np.ndarray, "n bits"] | None = None
        self._readers = ThreadPoolExecutor(READERS, "read ahead")
        self._decoders = ThreadPoolExecutor(DECODERS, "decode ahead")
        self._blocks: dict[int, Future[Block]] = {}
        self._cuts: dict[int, Future[tuple[Member, Cut | str]]] = {}
        self._first: tuple[int, int] | None = None  # the window that this process began with
        self._looked, self._bad = 0, 0
        self._twins = 0
        self._notes: list[str] = []

    @property
    def count(self) -> int:
        return len(self.shards) - len(self._held)

    def at(self, step: int, rows: Sequence[int] | None = None) -> list[Example]:
        """The examples of a step, with the reading of later ones begun. rows: of these rows only;
        None: of all.

        Raises: WorkError when a tar cannot be read, ImagesError when too many pictures cannot be.
        """
        self._read_ahead(step)
        numbers = self._turns.at(step)
        ahead = self._turns.at(step + 1) if step < self._last else []
        rows = range(len(numbers)) if rows is None else rows
        soon = dict.fromkeys(turns[row] for turns in (numbers, ahead) if turns for row in rows)
        self._cuts = {n: self._cuts[n] for n in soon if n in self._cuts}
        for number in soon:
            self._begin(number)
        window = self._turns.windows(step)[-1]
        if rows and window != self._first:
            self._count_stall(self._blocks[self._block_of(numbers[rows[0]])], step)
        return [self._turn(numbers[row], step, row, window) for row in rows]

    def hold_out(self, numbers: Iterable[int], looks: Bool[np.ndarray, "n bits"] | None) -> None:
        """Never give these, nor what looks like them."""
        self._held, self._looks = frozenset(numbers), looks

    def usable(self, numbers: Iterable[int], most: int) -> list[tuple[int, Cut]]:
        """Of these pictures the first `most` that can be learnt from, read one by one."""
        found = list[tuple[int, Cut]]()
        for number in numbers:
            if len(found) == most:
                break
            _, cut = self._cut(self.shards.member(number))
            if not isinstance(cut, str):
                found.append((number, cut))
        return found

    def example(self, number: int) -> Example:
        """One picture by its number in the set, read by itself.

        Raises: ImagesError when it cannot be used.
        """
        member, cut = self._cut(self.shards.member(number), twins=number in self._held)
        if isinstance(cut, str):
            raise ImagesError(cut)
        return self._finished(member, cut)

    def notes(self) -> list[str]:
        """What is to be told since this was last asked."""
        told, self._notes = self._notes, []
        return told

    def tell(self, notes: Iterable[str]) -> None:
        """Have what another process found among the notes."""
        self._notes += notes

    def close(self) -> None:
        """Stop reading."""
        for pool in (self._decoders, self._readers):
            pool.shutdown(wait=True, cancel_futures=True)
        self._blocks, self._cuts = {}, {}

    def _read_ahead(self, step: int) -> None:
        """Have the blocks of this and the next step's windows and of the one after, no others."""
        windows = self._turns.windows(step)
        self._first = self._first or windows[0]
        if step < self._last:
            windows = list(dict.fromkeys([*windows, *self._turns.windows(step + 1)]))
        after = self._turns.after(windows[-1])
        if self._turns.begins(after) <= self._last:
            windows = [*windows, after]
        wanted = dict.fromkeys(b for window in windows for b in self._turns.blocks(window))
        for block in [b for b in self._blocks if b not in wanted]:
            self._blocks.pop(block).cancel()
        for block in wanted:
            if block not in self._blocks:
                self._blocks[block] = self._readers.submit(self.shards.block, block)

    def _count_stall(self, block: Future[Block], step: int) -> None:
        if block.done():
            return
        self.stalls += 1
        if self.stalls == STALLS:
            self._notes.append(
                f"reading was waited for at {STALLS} steps by step {step}: the tars' storage is "
                "slower than training; lay them nearer, or smaller pictures in them"
            )

    def _begin(self, number: int) -> None:
        """Have a picture decoded, out of its block where that is there."""
        if number not in self._cuts:
            block = self._blocks.get(self._block_of(number))
            self._cuts[number] = self._decoders.submit(self._decoded, block, number)

    def _decoded(self, block: Future[Block] | None, number: int) -> tuple[Member, Cut | str]:
        member = self.shards.member(number) if block is None else block.result()[number]
        return self._cut(member)

    def _block_of(self, number: int) -> int:
        return int(np.searchsorted(self.shards.ends, number, side="right"))

    def _turn(self, number: int, step: int, row: int, window: tuple[int, int]) -> Example:
        """The example that has a turn: the picture whose turn it is, or another of the window."""
        for spare in range(SPARES):
            if number not in self._held:
                self._begin(number)
                member, cut = self._cuts[number].result()
                self._looked += 1
                try:
                    if not isinstance(cut, str):
                        return self._finished(member, cut)
                    reason = cut
                except ImagesError as error:
                    reason = str(error)
                self._pass_over(member.key, reason)
            draw = seeds.number(self._recipe.seed, "spare", step, row, spare)
            if spare < SPARES // 2:
                others = self._turns.pictures(window)
                number = int(others[draw % len(others)])
            else:  # a window may hold nothing but copies of pictures held out
                number = draw % len(self.shards)
        raise ImagesError(
            f"none of {SPARES} pictures tried for a turn at step {step} can be learnt from: they "
            "cannot be opened, or all look like pictures held out; the last checkpoint stands: "
            "look at the tars with `variegate audit`, or set held_out.share=0"
        )

    def _pass_over(self, key: str, reason: str) -> None:
        if reason == _TWIN:
            self._twins += 1
            if self._twins == 1:
                self._notes.append(
                    f"pictures that look like one held out are passed over, such as {key!r}"
                )
            return
        self._bad += 1
        if self._bad <= MOST_NOTES:
            self._notes.append(f"{reason} It was passed over, and another took its turn.")
        if self._bad > BAD_PICTURES and self._bad > BAD_SHARE * self._looked:
            raise ImagesError(
                f"{self._bad} of the {self._looked} pictures whose turn it was cannot be used, the "
                f"last of them: {reason} The last checkpoint stands: mend the tars, and go on in a "
                "new run (`variegate audit` looks at a sample of them)"
            )

    def _cut(self, member: Member, *, twins: bool = False) -> tuple[Member, Cut | str]:
        """A picture cut to size, or why it cannot be used. twins: it may look like one held out."""
        examined = examine_bytes(member.data, Path(member.key))
        if examined.image is None:
            fault = examined.faults[-1]
            return member, f"Picture {member.key!r}: {fault.fault}; {fault.advice}."
        cut = Cut(*cut_middle(examined.image, (self._side, self._side)))
        if not twins and self._looks is not None and _near(cut.picture, self._looks):
            return member, _TWIN
        return member, cut

    def _finished(self, member: Member, cut: Cut) -> Example:
        picture = Picture(member.key, None, member.caption)
        mask = None
        if self._ways is not None:
            drawn = None if member.mask is None else io.BytesIO(member.mask)
            mask = self._ways.of(cut.picture, key=member.key, caption=member.caption, drawn=drawn)
        return example_of(picture, cut, mask, self._recipe, family=member.key, pocket=self._pocket)


_TWIN = "looks like a picture held out"


class Sampled(Sequence[Example]):
    """Some pictures of a stream, each read when it is asked for and not kept."""

    def __init__(self, stream: Streamed, numbers: Sequence[int]) -> None:
        self._stream, self._numbers = stream, tuple(numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, which: int) -> Example: ...
    @overload
    def __getitem__(self, which: slice) -> Sampled: ...
    def __getitem__(self, which: int | slice) -> Example | Sampled:
        if isinstance(which, slice):
            return Sampled(self._stream, self._numbers[which])
        return self._stream.example(self._numbers[which])


def read_stream(
    shards: Shards,
    recipe: Recipe,
    *,
    side: int,
    pocket: bool,
    needs_masks: bool,
    at_once: int | None = None,
) -> TrainingSet:
    """Tars as a training set: what is held out and what is watched, by chance, and the stream.

    at_once: as `Streamed` takes it.

    Raises: RecipeError for what wants all pictures beforehand, ImagesError when a picture can be
    had from nowhere, WorkError when a tar cannot be read.
    """
    _refuse(recipe)
    stream = Streamed(
        shards, recipe, side=side, pocket=pocket, needs_masks=needs_masks, at_once=at_once
    )
    try:
        return _arranged(stream, recipe, pocket=pocket)
    except BaseException:
        stream.close()
        raise


def _arranged(stream: Streamed, recipe: Recipe, *, pocket: bool) -> TrainingSet:
    shards, n = stream.shards, len(stream.shards)
    rng = seeds.numpy_at(recipe.seed, "held out")
    plan, held, why = recipe.held_out, list[tuple[int, Cut]](), ""
    if plan.share == 0:
        why = "no pictures are held out, as the recipe asks"
    elif n < plan.at_least_pictures:
        why = (
            f"no pictures are held out: there are {n}, and below {plan.at_least_pictures} each is "
            "needed for training"
        )
    else:
        wanted = min(MOST_HELD, max(1, round(plan.share * n)))
        held = stream.usable(_some(rng, n, 4 * wanted), wanted)
        why = (
            f"held out {len(held)} of {n} pictures, by chance; whatever looks like one of them is "
            "passed over when its turn comes"
        )
    numbers = [number for number, _ in held]
    stream.hold_out(numbers, looks_of([cut.picture for _, cut in held]) if held else None)
    others = [m for m in _some(rng, n, 4 * WATCHED + len(held)) if m not in set(numbers)]
    watched = stream.usable(others, WATCHED)
    if not watched:
        stream.close()
        raise ImagesError(
            f"none of {len(others)} pictures tried, of {n} in {shards.origin!r}, can be learnt "
            "from; look at them with `variegate audit`"
        )
    notes = [*_about(shards), *_about_captions(shards, recipe, rng, pocket=pocket)]
    if warning := budget_note(recipe, stream.count):
        notes.append(warning)
    keys = tuple(key for key, _ in shards.captions(numbers))
    return TrainingSet(
        train=Sampled(stream, [number for number, _ in watched]),
        held_out=Sampled(stream, numbers),
        held_out_keys=keys,
        notes=(*notes, why),
        fingerprint=shards.fingerprint(),
        stream=stream,
    )


def _refuse(recipe: Recipe) -> None:
    """Raises: RecipeError with all that wants to see every picture before the first step."""
    faults = []
    if recipe.strategies.buckets is not None:
        faults.append("strategies.buckets wants every picture's shape")
    if recipe.strategies.even_pictures is not None:
        faults.append("strategies.even_pictures compares every two pictures")
    if recipe.masks.unsure == "attention":
        faults.append("masks.unsure = 'attention' asks the bare base about every picture")
    if faults:
        raise RecipeError(
            "pictures in tars are read as they come, and are not known before the first step: "
            + "; ".join(faults)
            + "; leave that out, or unpack the tars into a folder if memory holds all pictures"
        )


def _some(rng: np.random.Generator, n: int, most: int) -> list[int]:
    found: list[int] = rng.choice(n, min(n, most), replace=False).tolist()
    return found


def _about(shards: Shards) -> list[str]:
    notes = [
        f"{len(shards)} pictures in {len(shards.tars)} tars are read as they come; copies among "
        "them are not looked for"
    ]
    if shards.faults:
        first = shards.faults[0]
        notes.append(
            f"{len(shards.faults)} files in the tars were passed over, such as "
            f"{first.file.name!r}: {first.fault}; {first.advice}"
        )
    return notes


def _about_captions(
    shards: Shards, recipe: Recipe, rng: np.random.Generator, *, pocket: bool
) -> list[str]:
    numbers = _some(rng, len(shards), CAPTIONS_LOOKED_AT)
    told = [
        (key, caption_of(Picture(key, None, caption), recipe, pocket=pocket))
        for key, caption in shards.captions(numbers)
    ]
    return trigger_note(told, recipe, of=len(shards))


def _near(picture: Image.Image, looks: Bool[np.ndarray, "n bits"]) -> bool:
    """Whether a picture, or its mirror image, has one of these looks, or nearly."""
    own = looks_of([picture, ImageOps.mirror(picture)])
    apart: Any = (own[:, None] != looks[None]).sum(-1)
    return bool(apart.min() <= NEAR_BITS)
