"""The folder itself: weights in both forms, sidecar, card, pictures with what made them, recipe."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomlkit
from huggingface_hub import ModelCard
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from variegate.errors import AdapterError, NoSpace, RequestError
from variegate.formats import own_notes, write, write_sidecar
from variegate.formats.metadata import OURS
from variegate.images.decode import examine
from variegate.measurement import Measurement
from variegate.recipe import Recipe
from variegate.run import write_atomically
from variegate.share import hub
from variegate.share.card import (
    FAMILIES,
    FIGURES,
    HUB_NAME,
    OTHER,
    WEIGHTS,
    body,
    front_matter,
)
from variegate.share.private import clean, header
from variegate.share.source import Drawn, Source, source_of

OURS_TOO = "share.json"  # marks a folder as ours, and lists what is in it
WHERE = "share"


@dataclass(frozen=True)
class Shared:
    """The folder, what is in it, and where it went."""

    folder: Path
    name: str
    files: tuple[str, ...]
    pushed: str | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "name": self.name,
            "files": list(self.files),
            "pushed": self.pushed,
            "warnings": list(self.warnings),
        }


def share(
    folder: Path,
    *,
    out: Path | None = None,
    name: str | None = None,
    base_model: str | None = None,
    private: bool = False,
    push: str | None = None,
) -> Shared:
    """Make the folder to share of a run, or of what `pick` chose.

    out: `share` in the run without it. name: of the files; what the adapter's header calls it
    without one. base_model: the base's name on the Hub, where the run does not say it. private:
    leave out prompts, captions and all that quotes them. push: OWNER/NAME on the Hub; nothing is
    uploaded without it. Folders of this machine and tokens are left out always.

    Raises: RequestError when there is nothing to share, the place holds something else, or the
    upload cannot be asked for; WorkError when it fails.
    """
    if push is not None:
        hub.check(push)
    source = source_of(folder)
    named = base_model or (source.base if HUB_NAME.fullmatch(source.base) else None)
    if base_model is not None and not HUB_NAME.fullmatch(base_model):
        raise RequestError(f"--base-model {base_model!r}; expected OWNER/NAME, as on the Hub")
    if named is not None and base_model is None and Path(named).exists():
        named = None  # a folder that happens to be spelled so
    out = (out or Path(folder) / WHERE).resolve()
    _check_free(out)
    stem = name_of(source, name)
    warned = list(source.warnings)
    if named is None and source.adapter.family != "pocket":
        warned.append(
            "the card does not say which base it is for, since that was no name on the Hub; give "
            "--base-model OWNER/NAME"
        )
    maker = _Maker(source, out, stem, private, warned)
    try:
        files = maker.make(named, push)
    except OSError as error:
        raise NoSpace(f"{out} cannot be written: {error.strerror or error}") from error
    pushed = hub.push(out, push, files=files, private=private) if push else None
    return Shared(out, stem, tuple(files), pushed, tuple(warned))


def name_of(source: Source, asked: str | None) -> str:
    """A name that is one everywhere: letters, digits, and -_. between them."""
    name = asked or source.adapter.metadata.get("ss_output_name", "") or source.trigger
    kept = re.sub(r"[^A-Za-z0-9._-]+", "-", str(clean(name))).strip("-._")
    if asked and kept != asked:
        raise RequestError(f"--name {asked!r}; expected letters, digits and -_. such as {kept!r}")
    return kept[:80] or "adapter"


def _check_free(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / OURS_TOO).is_file()):
        raise RequestError(
            f"{out} holds something else, which would be shared with it; name another folder"
        )


class _Maker:
    def __init__(
        self, source: Source, out: Path, stem: str, private: bool, warned: list[str]
    ) -> None:
        self._source = source
        self._out = out
        self._stem = stem
        self._private = private
        self._warned = warned

    def make(self, base_model: str | None, repo: str | None) -> list[str]:
        """All files, by name; what an earlier sharing left and this one has not goes."""
        self._out.mkdir(parents=True, exist_ok=True)
        before = _listed(self._out)
        figures = self._figures()
        files = self._weights()
        images = self._images()
        files += [file for file, _ in images]
        if self._source.recipe is not None:
            files.append(self._put("recipe.toml", recipe_text(self._source.recipe)))
        data = front_matter(
            self._source, base_model=base_model, images=images, private=self._private
        )
        text = body(
            self._source,
            name=self._stem,
            repo=repo,
            files=files,
            figures=figures,
            with_pictures=bool(images),
            with_recipe=self._source.recipe is not None,
            private=self._private,
        )
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")
        files.append(self._put("README.md", str(card)))
        files.append(self._put("civitai.json", self._civitai(images)))
        for name in before - set(files):
            (self._out / name).unlink(missing_ok=True)
        self._put(OURS_TOO, json.dumps({"files": files}, indent=1))
        return files

    def _put(self, name: str, text: str) -> str:
        write_atomically(self._out / name, text.encode())
        return name

    def _figures(self) -> list[Measurement]:
        verdict = self._source.verdict
        return [m for name in FIGURES if verdict and (m := verdict.find(name))]

    def _weights(self) -> list[str]:
        """The adapter under a header that may be shared: for A1111 with sidecar and preview, and as
        diffusers looks for it."""
        adapter = self._source.adapter
        told = header(adapter.metadata, private=self._private) | {"ss_output_name": self._stem}
        told["modelspec.title"] = self._stem
        told[OURS] = json.dumps({"family": adapter.family, **own_notes(told)}, sort_keys=True)
        adapter = replace(adapter, metadata=told)
        own = write(adapter, self._out / f"{self._stem}.safetensors")
        shown = self._source.pictures[0].file if self._source.pictures else None
        beside = write_sidecar(own, preview=shown)
        if len(beside) == 1:
            own.with_suffix(".png").unlink(missing_ok=True)
        try:
            write(adapter, self._out / WEIGHTS, "diffusers")
        except AdapterError as error:  # a kind that has no such form
            self._warned.append(f"{WEIGHTS} was not written: {clean(str(error))}")
            return [own.name, *(file.name for file in beside)]
        return [own.name, *(file.name for file in beside), WEIGHTS]

    def _images(self) -> list[tuple[str, str]]:
        """(file, prompt) of each sample, decoded and written anew: nothing else is in it."""
        found = []
        (self._out / "images").mkdir(exist_ok=True)
        for number, drawn in enumerate(self._source.pictures):
            examined = examine(drawn.file)
            if examined.image is None:
                self._warned.append(f"{drawn.file.name}: {examined.faults[0].fault}; left out")
                continue
            name = f"images/sample_{number}.png"
            notes = PngInfo()
            if not self._private and (told := self._infotext(drawn)):
                notes.add_text("parameters", told)
            plain = Image.new("RGB", examined.image.size)
            plain.paste(examined.image)
            held = io.BytesIO()
            plain.save(held, "PNG", pnginfo=notes)
            write_atomically(self._out / name, held.getvalue())
            found.append((name, drawn.prompt))
        return found

    def _infotext(self, drawn: Drawn) -> str:
        """What made a picture, as A1111 reads it, the adapter called by its name here."""
        with Image.open(drawn.file, formats=("PNG", "WEBP")) as picture:
            told = picture.info.get("parameters")
        if not isinstance(told, str) or not told.strip():
            return ""
        first, _, rest = str(clean(told)).partition("\n")
        first = re.sub(r"\s*<lora:[^<>]*>", "", first)
        called = f"{first} <lora:{self._stem}:{self._source.strength or 1:g}>"
        return f"{called}\n{rest}" if rest else called

    def _civitai(self, images: Sequence[tuple[str, str]]) -> str:
        """What Civitai's form asks, to be copied into it."""
        source, recipe = self._source, self._source.recipe
        known = FAMILIES.get(source.adapter.family, OTHER)
        figures = {m.name: round(m.value, 3) for m in self._figures()}
        told = {
            "name": self._stem,
            "type": "LORA",
            "baseModel": known["civitai"],
            "trainedWords": [source.trigger] if source.trigger else [],
            "tags": [source.class_noun] if source.class_noun else [],
            "strength": source.strength or 1.0,
            "guidanceScale": source.guidance_scale,
            "steps": recipe.optimizer.steps if recipe else None,
            "description": "; ".join(f"{name} {value:g}" for name, value in figures.items()),
            "files": [f"{self._stem}.safetensors"],
            "images": [
                {"file": file, "prompt": "" if self._private else prompt} for file, prompt in images
            ],
        }
        return json.dumps(clean(told), indent=1, ensure_ascii=False, allow_nan=False)


def recipe_text(recipe: Recipe) -> str:
    """A recipe for others: what differs from the defaults, without the pictures' folder; of every
    other path on this machine the last part."""
    tables = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    kinds = {
        "adapter": recipe.adapter.kind,
        "optimizer": recipe.optimizer.kind,
    }
    for table, kind in kinds.items():
        if table in tables:
            tables[table] = {"kind": kind, **tables[table]}
    if "schedule" in (optimizer := tables.get("optimizer", {})):
        schedule = recipe.optimizer.schedule
        optimizer["schedule"] = {"kind": schedule.kind, **optimizer["schedule"]}
    for key in ("images", "t5_tokenizer"):
        tables.pop(key, None)
    return "# Give your own pictures: variegate trial my_photos --recipe recipe.toml\n" + (
        tomlkit.dumps(clean(tables))
    )


def _listed(out: Path) -> set[str]:
    """What an earlier sharing put there, all of it inside the folder."""
    try:
        told = json.loads((out / OURS_TOO).read_text(encoding="utf8"))
        names = [str(name) for name in told["files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    home = out.resolve()
    return {name for name in names if (out / name).resolve().is_relative_to(home)}
