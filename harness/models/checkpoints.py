"""Models on disk: where they are, what they are (a content hash), loading and saving. safetensors only."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from harness import tokenizer_files
from harness.contracts import HarnessError, UsageError
from harness.mini import seed_model_path
from harness.models import (
    adapter_limits,
    adapter_weights,
    checkpoint_limits,
    hub,
    load_notes,
    model_limits,
    transformers_models,
    weights,
)
from harness.models.checkpoint_limits import Tensor, object_of
from harness.models.transformers_models import error_line
from harness.storage.files import content_hash, file_hash

log = logging.getLogger(__name__)

MINI = "mini"
ADAPTER_CONFIG = checkpoint_limits.ADAPTER_CONFIG
ADAPTER_WEIGHTS = checkpoint_limits.ADAPTER_WEIGHTS
GENERATION = "generation_config.json"
PATTERNS = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
TEMPLATES = "additional_chat_templates/*.jinja"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "*.model")  # any says that there is one
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
    if not is_adapter(folder):
        return Checkpoint(folder)
    return Checkpoint(folder, base or base_folder(folder))


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
        hub.check_name(name)
        folder = hub.download(name, PATTERNS)
    described_by = ADAPTER_CONFIG if is_adapter(folder) else "config.json"
    if not (folder / described_by).is_file():
        if _has_tokenizer(folder) and not any(folder.glob("*.safetensors")):
            raise HarnessError(f"{folder}: a tokenizer alone, where a model is wanted; give a model's folder")
        raise HarnessError(f"{folder}: no config.json; not a Hugging Face model folder")
    # peft looks for a pickle where its own file is missing, whatever else there is.
    weights = sorted(folder.glob(ADAPTER_WEIGHTS if is_adapter(folder) else "*.safetensors"))
    if not weights:
        wanted = ADAPTER_WEIGHTS if is_adapter(folder) else "*.safetensors weights"
        raise HarnessError(f"{folder}: no {wanted} (pickle checkpoints are refused)")
    if not _has_tokenizer(folder):
        raise HarnessError(f"{folder}: no tokenizer.json; save the tokenizer beside the model")
    check(folder)
    return folder


def check(folder: Path) -> dict[str, Tensor]:
    """Look at a model's or adapter's folder, before anything of it is loaded: its tensors, by name. Raises
    HarnessError for what cannot be right, or would do harm (checkpoint_limits.py)."""
    checkpoint_limits.check_files(folder, (*PATTERNS, TEMPLATES))
    if is_adapter(folder):
        return adapter_limits.check_adapter(folder, ADAPTER_WEIGHTS)
    return checkpoint_limits.check_model(folder)


def tokenizer_folder(name: str) -> Path:
    """The folder of a tokenizer, whose model's weights need not be there and are not fetched."""
    if name == MINI:
        return seed_model_path()
    folder = Path(name).expanduser()
    if not folder.is_dir() and hub.can_be_named(name):
        folder = hub.download(name, PATTERNS[1:])
    if not _has_tokenizer(folder):
        raise HarnessError(f"no tokenizer '{name}': give a folder with tokenizer.json, or a hub name")
    return folder


def _has_tokenizer(folder: Path) -> bool:
    return any(file.is_file() for pattern in TOKENIZERS for file in folder.glob(pattern))


def is_here(name: str) -> bool:
    """Whether a model can be had without a download."""
    if name == MINI or Path(name).expanduser().is_dir():
        return True
    if not hub.can_be_named(name):
        return False
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(name, allow_patterns=list(PATTERNS), local_files_only=True)
    except Exception:
        return False
    return True


def fingerprint(folder: Path, base: Path | None = None) -> dict[str, str]:
    """SHA-256 of every file that makes the model what it is, by name; of an adapter its base's too. Of its
    generation settings only the end of an answer counts, as nothing else of them is used."""
    files = sorted({file for pattern in PATTERNS for file in folder.glob(pattern)})
    found = {file.name: file_hash(file) for file in files if file.name != GENERATION}
    if (folder / GENERATION).is_file():
        found[GENERATION] = content_hash({"eos_token_id": object_of(folder / GENERATION).get("eos_token_id")})
    return found | ({f"base/{name}": value for name, value in fingerprint(base).items()} if base else {})


