"""Models on disk: where they are, what they are (a content hash), loading and saving. safetensors only."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.mini import seed_model_path
from harness.store import file_hash, read_json

MINI = "mini"
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")


def locate(name: str) -> Path:
    """The folder of a model: the embedded one, a local folder, or a hub snapshot (downloaded if need be)."""
    if name == MINI:
        return seed_model_path()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") != 1:
            raise HarnessError(f"no model folder '{name}': give a folder, a hub name (owner/name), or 'mini'")
        folder = _download(name)
    if not (folder / "config.json").is_file():
        raise HarnessError(f"{folder}: no config.json; not a Hugging Face model folder")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise HarnessError(f"{folder}: no *.safetensors weights (pickle checkpoints are refused)")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise HarnessError(f"{folder}: no tokenizer.json; save the tokenizer beside the model")
    read_json(folder / "config.json")
    for file in weights:
        _check_whole(file)
    return folder


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that makes the model what it is, by name."""
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    return {file.name: file_hash(file) for file in files}


def device(choice: str) -> str:
    if choice != "auto":
        return choice
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise HarnessError(f"{folder}: the tokenizer cannot be loaded ({_line(error)})") from error


def load_model(folder: Path, dtype: str, on: str) -> Any:
    """A causal language model in ``dtype`` ('float32', 'bfloat16') on a device."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        raise HarnessError(f"{folder}: the model cannot be loaded ({_line(error)})") from error
    return model.to(on)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors writes files that only their owner can read
        file.chmod(0o644)


def _check_whole(weights: Path) -> None:
    from safetensors import safe_open

    try:
        with safe_open(weights, "np"):  # reads the header and compares it with the file's length
            pass
    except Exception as error:
        raise HarnessError(f"{weights}: damaged or cut short ({_line(error)}); fetch it again") from error


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(PATTERNS)))
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise HarnessError(
            f"model '{name}' is no local folder and cannot be had from the hub{offline}: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
