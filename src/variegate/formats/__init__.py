"""Adapter files: told apart, read, written, converted. Safetensors only.

`kohya` is the public form of SD 1 and 2 (diffusers, ComfyUI and A1111 read it); `diffusers`, the
one for SDXL and SD 3, is one file with `lora_A`/`lora_B` names and PEFT's settings in the header;
`peft` is a folder per model as PEFT saves it.
"""

from variegate.formats.metadata import clip_skip_of, describe, own_notes, trigger_of
from variegate.formats.reading import Form, identify, inspect, read
from variegate.formats.writing import convert, write

__all__ = [
    "Form",
    "clip_skip_of",
    "convert",
    "describe",
    "identify",
    "inspect",
    "own_notes",
    "read",
    "trigger_of",
    "write",
]