def declared_stops(folder: Path) -> int | list[int] | None:
    """The ``eos_token_id`` of a model's generation settings, or of its configuration where it has none."""
    for name in (GENERATION, "config.json"):
        if (folder / name).is_file():
            config = object_of(folder / name)
            found: int | list[int] | None = model_limits.text_part(config).get("eos_token_id")
            return found
    return None


def stop_ids(
    declared: int | list[int] | None, tokenizer: Any, rows: int = model_limits.UNBOUNDED
) -> set[int]:
    """Every token that ends an answer: those that the model's generation settings declare, the tokenizer's
    end of sequence, and what its chat template writes behind an answer. ``rows``: of the model's embedding.
    Raises HarnessError where a model declares what is no token, where a template writes one that the model
    has not, and where nothing ends an answer."""
    from harness.models import chat

    model_limits.check_template(tokenizer, rows)
    found = {tokenizer.eos_token_id}
    for token in declared if isinstance(declared, list) else [declared]:
        if token is not None and (isinstance(token, bool) or not isinstance(token, int)):
            raise HarnessError(
                f"{tokenizer.name_or_path}: eos_token_id must be a token's id or a list of them, not "
                f"{repr(token)[:80]}"
            )
        found.add(token)
    found |= chat.template_stops(tokenizer)
    ends = {token for token in found if token is not None and token < rows}
    if not ends:
        raise HarnessError(
            f"{tokenizer.name_or_path}: nothing ends an answer; name an eos_token in tokenizer_config.json, "
            "or an eos_token_id in generation_config.json"
        )
    return ends


def context_tokens(config: Mapping[str, Any]) -> int:
    """The longest prompt and answer together, by a model's config.json; unbounded where it says nothing."""
    return model_limits.stated_context(config)


def context_of(folder: Path) -> int:
    """The longest text of the model in a folder (of an adapter's base), before it is loaded."""
    folder = base_folder(folder) if is_adapter(folder) else folder
    stated = context_tokens(object_of(folder / checkpoint_limits.CONFIG))
    found = fit(Checkpoint(folder))
    return min(stated, model_limits.context_tokens(found.model)) if found else stated


def load_tokenizer(folder: Path) -> Any:
    """A folder's tokenizer, guarded (tokenizing.py), with the ids of its own file (tokenizer_files.py)."""
    checkpoint_limits.check_files(folder, (*PATTERNS, TEMPLATES))
    try:
        return tokenizer_files.load(folder)
    except HarnessError:
        raise
    except Exception as error:
        raise HarnessError(f"{folder}: the tokenizer cannot be loaded ({error_line(error)})") from error


def load_model(
    folder: Path,
    dtype: str,
    on: str,
    *,
    base: Path | None = None,
    four_bit: bool = False,
    kind: Any = None,
) -> Any:
    """A language model in ``dtype`` ('float32', 'bfloat16') on a device.

    A peft adapter's folder gives its base model with the adapter on it; ``base`` says where that is (default:
    where the adapter says). ``four_bit``: NF4 weights with double quantization (arXiv 2305.14314, §3).
    ``kind``: transformers' AutoModel class (default: a causal language model).
    """
    import torch
    from transformers import AutoModelForCausalLM

    adapter = folder if is_adapter(folder) else None
    if adapter:
        check(adapter)
        folder = base or base_folder(adapter)
    if is_adapter(folder):  # transformers would look for its base by itself
        raise HarnessError(f"{folder}: an adapter where a whole model is wanted; merge it into its model")
    options = _four_bit(dtype, on) if four_bit else {}
    kind = kind or AutoModelForCausalLM
    model, found = transformers_models.load(kind, folder, check(folder), dtype, options)
    if adapter:
        _check_adapter(adapter, folder, found)
        model = _with_adapter(model, adapter)
    try:
        return model if four_bit else model.to(on)
    except torch.OutOfMemoryError as error:
        raise HarnessError(
            f"{adapter or folder}: the device has no memory for the weights in {dtype}"
        ) from error


