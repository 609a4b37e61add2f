"""Draw what is asked into a folder: prompts x seeds, in batches, going on where it stopped.

The folder holds one file per request, under names of ours, and `metadata.jsonl`, which lists
exactly what was asked last, in that order. A picture that is there already and was made by the
same model, adapter and settings is kept; older ones of other settings stay beside, unlisted.

A picture hangs on its prompt, seed and strength alone, with one exception: methods that couple
pictures let those of one prompt and strength know of each other. Their group is all seeds that one
call asks of the prompt; it is part of what a picture is called, and is drawn whole even where only
some of it is missing, so that going on gives the same pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from variegate import formats
from variegate.adapter import Adapter, Ensemble
from variegate.errors import Interrupted, NoSpace, NotFinite, RequestError, WorkError
from variegate.images import ImageSet, Picture
from variegate.models import Conditioning, DiffusionModel
from variegate.progress import Say
from variegate.recipe import SamplingMethods, SamplingPlan
from variegate.run import write_atomically
from variegate.sample.chorus import Dialled, Voice, voice_of, voices
from variegate.sample.denoise import NotFiniteLatent, denoise, initial_noise
from variegate.sample.files import Format, Named, as_bytes, key_of, parameters
from variegate.sample.methods import Scene, shield

METADATA = "metadata.jsonl"
OURS = re.compile(r'\{"file_name": "p\d+-s\d+-[0-9a-f]{24}\.(png|webp)", ')
LOOP_VERSION = 1  # raise it when the same request would give another picture
MAX_BATCH = 32
# What one batch may hold, in pixels, by measure of memory rather than speed.
BATCH_PIXELS = {"cpu": 2 * 512 * 512, "cuda": 8 * 512 * 512, "mps": 2 * 512 * 512}


@dataclass(frozen=True)
class Request:
    """One picture that is asked for; `group` is passed on to its `Picture`.

    strength: how strongly the adapter acts on it, its text encoder's part included; at 0 the base
    draws, to the bit.
    """

    prompt: str
    seed: int
    group: str = ""
    strength: float = field(default=1.0, repr=False)  # what folders of old are named by has none

    @property
    def look(self) -> tuple[str, int, float]:
        """What tells its picture from the others of a call."""
        return self.prompt, self.seed, self.strength


@dataclass(frozen=True)
class _Slot:
    """One request with the place its picture has: `key` says what would be in it.

    bond: which group it belongs to, where methods couple pictures.
    """

    request: Request
    key: str
    file: Path
    bond: tuple[str, float, int] | None = None


@dataclass(frozen=True, eq=False)
class _Call:
    """What all pictures of one call have in common.

    methods: those in force; None: the plain loop. shielded, weaker: what the shield keeps away from
    and whom autoguidance compares with, where they do.
    """

    model: DiffusionModel
    adapter: Adapter | Ensemble | None
    plan: SamplingPlan
    methods: SamplingMethods | None
    negative: str
    out: Path
    format: Format
    named: Named | None
    worn: str
    shielded: ImageSet | None
    weaker: Adapter | None

    @property
    def coupled(self) -> bool:
        return self.methods is not None and self.methods.coupled

    def setting(self) -> str:
        """All that shapes every picture of the call alike, as text."""
        plan, methods = self.plan, self.methods
        facts: dict[str, Any] = {
            "loop": LOOP_VERSION,
            "model": self.model.id,
            "dtype": str(self.model.dtype),
            "adapter": self.adapter.digest() if self.adapter else self.worn or None,
            "plan": plan.model_dump(mode="json", exclude={"preset", "variety", "methods"}),
            "negative": self.negative if plan.guidance_scale > 1 else "",
        }
        if methods is not None:
            # Folders and files by what is in them, wherever they lie.
            told = methods.model_dump(mode="json", exclude_none=True)
            if self.shielded is not None:
                told["shield"]["images"] = shield.digest(self.shielded)
            if self.weaker is not None:
                told["autoguidance"]["file"] = self.weaker.digest()
            facts |= {"methods": told, "negative": self.negative}
        return json.dumps(facts, sort_keys=True)


def grid(
    prompts: Iterable[str],
    seeds: Iterable[int],
    *,
    group: str = "",
    strengths: Iterable[float] = (1.0,),
) -> list[Request]:
    """Every prompt at every strength with every seed, prompt by prompt."""
    seeds, strengths = list(seeds), list(strengths)
    return [
        Request(prompt, seed, group, strength)
        for prompt in prompts
        for strength in strengths
        for seed in seeds
    ]


def sample(
    model: DiffusionModel,
    adapter: Adapter | Ensemble | None,
    requests: Sequence[Request],
    *,
    plan: SamplingPlan,
    out: Path,
    negative: str = "",
    worn: str = "",
    batch_size: int | None = None,
    format: Format = "png",
    named: Named | None = None,
    say: Say | None = None,
) -> ImageSet:
    """Draw the requests into `out` and return them in order; what is there already is kept.

    The noise of a picture comes from its seed alone: the same for every prompt, for base and
    adapter, and for any neighbours in the batch; so is the member that an ensemble draws it with,
    from prompt and seed alone. Without an adapter a request's strength says nothing, nor do methods
    that are about adapters. batch_size: None fits it to the memory. worn: what tells apart the
    weights of an adapter that the model carries already, with none given here. named: the adapter's
    file, for the text that pictures carry.

    Raises: RequestError for nothing to draw, a seed below 0, a strength of what the model carries
    already, or methods that lack a file or folder; NoSpace when `out` cannot be
    written, NotFinite with prompt and seed of a picture that came to nothing, Interrupted on
    Ctrl-C. After any of these the same call goes on with what is missing.
    """
    call, slots, kept = _planned(
        model, adapter, requests, plan, out, negative, worn=worn, format=format, named=named
    )
    adapter, out = call.adapter, call.out
    slots = [kept.get(slot.key, slot) for slot in slots]
    done = {slot.key for slot in slots} & set(kept)
    _list(out, [slot for slot in slots if slot.key in done])
    size = batch_size or _batch_size(model)
    tell = say or (lambda *_: None)
    tell("sample", len(done), len(slots), "")
    try:
        if len(done) < len({slot.key for slot in slots}):
            dialled = any(request.strength != 1 for request in requests)
            dialled = dialled or (call.methods is not None and call.methods.dialled)
            with voices(model, adapter, plan, dialled=dialled, weaker=call.weaker) as voice:
                for number, bonds in _by_voice(_bonds(slots, set(kept)), adapter).items():
                    draw = _Drawer(voice(number), call)
                    for batch, pixels in draw.batches(bonds, size):
                        for twins, picture in zip(batch, pixels, strict=True):
                            done |= _store(twins, picture, call, set(kept))
                        tell("sample", len(done), len(slots), batch[-1][0].request.prompt)
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"stopped after {len(done)} of {len(slots)} pictures in {out}; "
            "the same command goes on from there",
            getattr(error, "number", signal.SIGINT),
        ) from error
    finally:
        _list(out, [slot for slot in slots if slot.key in done])
    return ImageSet(pictures=tuple(_picture(slot) for slot in slots), origin=str(out))


@dataclass(frozen=True)
class Left:
    """What is still to be drawn of what is asked.

    out: the folder. files: what each picture that is not there yet will be called, by its key.
    batches: the requests that are drawn together, in the order in which one process draws them.
    done: how many of how many pictures, `whole`, are there.
    """

    out: Path
    files: dict[str, str]
    batches: list[list[Request]]
    done: int
    whole: int


def left_over(
    model: DiffusionModel,
    adapter: Adapter | Ensemble | None,
    requests: Sequence[Request],
    *,
    plan: SamplingPlan,
    out: Path,
    negative: str = "",
    format: Format = "png",
) -> Left:
    """What `sample` with the same words would still draw. Raises: as `sample`."""
    call, slots, kept = _planned(
        model, adapter, requests, plan, out, negative, worn="", format=format, named=None
    )
    size, batches = _batch_size(model), list[list[Request]]()
    for bonds in _by_voice(_bonds(slots, set(kept)), call.adapter).values():
        while bonds:
            taken = _packed(bonds, size)
            batches.append([slot.request for bond in taken for twins in bond for slot in twins])
            bonds = bonds[len(taken) :]
    files = {slot.key: slot.file.name for slot in slots if slot.key not in kept}
    return Left(call.out, files, batches, len(kept), len({slot.key for slot in slots}))


def _planned(
    model: DiffusionModel,
    adapter: Adapter | Ensemble | None,
    requests: Sequence[Request],
    plan: SamplingPlan,
    out: Path,
    negative: str,
    *,
    worn: str,
    format: Format,
    named: Named | None,
) -> tuple[_Call, list[_Slot], dict[str, _Slot]]:
    """A call, a slot for each request, and those whose picture is there."""
    _check(requests, worn)
    out = _folder(out)
    adapter = adapter if adapter and adapter.layers else None
    if adapter is None:
        requests = [replace(request, strength=1.0) for request in requests]
    call = _call(model, adapter, plan, negative, out, format, named, worn)
    slots = _slots(requests, call)
    return call, slots, _kept(slots, out, format)


def _call(
    model: DiffusionModel,
    adapter: Adapter | Ensemble | None,
    plan: SamplingPlan,
    negative: str,
    out: Path,
    format: Format,
    named: Named | None,
    worn: str,
) -> _Call:
    methods = plan.in_force
    if methods is not None and adapter is None:
        if worn and methods != methods.of_base:
            raise RequestError(
                "late_adapter and autoguidance dial an adapter that is given; the model carries "
                "one already"
            )
        methods = methods.of_base
    weaker = None
    if methods is not None and methods.autoguidance and methods.autoguidance.weaker == "file":
        if isinstance(adapter, Ensemble):
            raise RequestError(
                "an ensemble has no earlier checkpoint of its own: set "
                "methods.autoguidance.weaker to 'scaled' or 'base', or sample one adapter"
            )
        weaker = formats.read(Path(methods.autoguidance.file))
    shielded = shield.pictures_of(methods.shield.images) if methods and methods.shield else None
    plan = plan.model_copy(update={"variety": None, "methods": methods})
    return _Call(
        *(model, adapter, plan, methods, negative, out, format, named, worn, shielded, weaker)
    )


def _check(requests: Sequence[Request], worn: str) -> None:
    if not requests:
        raise RequestError("nothing to draw: give at least one prompt and one seed")
    below = [request.seed for request in requests if request.seed < 0]
    if below:
        raise RequestError(f"seed {below[0]} is below 0; seeds are whole numbers from 0 on")
    strengths = {request.strength for request in requests}
    if odd := [strength for strength in strengths if not math.isfinite(strength)]:
        raise RequestError(f"strength {odd[0]}; expected a finite number, such as 0.8")
    if worn and strengths != {1.0}:
        raise RequestError(
            f"strengths {sorted(strengths)} of an adapter that the model carries already; expected "
            "1, or the adapter to be given here"
        )


def _folder(out: Path) -> Path:
    out = Path(out).absolute()
    if out.exists() and not out.is_dir():
        raise RequestError(f"{out} is a file; expected a folder for the pictures, or a new path")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _no_space(out, error) from error
    if foreign := _foreign_line(out / METADATA):
        raise RequestError(
            f"{out / METADATA} lists pictures that were not drawn here, such as {foreign!r:.80}, "
            "and would be overwritten; name another folder"
        )
    if not os.access(out, os.W_OK):
        raise NoSpace(f"{out} is not writable; change its permissions or name another folder")
    return out


def _foreign_line(file: Path) -> str:
    """A line of a `metadata.jsonl` that is none of ours, or ""; a torn last line counts as ours."""
    if not file.is_file():
        return ""
    lines = file.read_text(encoding="utf8", errors="replace").split("\n")
    return next((line for line in lines[:-1] if not OURS.match(line)), "")


def _no_space(place: Path, error: OSError) -> NoSpace:
    return NoSpace(
        f"{place} cannot be written: {error.strerror or error}; free some space, change its "
        "permissions, or name another folder"
    )


def _slots(requests: Sequence[Request], call: _Call) -> list[_Slot]:
    """One slot per request; a request that is repeated gets a picture of its own each time."""
    setting = call.setting()
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt for r in requests))}
    bonds = [_bond(request, call) for request in requests]
    company: dict[tuple[str, float, int] | None, set[int]] = {}
    for request, bond in zip(requests, bonds, strict=True):
        company.setdefault(bond, set()).add(request.seed)
    times: dict[tuple[str, int, float], int] = {}
    slots = []
    for request, bond in zip(requests, bonds, strict=True):
        look = request.look
        times[look] = times.get(look, 0) + 1
        told: list[Any] = [setting, request.prompt, request.seed, times[look]]
        told += [] if request.strength == 1 else [request.strength]
        told += [{"with": sorted(company[bond])}] if bond else []
        key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
        name = f"p{prompts[request.prompt]:03d}-s{request.seed:04d}-{key}.{call.format}"
        slots.append(_Slot(request, key, call.out / name, bond))
    return slots


def _bond(request: Request, call: _Call) -> tuple[str, float, int] | None:
    if not call.coupled:
        return None
    return request.prompt, request.strength, voice_of(call.adapter, request.prompt, request.seed)


def _kept(slots: list[_Slot], out: Path, format: Format) -> dict[str, _Slot]:
    """The slots whose picture is in the folder, whole, perhaps under another number of prompt."""
    wanted = {slot.key: slot for slot in slots}
    kept = {}
    for file in out.glob(f"p*-s*-*.{format}"):
        key = file.stem.rpartition("-")[2]
        if key in wanted and key_of(file) == key:
            kept[key] = replace(wanted[key], file=file)
    return kept


# Slots that will hold one picture, which is drawn once; and those that are drawn together.
_Twins = list[_Slot]
_Bond = list[_Twins]


def _bonds(slots: list[_Slot], kept: set[str]) -> list[_Bond]:
    """What is to be drawn: each look by itself, or with all of its group where anything of that is
    missing, in the order of seeds."""
    bonds: dict[Any, dict[tuple[str, int, float], _Twins]] = {}
    for slot in slots:
        together = bonds.setdefault(slot.bond or slot.request.look, {})
        together.setdefault(slot.request.look, []).append(slot)
    found = []
    for together in bonds.values():
        looks = sorted(together.values(), key=lambda twins: twins[0].request.seed)
        if any(slot.key not in kept for twins in looks for slot in twins):
            found.append(looks)
    return found


def _by_voice(bonds: list[_Bond], adapter: Adapter | Ensemble | None) -> dict[int, list[_Bond]]:
    """What is to be drawn, by whose turn it is."""
    voices: dict[int, list[_Bond]] = {}
    for bond in bonds:
        request = bond[0][0].request
        voices.setdefault(voice_of(adapter, request.prompt, request.seed), []).append(bond)
    return voices


def _batch_size(model: DiffusionModel) -> int:
    pixels = BATCH_PIXELS.get(model.device.type, BATCH_PIXELS["cpu"])
    return max(1, min(MAX_BATCH, pixels // model.resolution**2))


def seconds_to_draw(model: DiffusionModel, plan: SamplingPlan, pictures: int) -> float | None:
    """About how long so many pictures take here by the plain loop, by the clock of one denoising
    step of a full batch; None where that does not fit into memory, since drawing then finds its own
    size."""
    size = max(1, min(_batch_size(model), pictures))
    noise = torch.cat([initial_noise(model, seed) for seed in range(size)])
    words = model.embed([""]).repeat(size)
    one = plan.model_copy(update={"steps": 1, "variety": None, "methods": None})
    took = 0.0
    try:
        for _ in range(2):  # the first call warms up
            start = time.perf_counter()
            denoise(model, noise, words, words, plan=one, picture_seeds=range(size))
            took = time.perf_counter() - start
    except torch.OutOfMemoryError:
        return None
    return took * plan.steps * math.ceil(pictures / size)


class _Drawer:
    """Requests in, pixels out, batch by batch; halves the batch when memory runs out."""

    def __init__(self, voice: Voice, call: _Call) -> None:
        self._model = voice.model
        self._weaker = voice.weaker
        self._call = call
        self._away: Tensor | None = None
        self._embeddings: dict[tuple[DiffusionModel, str, float], Conditioning] = {}

    def batches(
        self, bonds: list[_Bond], size: int
    ) -> Iterable[tuple[list[_Twins], UInt8[Tensor, "b 3 h w"]]]:
        while bonds:
            taken = _packed(bonds, size)
            batch = [twins for bond in taken for twins in bond]
            try:
                pixels = self._pixels(taken, size)
            except torch.OutOfMemoryError as error:
                if size == 1:
                    raise WorkError(
                        f"{self._model.device} has too little memory for one picture of "
                        f"{self._model.resolution} pixels: {error}; close what else uses it, use "
                        "half precision, or draw on the CPU"
                    ) from error
                size = (size + 1) // 2
                continue
            yield batch, pixels
            bonds = bonds[len(taken) :]

    @torch.no_grad()
    def _pixels(self, bonds: list[_Bond], size: int) -> UInt8[Tensor, "b 3 h w"]:
        requests = [twins[0].request for bond in bonds for twins in bond]
        seeds = [request.seed for request in requests]
        asked, empty = self._words(requests, 1.0)
        try:
            latents = denoise(
                self._model,
                torch.cat([initial_noise(self._model, seed) for seed in seeds]),
                asked,
                empty,
                plan=self._call.plan,
                picture_seeds=seeds,
                scene=self._scene(bonds, requests, size),
            )
        except NotFiniteLatent as error:
            raise _not_finite(requests[error.row], f"denoising step {error.index}") from error
        # A group may hold more than fits; else the batch is decoded as it was drawn.
        parts = latents.split(size) if len(latents) > size else (latents,)
        images = torch.cat([self._model.decode(part) for part in parts])
        for request, image in zip(requests, images, strict=True):
            if not bool(torch.isfinite(image).all()):
                raise _not_finite(request, "decoding")
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def _scene(self, bonds: list[_Bond], requests: list[Request], size: int) -> Scene | None:
        methods = self._call.methods
        if methods is None:
            return None
        if self._call.shielded is not None and self._away is None:
            self._away = shield.encoded(self._model, self._call.shielded)
        other = self._weaker if methods.autoguidance is not None else None
        of_file = other is not None and self._call.weaker is not None
        return Scene(
            words=partial(self._words, requests),
            groups=torch.tensor([i for i, bond in enumerate(bonds) for _ in bond]),
            weaker=other,
            weaker_words=self._words(requests, 1.0, other) if of_file else None,
            away=self._away,
            at_once=size if len(requests) > size else None,
        )

    def _words(
        self, requests: list[Request], share: float, model: DiffusionModel | None = None
    ) -> tuple[Conditioning, Conditioning]:
        """What is asked and what is not, read with the adapter at a share of its strength."""
        reader = model or self._model

        def read(prompts: Iterable[str]) -> Conditioning:
            each = zip(prompts, requests, strict=True)
            return Conditioning.join([self._embed(reader, p, share * r.strength) for p, r in each])

        return read(r.prompt for r in requests), read([self._call.negative] * len(requests))

    def _embed(self, reader: DiffusionModel, prompt: str, strength: float) -> Conditioning:
        key = (reader, prompt, strength)
        if key not in self._embeddings:
            if isinstance(reader, Dialled):
                self._embeddings[key] = reader.embed([prompt], strength=strength)
            else:
                self._embeddings[key] = reader.embed([prompt])
        return self._embeddings[key]


def _packed(bonds: list[_Bond], size: int) -> list[_Bond]:
    """As many whole ones as a batch holds; one at least."""
    taken, held = [bonds[0]], len(bonds[0])
    for bond in bonds[1:]:
        held += len(bond)
        if held > size:
            break
        taken.append(bond)
    return taken


def _not_finite(request: Request, where: str) -> NotFinite:
    return NotFinite(
        f"the picture of prompt {request.prompt!r:.200}, seed {request.seed} turned NaN or "
        f"infinite at {where}; expected finite numbers; try precision float32, a lower "
        "adapter strength, or a lower guidance scale"
    )


def _store(twins: _Twins, picture: UInt8[Tensor, "3 h w"], call: _Call, kept: set[str]) -> set[str]:
    """Write one picture to every slot that asks for it and has none, note each, and return their
    keys."""
    missing = [slot for slot in twins if slot.key not in kept]
    for slot in missing:
        request = slot.request
        text = parameters(
            request.prompt,
            request.seed,
            call.model,
            call.plan,
            call.negative,
            strength=request.strength if call.adapter else None,
            adapter=call.named,
            methods=call.methods.on if call.methods else (),
        )
        told = as_bytes(picture, key=slot.key, parameters=text, format=call.format)
        try:
            write_atomically(slot.file, told)
            with (call.out / METADATA).open("a", encoding="utf8") as file:
                file.write(_line(slot))
        except OSError as error:
            raise _no_space(call.out, error) from error
    return {slot.key for slot in missing}


def _list(out: Path, slots: list[_Slot]) -> None:
    try:
        write_atomically(out / METADATA, "".join(map(_line, slots)).encode())
    except OSError as error:
        raise _no_space(out, error) from error


def _line(slot: _Slot) -> str:
    request = slot.request
    facts: dict[str, str | int | float] = {
        "file_name": slot.file.name,
        "prompt": request.prompt,
        "seed": request.seed,
    }
    if request.group:
        facts["group"] = request.group
    if request.strength != 1:
        facts["strength"] = request.strength
    return json.dumps(facts) + "\n"


def _picture(slot: _Slot) -> Picture:
    return Picture(
        key=slot.file.name,
        file=slot.file,
        prompt=slot.request.prompt,
        seed=slot.request.seed,
        group=slot.request.group or None,
        strength=slot.request.strength,
    )
