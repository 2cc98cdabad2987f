"""Models on disk: where they are, what they are (a content hash), loading and saving. safetensors only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness.contracts import HarnessError, UsageError
from harness.mini import seed_model_path
from harness.store import file_hash, read_json

MINI = "mini"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")  # either says that there is one
SERVER_KEY = "HARNESS_API_KEY"  # the environment variable with the key of a server that is not OpenAI's
SERVER = "openai:"  # in front of MODEL@BASE_URL: a model that a server answers as


@dataclass(frozen=True)
class Server:
    """A model behind the OpenAI API."""

    model: str
    base_url: str


@dataclass(frozen=True)
class Checkpoint:
    """What an engine answers as: a folder (of a PEFT adapter: with its base's), a model on a server, or a
    folder that a server has loaded."""

    folder: Path | None
    base: Path | None = None
    server: Server | None = None

    @property
    def name(self) -> str:
        return str(self.folder) if self.folder else f"{SERVER}{self.server.model}" if self.server else ""


def checkpoint(name: str, base: Path | None = None) -> Checkpoint:
    """The checkpoint behind a folder, a hub name, or ``openai:MODEL@BASE_URL``. ``base``: of an adapter,
    where it is not where the adapter says."""
    if name.startswith(SERVER):
        model, at, url = name.removeprefix(SERVER).partition("@http")
        if not (at and model):
            raise UsageError(f"'{name}': a server's model is given as {SERVER}MODEL@BASE_URL")
        return Checkpoint(None, server=Server(model, base_url(f"http{url}")))
    folder = locate(name)
    if base is None and is_adapter(folder):
        base = locate(base_of(folder))
    return Checkpoint(folder, base if is_adapter(folder) else None)


def base_url(text: str) -> str:
    """A server's base URL without a slash at its end. Raises UsageError for anything else, a URL with a key
    in it included: it would be printed."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"'{text}' is no server's base URL, such as http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise UsageError(f"no key in a server's URL, it would be printed; put it into {SERVER_KEY}")
    return text.rstrip("/")


def locate(name: str) -> Path:
    """The folder of a model: the embedded one, a local folder, or a hub snapshot (downloaded if need be)."""
    if name == MINI:
        return seed_model_path()
    folder = Path(name).expanduser()
    if not folder.is_dir():
        check_hub_name(name)
        folder = _download(name)
    described_by = ADAPTER_CONFIG if is_adapter(folder) else "config.json"
    if not (folder / described_by).is_file():
        raise HarnessError(f"{folder}: no config.json; not a Hugging Face model folder")
    # peft looks for a pickle where its own file is missing, whatever else there is.
    weights = sorted(folder.glob(ADAPTER_WEIGHTS if is_adapter(folder) else "*.safetensors"))
    if not weights:
        wanted = ADAPTER_WEIGHTS if is_adapter(folder) else "*.safetensors weights"
        raise HarnessError(f"{folder}: no {wanted} (pickle checkpoints are refused)")
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise HarnessError(f"{folder}: no tokenizer.json; save the tokenizer beside the model")
    _object(folder / described_by)
    for file in weights:
        _check_whole(file)
    return folder


def check_hub_name(name: str) -> None:
    """Raises HarnessError for what is neither here nor a name that the hub could have."""
    if not _can_be_of_hub(name):
        raise HarnessError(f"no model folder '{name}': give a folder, a hub name (owner/name), or 'mini'")


def _can_be_of_hub(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and name.count("/") == 1


def tokenizer_folder(name: str) -> Path:
    """The folder of a tokenizer, whose model's weights need not be there and are not fetched."""
    if name == MINI:
        return seed_model_path()
    folder = Path(name).expanduser()
    if not folder.is_dir() and _can_be_of_hub(name):
        folder = _download(name, PATTERNS[1:])
    if not any((folder / file).is_file() for file in TOKENIZERS):
        raise HarnessError(f"no tokenizer '{name}': give a folder with tokenizer.json, or a hub name")
    return folder


def is_here(name: str) -> bool:
    """Whether a model can be had without a download."""
    if name == MINI or Path(name).expanduser().is_dir():
        return True
    if not _can_be_of_hub(name):
        return False
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, allow_patterns=list(PATTERNS), local_files_only=True)
    except Exception:
        return False
    return True


def fingerprint(folder: Path, base: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file that makes the model what it is, by name; of an adapter its base's too."""
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    found = {file.name: file_hash(file) for file in files}
    return found | ({f"base/{name}": value for name, value in fingerprint(base).items()} if base else {})


def device(choice: str) -> str:
    if choice != "auto":
        return choice
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def declared_stops(folder: Path) -> int | list[int] | None:
    """The ``eos_token_id`` of a model's generation settings, or of its configuration where it has none."""
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            config = _object(folder / name)
            found: int | list[int] | None = (config.get("text_config") or config).get("eos_token_id")
            return found
    return None


def stop_ids(declared: int | list[int] | None, tokenizer: Any) -> set[int]:
    """Every token that ends an answer: those that the model's generation settings declare, the tokenizer's
    end of sequence, and what its chat template writes behind an answer."""
    from harness import chat

    found = {*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id}
    if getattr(tokenizer, "chat_template", None):
        found.add(chat.end_of_turn_id(tokenizer))
    return {token for token in found if token is not None}


def context_tokens(config: Mapping[str, Any]) -> int:
    """The longest prompt and answer together, by a model's config.json; unbounded where it says nothing."""
    text: Mapping[str, Any] = config.get("text_config") or config
    return int(text.get("max_position_embeddings") or 2**31)


def free_device() -> None:
    """Give back what deleted models have left on the device."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise HarnessError(f"{folder}: the tokenizer cannot be loaded ({_line(error)})") from error


def load_model(folder: Path, dtype: str, on: str, *, base: Path | None = None, four_bit: bool = False) -> Any:
    """A causal language model in ``dtype`` ('float32', 'bfloat16') on a device.

    A peft adapter's folder gives its base model with the adapter on it; ``base`` says where that is (default:
    where the adapter says). ``four_bit``: NF4 weights with double quantization (arXiv 2305.14314, §3).
    """
    import torch
    from transformers import AutoModelForCausalLM

    adapter = folder if is_adapter(folder) else None
    if adapter:
        folder = base or locate(base_of(adapter))
    options: dict[str, Any] = {}
    if four_bit:
        from transformers import BitsAndBytesConfig

        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        )
        options["device_map"] = {"": on}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False, **options
        )
        if adapter:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, adapter)
    except Exception as error:
        raise HarnessError(f"{adapter or folder}: the model cannot be loaded ({_line(error)})") from error
    try:
        return model if four_bit else model.to(on)
    except torch.OutOfMemoryError as error:
        raise HarnessError(
            f"{adapter or folder}: the device has no memory for the weights in {dtype}"
        ) from error


def base_of(adapter: Path) -> str:
    """The model that an adapter names as its base. Raises HarnessError where it names none."""
    named = _object(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise HarnessError(f"{adapter / ADAPTER_CONFIG}: no base_model_name_or_path; of which model is it?")
    return named


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise HarnessError(f"{path}: expected a JSON object")
    return value


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def merge(base: Path, adapter: Path, dtype: str, out: Path) -> None:
    """Save ``base`` with the adapter's weights added to its own, in ``dtype``, as a whole model."""
    model = load_model(adapter, dtype, "cpu", base=base).merge_and_unload()
    save(model, load_tokenizer(adapter), out)


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


def _download(name: str, patterns: Sequence[str] = PATTERNS) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except Exception as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise HarnessError(
            f"model '{name}' is no local folder and cannot be had from the hub{offline}: {_line(error)}"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
