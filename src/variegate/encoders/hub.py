"""Published encoders: DINOv2, CLIP and SigLIP through transformers, SSCD and Inception as
TorchScript.

Only safetensors are read as weights and no code of a model's author is run. Pictures are resized
and normalised here as the model's own `preprocessor_config.json` says, so nothing depends on which
image library is installed. A TorchScript file is a program, so none is run whose sha256 is not
known: SSCD's is written here, Inception's is told by who names the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import cached_file

from variegate.device import pick_device
from variegate.errors import EncoderError

FAMILIES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "clip", "siglip", "siglip2")
WITH_TEXT = ("clip", "siglip", "siglip2")
# sscd_disc_mixup.torchscript.pt as published by facebookresearch/sscd-copy-detection (MIT).
SSCD_SHA256 = "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56"
SSCD_SIDE = 288  # pixels of the shorter side, as its authors resize
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

log = logging.getLogger(__name__)


def load_transformer(name_or_path: str, *, device: str | None = None) -> TransformerEncoder:
    """DINOv2, CLIP or SigLIP from a local folder or the hub. Raises: EncoderError."""
    local = Path(name_or_path).expanduser()
    source = str(local) if local.exists() else name_or_path
    if local.is_file():
        raise EncoderError(
            f"encoder {name_or_path!r} is a file; expected a folder with config.json and"
            " model.safetensors (SSCD's TorchScript file is named as sscd=FILE)"
        )
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"encoder {name_or_path!r} cannot be found or read: {_first_line(error)}. Expected"
            " 'pocket', 'sscd=FILE', a local folder, or a hub name such as"
            " 'facebook/dinov2-base' (it is fetched once; with HF_HUB_OFFLINE=1 it must be in the"
            " cache already)"
        ) from error
    if config.model_type not in FAMILIES:
        raise EncoderError(
            f"encoder {name_or_path!r} is of kind {config.model_type!r}; known here:"
            f" {', '.join(FAMILIES)}"
        )
    try:
        model = AutoModel.from_pretrained(source, use_safetensors=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source) if _has_text(config.model_type) else None
    except (OSError, ValueError) as error:
        raise EncoderError(
            f"encoder {name_or_path!r} has a config but cannot be loaded: {_first_line(error)}."
            " Only safetensors are read as weights; a pickle (.bin, .pt) must be converted first"
        ) from error
    plan = _read_preprocessor(source, config)
    return TransformerEncoder(
        model,
        tokenizer,
        kind=config.model_type,
        id=_identify(name_or_path, local, config),
        preprocess=plan,
        device=device or pick_device(),
    )


class TransformerEncoder:
    """A vision transformer's pooled output as unit rows, with its text tower when it has one."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        kind: str,
        id: str,
        preprocess: dict[str, Any],
        device: str,
    ) -> None:
        self.id = id
        self.has_text = _has_text(kind)
        self._kind = kind
        self._model = model.eval().requires_grad_(False).to(device)
        self._tokenizer = tokenizer
        self._preprocess = preprocess
        self._device = device

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        pixels = torch.stack([prepare(p, self._preprocess) for p in pictures]).to(self._device)
        with torch.inference_mode():
            if self.has_text:
                rows = _pooled(self._model.get_image_features(pixel_values=pixels))
            else:
                rows = _pooled(self._model(pixel_values=pixels))
        return F.normalize(rows.float().cpu(), dim=-1).clone()

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        if not self.has_text:
            raise EncoderError(
                f"{self.id} has no text tower; name a CLIP or SigLIP encoder to measure how well"
                " prompts are followed"
            )
        limit = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts),
            # SigLIP learnt on captions padded to full length, CLIP does not mind.
            padding="max_length" if self._kind.startswith("siglip") else True,
            truncation=True,
            max_length=limit,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            rows = _pooled(self._model.get_text_features(**tokens))
        return F.normalize(rows.float().cpu(), dim=-1).clone()

    def unfamiliar(self, features: Float[Tensor, "n d"]) -> bool:
        """False: trained on pictures of every kind."""
        return False


def load_sscd(file: str, *, device: str | None = None) -> SSCD:
    """The published copy detector from its TorchScript file. Raises: EncoderError."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise EncoderError(
            f"no SSCD file at {file!r}; expected sscd_disc_mixup.torchscript.pt from"
            " github.com/facebookresearch/sscd-copy-detection"
        )
    found = _sha256(path)
    if found != SSCD_SHA256:
        raise EncoderError(
            f"{path} is not the published sscd_disc_mixup.torchscript.pt: its sha256 is {found},"
            f" expected {SSCD_SHA256}. A TorchScript file is a program, so no other one is run;"
            " fetch it again from github.com/facebookresearch/sscd-copy-detection"
        )
    where = device or pick_device()
    return SSCD(torch.jit.load(str(path), map_location=where), device=where)


class SSCD:
    """Descriptors made for finding copies (Pizzi et al. 2022, arXiv 2202.10261): rows `[512]`."""

    id = f"sscd-{SSCD_SHA256[:12]}"
    has_text = False

    def __init__(self, network: Any, *, device: str) -> None:
        self._network = network.eval()
        self._device = device
        self._plan = {
            "height": SSCD_SIDE,
            "width": SSCD_SIDE,
            "resample": Image.Resampling.BILINEAR,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        }

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        pixels = torch.stack([prepare(p, self._plan) for p in pictures]).to(self._device)
        with torch.inference_mode():
            rows = self._network(pixels)
        return F.normalize(rows.float().cpu(), dim=-1).clone()

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        raise EncoderError("SSCD has no text tower; it finds copies only")

    def unfamiliar(self, features: Float[Tensor, "n d"]) -> bool:
        return False


def load_inception(named: str, *, device: str | None = None) -> Inception:
    """Inception of 2015 from a TorchScript file, named as FILE#SHA256. Raises: EncoderError."""
    file, _, expected = named.rpartition("#")
    path = Path(file or named).expanduser()
    if not path.is_file():
        raise EncoderError(
            f"no Inception file at {str(path)!r}; expected inception-2015-12-05.pt, the TorchScript"
            " that github.com/NVlabs/stylegan2-ada-pytorch measures FID with, named as"
            " inception=FILE#SHA256"
        )
    found = _sha256(path)
    if found != expected.lower():
        told = f"expected {expected}" if file else "and none was named to compare it with"
        raise EncoderError(
            f"the sha256 of {path} is {found}, {told}. A TorchScript file is a program, so it is"
            f" run only when you say which it is: inception={path}#SHA256"
        )
    where = device or pick_device()
    network = torch.jit.load(str(path), map_location=where)
    return Inception(network, id=f"inception-{found[:12]}", device=where)


