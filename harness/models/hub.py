"""Models on the hub: what can be a name there, and how one is fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from harness.contracts import HarnessError
from harness.models.transformers_models import error_line


def check_name(name: str) -> None:
    """Raises HarnessError for what is neither here nor a name that the hub could have."""
    if not can_be_named(name):
        raise HarnessError(f"no model folder '{name}': give a folder, a hub name (owner/name), or 'mini'")


def can_be_named(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def download(name: str, patterns: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise HarnessError(
            f"model '{name}' is no local folder and cannot be had from the hub{offline}: {error_line(error)}"
        ) from error
