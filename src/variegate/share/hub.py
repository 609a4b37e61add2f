"""The upload to the Hub, on explicit request alone."""

from __future__ import annotations

import os
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils._validators import validate_repo_id

from variegate.errors import RequestError, WorkError

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def check(repo: str) -> None:
    """Whether a push can be asked for at all, before anything is written.

    Raises: RequestError for a name that is none, and where the user wants to stay offline.
    """
    for name in OFFLINE:
        if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            raise RequestError(
                f"--push {repo!r} wants the network, and {name} is set; unset it to upload, or "
                "leave --push out: the folder is complete without it"
            )
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise RequestError(f"--push {repo!r} is no name on the Hub: {error}") from error
    if "/" not in repo:
        raise RequestError(f"--push {repo!r}; expected OWNER/NAME")


def push(folder: Path, repo: str, *, files: list[str], private: bool) -> str:
    """Make the repository if it is not there and upload these files of the folder; the address.

    Raises: WorkError when the Hub refuses or cannot be reached; RequestError without a token.
    """
    api = HfApi()
    try:
        made = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type="model",
            folder_path=folder,
            allow_patterns=files,
            commit_message="Share with variegate",
        )
    except LocalTokenNotFoundError as error:
        raise RequestError("no token for the Hub; log in with `hf auth login`") from error
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().split("\n")[0]
        raise WorkError(
            f"the upload to {repo} failed: {first:.300}; the folder {folder} is complete, and the "
            "same command uploads it again"
        ) from error
    return str(made)
