"""Adapter files: told apart, read, written, converted. Safetensors only; SD 1 and 2 families.

`kohya` is the public form (diffusers, ComfyUI and A1111 read it), `diffusers` one file with
`lora_A`/`lora_B` names and PEFT's settings in the header, `peft` a folder per model as PEFT
saves it.
"""

from variegate.formats.metadata import describe, own_notes, trigger_of
from variegate.formats.reading import Form, identify, inspect, read
from variegate.formats.writing import convert, write

__all__ = [
    "Form",
    "convert",
    "describe",
    "identify",
    "inspect",
    "own_notes",
    "read",
    "trigger_of",
    "write",
]
