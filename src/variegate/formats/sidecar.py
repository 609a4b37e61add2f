"""What A1111 reads beside an adapter file: `<name>.json` and the preview `<name>.png`.

A1111 shows the picture on the card, puts the activation text into the prompt when the card is
clicked, and hides cards whose `sd version` is not the loaded model's.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from variegate.errors import AdapterError, ImagesError
from variegate.formats.metadata import own_notes, recommended_of, trigger_of
from variegate.formats.reading import read
from variegate.images.decode import examine
from variegate.run import write_atomically

VERSIONS = {"sd1": "SD1", "sd2": "SD2", "sdxl": "SDXL"}  # all that A1111 has a word for
PREVIEW_PIXELS = 512


def write_sidecar(file: Path | str, *, preview: Path | None = None) -> list[Path]:
    """Write the JSON beside an adapter file, and a preview when a picture is given.

    The preferred weight is the strength that `pick` recommends in the header, if it does.
    The picture is made small and loses its text: prompts and folders stay where they are.
    Raises: AdapterError when the file, ImagesError when the picture cannot be used.
    """
    file = Path(file)
    if file.suffix != ".safetensors":
        raise AdapterError(f"{file}: what A1111 reads lies beside a .safetensors file")
    adapter = read(file)
    verdict = own_notes(adapter.metadata).get("verdict")
    sentence = str(verdict.get("sentence", "")) if isinstance(verdict, dict) else ""
    document: dict[str, Any] = {
        "description": adapter.metadata.get("modelspec.title", ""),
        "sd version": VERSIONS.get(adapter.family, "Unknown"),
        "activation text": trigger_of(adapter.metadata),
        # 0 is A1111's word for: as the user has set it.
        "preferred weight": recommended_of(adapter.metadata).get("strength", 0),
        "negative text": "",
        "notes": sentence,
    }
    written = [file.with_suffix(".json")]
    write_atomically(written[0], json.dumps(document, indent=4, ensure_ascii=False).encode())
    if preview is not None:
        examined = examine(preview)
        if examined.image is None:
            fault = examined.faults[0]
            raise ImagesError(f"{preview}: {fault.fault}; {fault.advice}")
        picture = examined.image
        picture.thumbnail((PREVIEW_PIXELS, PREVIEW_PIXELS), Image.Resampling.LANCZOS)
        plain = Image.new("RGB", picture.size)
        plain.paste(picture)
        held = io.BytesIO()
        plain.save(held, "PNG")
        written.append(file.with_suffix(".png"))
        write_atomically(written[1], held.getvalue())
    return written
