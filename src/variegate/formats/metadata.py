"""The text in an adapter file's header: what other tools read from it, and what we note.

All values are text. `ss_*` are kohya's (A1111 files an adapter by `ss_v2` and
`ss_base_model_version`, and hides one that is filed wrongly), `modelspec.*` are Stability's
ModelSpec 1.0.1, `sshs_*` the hashes by which the field names a file, and `variegate` is ours:
a small JSON object.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypedDict

import safetensors.torch
from torch import Tensor

from variegate.adapter import Adapter, Masking, Update
from variegate.errors import AdapterError
from variegate.formats.privacy import without_folders

OURS = "variegate"
# What other tools are told of a kind: the module that trained it, and its arguments.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("networks.lora", {}),
    "tlora": ("networks.lora", {}),
    "dora": ("lycoris.kohya", {"algo": "lora", "dora_wd": True, "wd_on_output": True}),
    "loha": ("lycoris.kohya", {"algo": "loha"}),
    "lokr": ("lycoris.kohya", {"algo": "lokr"}),
    "full": ("lycoris.kohya", {"algo": "full"}),
    "turned": ("lycoris.kohya", {"algo": "diag-oft"}),
}
OWN_KEYS = {
    "oft": "oft_input_blocks: upper triangles of skew blocks Q; W R', R = (I - Q) (I + Q)^-1 for "
    "each block of inputs",
    "boft": "boft_rotations: free blocks F, Q = (F - F') / 2, of butterfly factors on the inputs; "
    "boft_scale: of each output",
    "sparse": "sparse_values: added at sparse_indices (row, column) of a weight of sparse_shape",
}
VERSIONS = {"sd1": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "sd3": "sd3"}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # ModelSpec has no word for a flow
SD1_WIDTHS, SD2_WIDTHS, SDXL_WIDTHS = (768,), (1024,), (2048,)
SD3_WIDTHS = (1536, 2432)  # of the transformer itself: 3 and 3.5 medium, 3.5 large


def describe(
    *,
    name: str = "",
    trigger: str = "",
    base: str = "",
    family: str = "sd1",
    prediction: str = "epsilon",
    resolution: int | None = None,
    pictures: int | None = None,
    steps: int | None = None,
    seed: int | None = None,
    lr: float | None = None,
    clip_skip: int = 1,
    zero_terminal_snr: bool = False,
    tags: Mapping[str, int] | None = None,
    started: float | None = None,
    author: str = "",
    notes: Mapping[str, Any] | None = None,
) -> dict[str, str]:
    """What is known of a finished adapter under the names that other tools look for.

    started: unix seconds; None leaves all dates out. tags: how often each caption part occurs.
    base: only the last part of a path is kept, so that no folder of this machine gets out.
    notes: goes into our own entry, with family "pocket" when that is the base.
    """
    base = re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    version = (
        "sd_v2_v"
        if (family, prediction) == ("sd2", "v_prediction")
        else VERSIONS.get(family, "sd_v1")
    )
    facts: dict[str, Any] = {
        "ss_output_name": name,
        "ss_sd_model_name": base,
        "ss_v2": family == "sd2",
        "ss_base_model_version": version,
        "ss_resolution": resolution and f"({resolution}, {resolution})",
        "ss_num_train_images": pictures,
        "ss_steps": steps,
        "ss_seed": seed,
        "ss_learning_rate": lr,
        "ss_clip_skip": clip_skip if clip_skip > 1 else None,
        "ss_zero_terminal_snr": zero_terminal_snr or None,
        "ss_training_started_at": started,
        "ss_tag_frequency": json.dumps({name or "pictures": dict(tags)}) if tags else None,
        "modelspec.title": name,
        "modelspec.author": author,
        "modelspec.architecture": _architecture(version),
        "modelspec.resolution": resolution and f"{resolution}x{resolution}",
        "modelspec.date": started
        and datetime.fromtimestamp(started, UTC).isoformat("T", "seconds"),
        "modelspec.trigger_phrase": trigger,
        "modelspec.prediction_type": PREDICTIONS.get(prediction),
        OURS: json.dumps(
            {
                **(notes or {}),
                **({"clip_skip": clip_skip} if clip_skip > 1 else {}),
                **({"zero_terminal_snr": True} if zero_terminal_snr else {}),
                "family": "pocket" if base == "pocket" else family,
            },
            sort_keys=True,
        ),
    }
    return {key: str(value) for key, value in facts.items() if value not in (None, "")}


def complete(adapter: Adapter, stored: dict[str, Tensor], *, stem: str) -> dict[str, str]:
    """The whole header for a file: the adapter's own notes, defaults where they are silent, and
    what follows from the tensors (rank, alpha, hashes) in place of what they may say of it."""
    given = {
        k: without_folders(str(v))
        for k, v in adapter.metadata.items()
        if k != "lora_adapter_metadata"
    }
    family = adapter.family if adapter.family in VERSIONS else "sd1"
    header = {
        **describe(name=stem, family=family, notes={}),
        "modelspec.resolution": "1024x1024" if family in ("sdxl", "sd3") else "512x512",
        OURS: json.dumps({"family": adapter.family}),
        **given,
    }
    if family == adapter.family and filed_as(header) != family:
        # What the tensors are counts, or A1111 hides the adapter from the models it is for.
        told = describe(family=family)
        header |= {key: told[key] for key in ("ss_v2", "ss_base_model_version")}
    if "modelspec.architecture" not in given:
        header["modelspec.architecture"] = _architecture(header["ss_base_model_version"])
    ranks = {update.rank for update in adapter.layers.values() if update.rank}
    alphas = {u.alpha for u in adapter.layers.values() if hasattr(u, "alpha")}
    module, arguments = NETWORKS.get(adapter.kind, ("variegate", {}))
    if adapter.kind != "lora":
        header[OURS] = json.dumps(own_notes(header) | _kind_notes(adapter), sort_keys=True)
    header |= {
        "format": "pt",
        "ss_network_module": module,
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
        "ss_network_args": json.dumps(arguments)
        if arguments
        else header.get("ss_network_args", "{}"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.implementation": "diffusers",
    }
    return header | _hashes(stored, header)


def filed_as(header: Mapping[str, str]) -> str:
    """The family that A1111 takes a file of this header for: its rule, where SD 3 has no word."""
    if header.get("ss_base_model_version", "").startswith("sdxl_"):
        return "sdxl"
    if header.get("ss_base_model_version", "") == VERSIONS["sd3"]:
        return "sd3"
    return "sd2" if header.get("ss_v2") == "True" else "sd1"


def _kind_notes(adapter: Adapter) -> dict[str, Any]:
    """What our own entry says of a kind that the tensors' names do not tell, or only to us."""
    notes: dict[str, Any] = {"kind": adapter.kind}
    if adapter.kind in OWN_KEYS:
        notes["keys"] = OWN_KEYS[adapter.kind]
    if adapter.masking:
        notes["tlora"] = {
            "min_rank": adapter.masking.min_rank,
            "timesteps": adapter.masking.timesteps,
            "rank": adapter.rank,
        }
    return notes