def _four_bit(dtype: str, on: str) -> dict[str, Any]:
    """What transformers is told for four-bit weights that compute in ``dtype`` on a device."""
    import torch
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    return {"quantization_config": settings, "device_map": {"": on}}


def _with_adapter(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter)
    except Exception as error:
        raise HarnessError(f"{adapter}: the adapter cannot be loaded ({error_line(error)})") from error


def fit(model: Checkpoint, kind: Any = None) -> weights.Fit | None:
    """How the weights of a checkpoint's folders fit, before any engine reads them; None where that can't be
    said without reading them. Raises HarnessError where they do not."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    assert model.folder is not None
    whole = model.base or model.folder
    held = check(whole)
    for one in [kind] if kind else [AutoModelForCausalLM, AutoModelForImageTextToText]:
        _, found = transformers_models.fitted(whole, one, held)
        if found:
            break
    if model.base:
        _check_adapter(model.folder, whole, found)
    return found


def fit_for_vllm(model: Checkpoint, kind: Any = None) -> int:
    """The rows of a checkpoint's embedding, where vLLM, which reads a folder by itself, reads it as it has
    been checked. Raises HarnessError where it would not."""
    from transformers import AutoModelForCausalLM

    whole = model.base or model.folder
    assert whole is not None
    found = fit(model, kind)
    unknown = f"{whole}: its weights cannot be compared with its architecture before vLLM reads them"
    load_notes.noted(
        found.notes if found else [*transformers_models.notes(whole, kind or AutoModelForCausalLM), unknown]
    )
    if found and found.taken_off:
        raise HarnessError(
            f"{whole}: the wrapper's prefix '{found.taken_off}' in its tensors' names is not taken off by "
            "vLLM: use --engine hf, or save the model again without it"
        )
    others = list(checkpoint_limits.unread(whole, (".safetensors",)))
    if others and not (whole / checkpoint_limits.INDEX).is_file():
        raise HarnessError(f"{others[0]}; vLLM would read them too: take them out, or use --engine hf")
    if found:
        weights.check_tied(whole, found.model, checkpoint_limits.weight_files(whole))
    return found.rows if found else model_limits.UNBOUNDED


def _check_adapter(adapter: Path, base: Path, found: weights.Fit | None) -> None:
    """Raises HarnessError for an adapter of which not all lands on its base."""
    held = check(adapter)
    if found is None:
        raise HarnessError(
            f"{adapter}: cannot be compared with {base}; merge the adapter into its model and give that"
        )
    load_notes.noted(checkpoint_limits.unread(adapter))
    adapter_weights.check_adapter(adapter, base, found.model, held)


def base_folder(adapter: Path) -> Path:
    """Where the model is that an adapter names as its base. Raises HarnessError where that is none, or an
    adapter too."""
    named = adapter_limits.base_name(adapter)
    try:
        folder = locate(named)
    except HarnessError as error:
        raise HarnessError(
            f"{adapter}: the adapter's base cannot be had: {error}. Write where it is into "
            f"base_model_name_or_path of {adapter / ADAPTER_CONFIG}"
        ) from error
    if is_adapter(folder):
        raise HarnessError(
            f"{adapter / ADAPTER_CONFIG}: its base {folder} is an adapter; merge that into its model first"
        )
    return folder


def is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file()


def settle_sampling(model: Any) -> None:
    """Let a model's generation settings be written. Older chat models name a temperature and do not say that
    they sample, which they mean: transformers reads that, and refuses to save it."""
    given = model.generation_config
    with contextlib.suppress(ValueError):
        given.validate(strict=True)
        return
    meant = copy.deepcopy(given)
    meant.do_sample = True
    with contextlib.suppress(ValueError):
        meant.validate(strict=True)
        given.do_sample = True
        log.warning("%s: %s samples, so do_sample is saved with it", model.name_or_path, GENERATION)


def merge(base: Path, adapter: Path, dtype: str, out: Path) -> None:
    """Save ``base`` with the adapter's weights added to its own, in ``dtype``, as a whole model."""
    model = load_model(adapter, dtype, "cpu", base=base).merge_and_unload()
    settle_sampling(model)
    save(model, load_tokenizer(adapter), out)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():  # safetensors writes files that only their owner can read
        file.chmod(0o644)
