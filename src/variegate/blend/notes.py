"""What the headers of several adapters say alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from variegate.adapter import Adapter
from variegate.formats import own_notes
from variegate.formats.metadata import OURS

# What a header says of one file, or of how it was made.
OF_ONE_FILE = ("ss_output_name", "ss_steps", "ss_seed", "modelspec.title", "modelspec.date")


def shared_notes(members: Sequence[Adapter], **noted: Mapping[str, Any]) -> dict[str, str]:
    """What all headers say alike, the entries of our own note one by one, with more for that."""
    shared = {
        key: value
        for key, value in members[0].metadata.items()
        if all(member.metadata.get(key) == value for member in members)
        and key not in OF_ONE_FILE
        and not key.startswith(("sshs_", "modelspec.hash"))
    }
    own = [own_notes(member.metadata) for member in members]
    notes = {k: v for k, v in own[0].items() if all(o.get(k) == v for o in own) and k != "kind"}
    notes = {"family": members[0].family, **notes, **noted}
    return shared | {OURS: json.dumps(notes, sort_keys=True)}