def masking_of(layers: Mapping[str, Update], metadata: Mapping[str, str]) -> Masking | None:
    """How the ranks of a T-LoRA are masked, by our own entry; None for any other adapter, and for
    one whose rank another tool has changed since.

    Raises: AdapterError when the entry makes no sense.
    """
    noted = own_notes(metadata).get("tlora")
    if noted is None:
        return None
    noted = noted if isinstance(noted, dict) else {}
    least, timesteps = noted.get("min_rank"), noted.get("timesteps")
    whole = all(
        type(n) is int and 0 < n < 1 << 20 for n in (timesteps, 1 if least is None else least)
    )
    if not whole:
        raise AdapterError(
            f"the header's entry {OURS!r} says tlora {noted!r:.80}; expected "
            "min_rank and timesteps from 1 on"
        )
    rank = max((update.rank for update in layers.values()), default=0)
    return Masking(least, int(timesteps or 0)) if noted.get("rank") == rank else None


def _architecture(version: str) -> str:
    kinds = {
        "sd_v2": "stable-diffusion-v2-512",
        "sd_v2_v": "stable-diffusion-v2-768-v",
        "sdxl_base_v1-0": "stable-diffusion-xl-v1-base",
        "sd3": "stable-diffusion-3-m",
    }
    return f"{kinds.get(version, 'stable-diffusion-v1')}/lora"