class Inception:
    """The 2,048 pooled features that FID and KID were defined on, as unit rows.

    `unscaled` gives them as the network does: published figures are of those, on full sets.
    Source: Szegedy et al. 2015 (arXiv 1512.00567); Heusel et al. 2017 (arXiv 1706.08500).
    """

    has_text = False

    def __init__(self, network: Any, *, id: str, device: str) -> None:
        self.id = id
        self._network = network.eval()
        self._device = device

    def images(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        return F.normalize(self.unscaled(pictures), dim=-1)

    def unscaled(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        rows = []
        for picture in pictures:  # of any size each: the network resizes, as FID wants it done
            pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy())
            with torch.inference_mode():
                one = self._network(
                    pixels.permute(2, 0, 1)[None].to(self._device), return_features=True
                )
            rows.append(one.float().cpu().flatten())
        return torch.stack(rows).clone()

    def texts(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        raise EncoderError("Inception has no text tower; name a CLIP or SigLIP encoder as well")

    def unfamiliar(self, features: Float[Tensor, "n d"]) -> bool:
        return False


def prepare(picture: Image.Image, plan: dict[str, Any]) -> Float[Tensor, "3 h w"]:
    """A picture resized, cropped and normalised.

    plan: `height` and `width`, or `shortest_edge`; optionally `crop` (height, width); `resample`
    (a Pillow filter); `mean` and `std` per channel.
    """
    image = picture.convert("RGB")
    resample = Image.Resampling(plan["resample"])
    if "shortest_edge" in plan:
        scale = plan["shortest_edge"] / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), resample)
    else:
        image = image.resize((plan["width"], plan["height"]), resample)
    if "crop" in plan:
        height, width = plan["crop"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor(plan["mean"]), torch.tensor(plan["std"])
    return (pixels - mean[:, None, None]) / std[:, None, None]


def _read_preprocessor(source: str, config: Any) -> dict[str, Any]:
    """What `prepare` needs, from the model's own preprocessor_config.json."""
    try:
        file = cached_file(source, "preprocessor_config.json")
        raw = json.loads(Path(file).read_text(encoding="utf8"))
    except (OSError, TypeError, json.JSONDecodeError) as error:
        raise EncoderError(
            f"encoder {source!r} has no readable preprocessor_config.json, so how its pictures"
            f" must be resized and normalised is unknown: {_first_line(error)}"
        ) from error
    vision = getattr(config, "vision_config", config)
    side = {"height": int(vision.image_size), "width": int(vision.image_size)}
    size = raw.get("size", side)
    size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
    plan: dict[str, Any] = (
        {"shortest_edge": int(size["shortest_edge"])}
        if "shortest_edge" in size
        else {"height": int(size["height"]), "width": int(size["width"])}
    )
    if raw.get("do_center_crop", False):
        crop = raw.get("crop_size", side)
        crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
        plan["crop"] = (int(crop["height"]), int(crop["width"]))
    elif "shortest_edge" in plan:  # without a crop, sides must agree to make one batch
        plan = {"height": plan["shortest_edge"], "width": plan["shortest_edge"]}
    normalised = raw.get("do_normalize", True)
    plan["resample"] = int(raw.get("resample", Image.Resampling.BICUBIC))
    plan["mean"] = tuple(raw.get("image_mean", IMAGENET_MEAN)) if normalised else (0.0, 0.0, 0.0)
    plan["std"] = tuple(raw.get("image_std", IMAGENET_STD)) if normalised else (1.0, 1.0, 1.0)
    return plan


def _pooled(output: Any) -> Tensor:
    """The one row per picture or text, whichever way this transformers version hands it over."""
    rows: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return rows


def _has_text(kind: str) -> bool:
    return kind in WITH_TEXT


def _identify(name: str, local: Path, config: Any) -> str:
    """A name that changes with the weights: the hub's commit, or the local files' sha256."""
    if not local.is_dir():
        commit = getattr(config, "_commit_hash", None)
        return f"{name}@{commit[:12]}" if commit else name
    digest = hashlib.sha256()
    for file in sorted([*local.glob("*.safetensors"), *local.glob("preprocessor_config.json")]):
        digest.update(_sha256(file).encode())
    return f"{local.name}@{digest.hexdigest()[:12]}"


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
