"""What never leaves this machine: folders, user names in them, tokens; and, where asked, prompts
and captions."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from variegate.formats.metadata import OURS, own_notes
from variegate.formats.privacy import without_folders

# Tokens by their shape: Hugging Face's, GitHub's, OpenAI's and its like, Weights & Biases'.
_TOKENS = re.compile(
    r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bsk-[A-Za-z0-9_-]{20,}"
)
_SECRET_NAMES = re.compile(r"(TOKEN|API_?KEY|SECRET|PASSWORD)$", re.IGNORECASE)
_ACCOUNT = re.compile(r"(?<=://)[^/\s@]+@")  # user:password@ of an address
GONE = "[removed]"
# Of a header, what an adapter needs to be used, and nothing that a caption or a name went into.
_KEPT = (
    *("format", "ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim"),
    *("ss_network_alpha", "ss_network_args", "ss_output_name", "ss_resolution", "ss_clip_skip"),
    *("ss_zero_terminal_snr", "modelspec.architecture", "modelspec.title", "modelspec.resolution"),
    *("modelspec.trigger_phrase", "modelspec.prediction_type", "modelspec.usage_hint"),
    *("modelspec.sai_model_spec", "modelspec.implementation"),
)
_NOTES = (
    *("family", "kind", "keys", "tlora", "clip_skip", "zero_terminal_snr", "class"),
    "recommended",
)


def clean(value: Any) -> Any:
    """A text, or all texts of a document, without folders of this machine and without secrets.

    >>> clean({"base": "/home/ann/models/sd15", "note": "token hf_abcdefghijklmnopqrstuvwx"})
    {'base': 'sd15', 'note': 'token [removed]'}
    """
    if isinstance(value, str):
        return _secrets_out(without_folders(value))
    if isinstance(value, dict):
        return {_secrets_out(str(key)): clean(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [clean(inner) for inner in value]
    return value


def _secrets_out(text: str) -> str:
    for name, secret in os.environ.items():
        if _SECRET_NAMES.search(name) and len(secret) >= 8:
            text = text.replace(secret, GONE)
    return _ACCOUNT.sub("", _TOKENS.sub(GONE, text))


def header(metadata: Mapping[str, str], *, private: bool) -> dict[str, str]:
    """An adapter's header as it may be shared; private: without tags, captions, author and dates,
    and without the verdict's sentences, which quote prompts."""
    kept = {
        key: str(clean(value))
        for key, value in metadata.items()
        if not private or key in _KEPT or key == OURS
    }
    if private and OURS in kept:
        notes = own_notes(metadata)
        own = {key: notes[key] for key in _NOTES if key in notes}
        verdict = notes.get("verdict")
        if isinstance(verdict, dict):
            told = ("labels", "rules", "measured")
            own["verdict"] = {key: verdict[key] for key in told if key in verdict}
        kept[OURS] = json.dumps(clean(own), sort_keys=True)
    return kept
