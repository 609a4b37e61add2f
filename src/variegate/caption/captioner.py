"""Models that say what is in a picture, read from a folder of their own through transformers.

Any that writes text from a picture with transformers' own code: BLIP, GIT, Florence-2, an encoder
of pictures with a decoder of text (ViT-GPT2), and those that are asked in a chat. Nothing is
fetched, no code of a model's author is run, and only safetensors are read as weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    VisionEncoderDecoderModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.utils import logging as transformers_logging

from variegate.device import pick_device
from variegate.errors import CaptionerError

PAIR = "vision-encoder-decoder"
TASKED = {"florence2": "<DETAILED_CAPTION>"}  # asked by the name of a task
ASKED = (
    "Describe this picture in one plain sentence: what it shows, what that does, where it is, "
    "the background and the light."
)
LONGEST = 60  # tokens; Stable Diffusion reads 75
BEAMS = 3


@runtime_checkable
class Captioner(Protocol):
    """What says in words what it sees. name: of the model, as it is told."""

    name: str

    def describe(self, picture: Image.Image) -> str: ...


def load_captioner(folder: Path, *, device: str | None = None) -> TransformerCaptioner:
    """The model in a folder.

    Raises: CaptionerError when there is none, when it does not write text from pictures, needs code
    of its own, has no safetensors, or cannot be read.
    """
    folder = folder.expanduser()
    if not (folder / "config.json").is_file():
        found = "a folder without config.json" if folder.is_dir() else "no folder"
        raise CaptionerError(
            f"captioning model {folder}: found {found}; expected one that a transformers model was "
            "saved to (config.json, model.safetensors, its processor); nothing is fetched: "
            "download one yourself, such as BLIP, GIT or Florence-2"
        )
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(str(folder), **local)
        kind = str(config.model_type)
        if kind == PAIR:
            family: Any = VisionEncoderDecoderModel
        elif type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            family = AutoModelForImageTextToText
        else:
            raise CaptionerError(
                f"captioning model {folder} is of kind {kind!r}, which does not write text from "
                "pictures; expected BLIP, GIT, Florence-2, a vision encoder-decoder, or another "
                "of transformers' image-text-to-text models"
            )
        reads: Any
        if kind == PAIR:
            reads = AutoImageProcessor.from_pretrained(str(folder), **local)
            writes = AutoTokenizer.from_pretrained(str(folder), **local)
        else:
            reads = AutoProcessor.from_pretrained(str(folder), **local)
            writes = reads.tokenizer
        model = family.from_pretrained(str(folder), use_safetensors=True, **local)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        what = " ".join(str(error).split())[:300]
        raise CaptionerError(
            f"captioning model {folder} cannot be read: {what}; expected config.json, "
            "model.safetensors, preprocessor_config.json and a tokenizer; code that a model brings "
            "with it is not run, and pickles are not read"
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    name = folder.resolve().name
    return TransformerCaptioner(
        name, kind, model, reads=reads, writes=writes, device=device or pick_device()
    )


class TransformerCaptioner:
    """reads: pictures (and what is asked) -> what the model takes. writes: tokens -> text."""

    def __init__(
        self, name: str, kind: str, model: Any, *, reads: Any, writes: Any, device: str
    ) -> None:
        self.name = name
        self._kind = kind
        self._model = model.eval().requires_grad_(False).to(device)
        self._reads = reads
        self._writes = writes
        self._device = device

    def describe(self, picture: Image.Image) -> str:
        """One line of what is seen, the same each time: nothing is drawn by chance.

        Raises: CaptionerError when the model fails on the picture.
        """
        try:
            inputs, asked = self._inputs(picture.convert("RGB"))
            with torch.inference_mode():
                ids = self._model.generate(
                    **inputs.to(self._device),
                    do_sample=False,
                    num_beams=BEAMS,
                    max_new_tokens=LONGEST,
                )
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            what = " ".join(str(error).split())[:300]
            raise CaptionerError(
                f"captioning model {self.name} ({self._kind}) failed on a picture: {what}; try "
                "BLIP, GIT or Florence-2"
            ) from error
        text = self._writes.batch_decode(ids[:, asked:], skip_special_tokens=True)[0]
        return " ".join(text.split())

    def _inputs(self, picture: Image.Image) -> tuple[Any, int]:
        """What the model takes, and how many tokens of its answer are the question again."""
        if self._kind in TASKED:
            task = TASKED[self._kind]
            return self._reads(text=task, images=picture, return_tensors="pt"), 0
        if getattr(self._reads, "chat_template", None):
            turn = [{"type": "image"}, {"type": "text", "text": ASKED}]
            text = self._reads.apply_chat_template(
                [{"role": "user", "content": turn}], add_generation_prompt=True
            )
            inputs = self._reads(text=text, images=[picture], return_tensors="pt")
            return inputs, int(inputs["input_ids"].shape[1])
        return self._reads(images=picture, return_tensors="pt"), 0
