"""Draw what is asked into a folder: prompts x seeds, in batches, going on where it stopped.

The folder holds one PNG per request, under names of ours, and `metadata.jsonl`, which lists
exactly what was asked last, in that order. A picture that is there already and was made by the
same model, adapter and settings is kept; older ones of other settings stay beside, unlisted.
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
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from variegate.adapter import Adapter, Ensemble
from variegate.errors import Interrupted, NoSpace, NotFinite, RequestError, WorkError
from variegate.images import ImageSet, Picture
from variegate.models import Conditioning, DiffusionModel
from variegate.progress import Say
from variegate.recipe import SamplingPlan
from variegate.run import write_atomically
from variegate.sample.chorus import Dialled, voice_of, voices
from variegate.sample.denoise import NotFiniteLatent, denoise, initial_noise
from variegate.sample.png import as_png, key_of, parameters

METADATA = "metadata.jsonl"
OURS = re.compile(r'\{"file_name": "p\d+-s\d+-[0-9a-f]{24}\.png", ')
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
    strength: float = 1.0

    @property
    def look(self) -> tuple[str, int, float]:
        """What tells its picture from the others of a call."""
        return self.prompt, self.seed, self.strength


@dataclass(frozen=True)
class _Slot:
    """One request with the place its picture has: `key` says what would be in it."""

    request: Request
    key: str
    file: Path


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
    say: Say | None = None,
) -> ImageSet:
    """Draw the requests into `out` and return them in order; what is there already is kept.

    The noise of a picture comes from its seed alone: the same for every prompt, for base and
    adapter, and for any neighbours in the batch; so is the member that an ensemble draws it with,
    from prompt and seed alone. Without an adapter a request's strength says nothing.
    batch_size: None fits it to the memory. worn: what tells apart the weights of an adapter that
    the model carries already, with none given here.

    Raises: RequestError for nothing to draw, a seed below 0, or a strength of what the model
    carries already, NoSpace when `out` cannot be
    written, NotFinite with prompt and seed of a picture that came to nothing, Interrupted on
    Ctrl-C. After any of these the same call goes on with what is missing.
    """
    _check(requests, worn)
    out = _folder(out)
    if not (adapter and adapter.layers):
        requests = [replace(request, strength=1.0) for request in requests]
    known = adapter.digest() if adapter and adapter.layers else worn or None
    dialled = any(request.strength != 1 for request in requests)
    slots = _slots(requests, out, _setting(model, known, plan, negative))
    kept = _kept(slots, out)
    slots = [kept.get(slot.key, slot) for slot in slots]
    missing = _by_look([slot for slot in slots if slot.key not in kept])
    done = {slot.key for slot in slots} & set(kept)
    _list(out, [slot for slot in slots if slot.key in done])
    size = batch_size or _batch_size(model)
    tell = say or (lambda *_: None)
    tell("sample", len(done), len(slots), "")
    try:
        if missing:
            with voices(model, adapter, plan, dialled=dialled) as voice:
                for number, looks in _by_voice(missing, adapter).items():
                    draw = _Drawer(voice(number), plan, negative)
                    for batch, pixels in draw.batches(looks, size):
                        for twins, picture in zip(batch, pixels, strict=True):
                            done |= _store(twins, picture, out, model, plan, negative)
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


def _setting(model: DiffusionModel, adapter: str | None, plan: SamplingPlan, negative: str) -> str:
    """A hash of all that shapes every picture of a call alike."""
    facts = {
        "loop": LOOP_VERSION,
        "model": model.id,
        "dtype": str(model.dtype),
        "adapter": adapter,
        "plan": plan.model_dump(mode="json", exclude={"preset"}),
        "negative": negative if plan.guidance_scale > 1 else "",
    }
    return json.dumps(facts, sort_keys=True)


def _slots(requests: Sequence[Request], out: Path, setting: str) -> list[_Slot]:
    """One slot per request; a request that is repeated gets a picture of its own each time."""
    prompts = {prompt: i for i, prompt in enumerate(dict.fromkeys(r.prompt for r in requests))}
    times: dict[tuple[str, int, float], int] = {}
    slots = []
    for request in requests:
        look = request.look
        times[look] = times.get(look, 0) + 1
        strength = [] if request.strength == 1 else [request.strength]
        text = json.dumps([setting, request.prompt, request.seed, times[look], *strength])
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        name = f"p{prompts[request.prompt]:03d}-s{request.seed:04d}-{key}.png"
        slots.append(_Slot(request, key, out / name))
    return slots


def _kept(slots: list[_Slot], out: Path) -> dict[str, _Slot]:
    """The slots whose picture is in the folder, whole, perhaps under another number of prompt."""
    wanted = {slot.key: slot for slot in slots}
    kept = {}
    for file in out.glob("p*-s*-*.png"):
        key = file.stem.rpartition("-")[2]
        if key in wanted and key_of(file) == key:
            kept[key] = _Slot(wanted[key].request, key, file)
    return kept


def _by_look(slots: list[_Slot]) -> list[list[_Slot]]:
    """Slots that will hold the same picture, together: it is drawn once."""
    looks: dict[tuple[str, int, float], list[_Slot]] = {}
    for slot in slots:
        looks.setdefault(slot.request.look, []).append(slot)
    return list(looks.values())


def _by_voice(
    missing: list[list[_Slot]], adapter: Adapter | Ensemble | None
) -> dict[int, list[list[_Slot]]]:
    """What is to be drawn, by whose turn it is."""
    voices: dict[int, list[list[_Slot]]] = {}
    for twins in missing:
        request = twins[0].request
        voices.setdefault(voice_of(adapter, request.prompt, request.seed), []).append(twins)
    return voices


def _batch_size(model: DiffusionModel) -> int:
    pixels = BATCH_PIXELS.get(model.device.type, BATCH_PIXELS["cpu"])
    return max(1, min(MAX_BATCH, pixels // model.resolution**2))


def seconds_to_draw(model: DiffusionModel, plan: SamplingPlan, pictures: int) -> float | None:
    """About how long so many pictures take here, by the clock of one denoising step of a full
    batch; None where that does not fit into memory, since drawing then finds its own size."""
    size = max(1, min(_batch_size(model), pictures))
    noise = torch.cat([initial_noise(model, seed) for seed in range(size)])
    words = model.embed([""]).repeat(size)
    one = plan.model_copy(update={"steps": 1})
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

    def __init__(self, model: DiffusionModel, plan: SamplingPlan, negative: str) -> None:
        self._model = model
        self._plan = plan
        self._negative = negative
        self._embeddings: dict[tuple[str, float], Conditioning] = {}

    def batches(
        self, looks: list[list[_Slot]], size: int
    ) -> Iterable[tuple[list[list[_Slot]], UInt8[Tensor, "b 3 h w"]]]:
        while looks:
            batch = looks[:size]
            try:
                pixels = self._pixels([twins[0].request for twins in batch])
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
            looks = looks[size:]

    @torch.no_grad()
    def _pixels(self, requests: list[Request]) -> UInt8[Tensor, "b 3 h w"]:
        seeds = [request.seed for request in requests]
        try:
            latents = denoise(
                self._model,
                torch.cat([initial_noise(self._model, seed) for seed in seeds]),
                Conditioning.join([self._embed(r.prompt, r.strength) for r in requests]),
                Conditioning.join([self._embed(self._negative, r.strength) for r in requests]),
                plan=self._plan,
                picture_seeds=seeds,
            )
        except NotFiniteLatent as error:
            raise _not_finite(requests[error.row], f"denoising step {error.index}") from error
        images = self._model.decode(latents)
        for request, image in zip(requests, images, strict=True):
            if not bool(torch.isfinite(image).all()):
                raise _not_finite(request, "decoding")
        return ((images / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).cpu()

    def _embed(self, prompt: str, strength: float) -> Conditioning:
        if (prompt, strength) not in self._embeddings:
            if isinstance(self._model, Dialled):
                read = self._model.embed([prompt], strength=strength)
            else:
                read = self._model.embed([prompt])
            self._embeddings[prompt, strength] = read
        return self._embeddings[prompt, strength]


def _not_finite(request: Request, where: str) -> NotFinite:
    return NotFinite(
        f"the picture of prompt {request.prompt!r:.200}, seed {request.seed} turned NaN or "
        f"infinite at {where}; expected finite numbers; try precision float32, a lower "
        "adapter strength, or a lower guidance scale"
    )


def _store(
    twins: list[_Slot],
    picture: UInt8[Tensor, "3 h w"],
    out: Path,
    model: DiffusionModel,
    plan: SamplingPlan,
    negative: str,
) -> set[str]:
    """Write one picture to every slot that asks for it, note each, and return their keys."""
    for slot in twins:
        text = parameters(slot.request.prompt, slot.request.seed, model, plan, negative)
        try:
            write_atomically(slot.file, as_png(picture, key=slot.key, parameters=text))
            with (out / METADATA).open("a", encoding="utf8") as file:
                file.write(_line(slot))
        except OSError as error:
            raise _no_space(out, error) from error
    return {slot.key for slot in twins}


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
