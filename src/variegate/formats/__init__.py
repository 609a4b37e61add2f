"""Adapter files: told apart, read, written, converted. Safetensors only.

`kohya` is the public form of SD 1, 2 and XL (diffusers, ComfyUI and A1111 read it); `diffusers`,
the one for SD 3, is one file with `lora_A`/`lora_B` names and PEFT's settings in the header; `peft`
is a folder per model as PEFT saves it. The forms of LyCORIS, ComfyUI and OneTrainer are read too.
"""

from variegate.formats.inspecting import inspect
from variegate.formats.metadata import Reading, describe, own_notes, reading_of, trigger_of
from variegate.formats.names import Source
from variegate.formats.reading import identify, read
from variegate.formats.sidecar import write_sidecar
from variegate.formats.writing import Form, convert, stamp, write

__all__ = [
    "Form",
    "Reading",
    "Source",
    "convert",
    "describe",
    "identify",
    "inspect",
    "own_notes",
    "read",
    "reading_of",
    "stamp",
    "trigger_of",
    "write",
    "write_sidecar",
]