def _hashes(stored: dict[str, Tensor], header: dict[str, str]) -> dict[str, str]:
    """Kohya's hashes: of the file as it would be with only `ss_*` in its header.

    The new one covers all that follows the header; the legacy one 64 KiB from the first MiB on.
    """
    kohya = {key: value for key, value in header.items() if key.startswith("ss_")}
    data = safetensors.torch.save(stored, metadata=kohya)
    body = data[8 + int.from_bytes(data[:8], "little") :]
    full = hashlib.sha256(body).hexdigest()
    legacy = hashlib.sha256(data[0x100000 : 0x100000 + 0x10000]).hexdigest()[:8]
    return {
        "sshs_model_hash": full,
        "sshs_legacy_hash": legacy,
        "modelspec.hash_sha256": f"0x{full}",
    }


def family_of(inputs: Mapping[str, int], metadata: Mapping[str, str]) -> str:
    """Which base an adapter belongs to: our own note, else the width of the text it reads, else
    what the header claims, else "unknown".

    inputs: how many each layer reads, by layer name.
    """
    noted = own_notes(metadata).get("family")
    if noted in ("pocket", "unknown", *VERSIONS):
        return str(noted)
    widths = {
        width
        for layer, width in inputs.items()
        if layer.endswith(("attn2.to_k", "attn2.to_v", "self_attn.q_proj"))
        and not layer.startswith("transformer.")
    }
    inner = {width for layer, width in inputs.items() if layer.startswith("transformer.")}
    if inner:
        return "sd3" if inner & set(SD3_WIDTHS) else "unknown"
    if any(layer.startswith("text_encoder_2.") for layer in inputs):
        return "sdxl"
    for family, known in (("sd1", SD1_WIDTHS), ("sd2", SD2_WIDTHS), ("sdxl", SDXL_WIDTHS)):
        if widths & set(known):
            return family
    if widths:
        return "unknown"
    version = metadata.get("ss_base_model_version", "")
    architecture = metadata.get("modelspec.architecture", "")
    if version.startswith("sdxl") or "xl" in architecture:
        return "sdxl"
    if metadata.get("ss_v2") == "True" or "v2" in (version + architecture):
        return "sd2"
    return "sd1" if "v1" in (version + architecture) or version == "sd_1.5" else "unknown"


def own_notes(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Our entry of a header, empty when it is missing or not ours to read."""
    try:
        notes = json.loads(metadata.get(OURS, "{}"))
        json.dumps(notes, allow_nan=False)  # what is told on is JSON, which knows no NaN
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


class Reading(TypedDict):
    """How an adapter wants its base to be loaded: what `models.load` takes by these names."""

    clip_skip: int
    zero_terminal_snr: bool


def reading_of(metadata: Mapping[str, str]) -> Reading:
    """How the base was loaded that an adapter of ours was trained on; plainly if it says nothing.

    Others' `ss_clip_skip` is not followed: it is often a leftover that their trainers disregard.
    """
    notes = own_notes(metadata)
    skip = notes.get("clip_skip", 1)
    return Reading(
        clip_skip=skip if isinstance(skip, int) and skip >= 1 else 1,
        zero_terminal_snr=notes.get("zero_terminal_snr") is True,
    )


def usage_hint(strength: float, guidance_scale: float) -> str:
    """How an adapter is best used, as ModelSpec's `usage_hint` says it.

    >>> usage_hint(0.8, 5.0)
    'strength 0.8, guidance scale 5'
    """
    return f"strength {strength:g}, guidance scale {guidance_scale:g}"


def recommended_of(metadata: Mapping[str, str]) -> dict[str, float]:
    """The strength and guidance scale that `pick` recommends in a header; empty where it does not.

    >>> recommended_of({"variegate": '{"recommended": {"strength": 0.8, "guidance_scale": "?"}}'})
    {'strength': 0.8}
    """
    noted = own_notes(metadata).get("recommended")
    known = noted if isinstance(noted, dict) else {}
    return {
        key: float(value)
        for key in ("strength", "guidance_scale")
        if isinstance(value := known.get(key), int | float)
        and not isinstance(value, bool)
        and 0 < value <= 100
    }


def trigger_of(metadata: Mapping[str, str]) -> str:
    """The word that calls what was learnt, or "" when the header does not say."""
    return metadata.get("modelspec.trigger_phrase", "")
