"""What a model's folder may hold, looked at before anything of it is loaded.

A checkpoint may come from anybody, and a library believes what it reads: three million layers are built,
another model is fetched. So the sizes that a config.json names must be such as its own weights can hold. What
an adapter may say is in adapter_limits.py. Nothing here loads a model or looks at the network.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.reading import check_size
from harness.storage.files import read_json
from harness.text import one_line, shortened

CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

# How files with weights end; only the first is ever read. What training saves beside them ends so too.
FORMATS = (
    ".safetensors", ".bin", ".bin.index.json", ".pth", ".pt", ".gguf", ".ggml", ".ckpt", ".h5", ".msgpack",
)  # fmt: skip
_NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state|random_states|tokenizer)")

LARGEST_JSON = 64 * 2**20  # bytes; Kimi K2's index of 140,000 tensors has 15 MB
LARGEST_TOKENIZER = 256 * 2**20  # bytes; the largest known have 35 MB
LARGEST_TEMPLATE = 2**20  # bytes
LARGEST_HEADER = 64 * 2**20  # bytes of one safetensors file
MOST_TENSORS = 2_000_000  # of a folder
LONGEST_SIDE = 2**31  # of a tensor that holds nothing; others are held by their file's length
MOST_LAYERS = 10_000
# How far what a config.json claims may lie above the numbers that its weights hold: some models use one
# layer's weights several times (ALBERT: 7 times what there is), and a claim of the right order loads or fails
# on its own.
SLACK = 8
FLOOR = 2**24  # numbers (64 MiB) that may always be claimed
FLOOR_OF_POSITIONS = 2**28  # by a context's length, most of which make none: toys keep that of large models
PACKED = 32  # numbers that quantised weights may pack into one

# Of quantised weights, what transformers loads with installed packages alone, and what it fetches a kernel
# for where the package kernels is installed (else it unpacks the weights).
QUANTISED = ("bitsandbytes", "gptq", "awq", "compressed-tensors", "bitnet")
FETCHING = ("fp8", "mxfp4")
_SLOW = re.compile(r"\)\s*[*+{]|([*+{].*){5}", re.DOTALL)  # repeats repeats, or repeats too often

# A layer has at least one tensor, so that no count of layers is above the tensors'.
_LAYERS = re.compile(r"(num|n)_(\w+_)?(layers?|blocks?)|(encoder|decoder)_layers|depth")
# Counts and widths: each one makes vectors as wide as the model, or would if it were used.
_SIZES = re.compile(
    r"(num|n|d|max|hidden)_\w+|\w+_(size|dim|rank|positions|heads|experts|embeddings|inner|len)|dim"
)
_POSITIONS = re.compile(r"(max|n)_(\w*_)?(positions?|seq|sequence|ctx|len|length|embeddings)\w*")
_NO_SIZES = re.compile(r"\w*(tokens?|ids?|index|max_length|samples|steps|params|parameters)")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "hidden_dim", "n_embed", "embed_dim", "model_dim")
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "d_inner", "ffn_hidden_size", "encoder_ffn_dim")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_EXPERT_INNER = ("moe_intermediate_size", "expert_dim", "moe_ffn_hidden_size")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
# Whole numbers from 1, or lists of them.
_POSITIVE = {*_LAYER_COUNTS, *_HEADS, *_WIDTHS[:3], "vocab_size", "max_position_embeddings"}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file, by its header."""

    file: str
    dtype: str  # as safetensors writes it: F32, BF16, U8, …
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


# --- files -----------------------------------------------------------------------------------------


def check_files(folder: Path, patterns: Iterable[str]) -> None:
    """Raises HarnessError for a file that is too large to be read whole, and for what is no file: a pipe or a
    device may have no end. Links are followed, as the hub's cache is made of them."""
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
        largest = LARGEST_JSON
        if path.suffix == ".jinja":
            largest = LARGEST_TEMPLATE
        elif path.name.startswith(("tokenizer", "vocab", "merges")) or path.suffix in (".model", ".txt"):
            largest = LARGEST_TOKENIZER
        elif path.suffix == ".safetensors":
            largest = 2**63
        try:
            check_size(path, largest)
        except (OSError, ValueError) as error:
            raise HarnessError(f"{path}: cannot be read ({shortened(error)})") from error


def tensors(files: Iterable[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files, by their headers: names, types and shapes. Raises HarnessError for a
    file that is damaged, or whose header claims what no model has."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for file in files:
        try:
            _check_header(file)
            with safe_open(file, "np") as opened:  # compares the header with the file's length
                for name in opened.keys():  # noqa: SIM118 (it is no dict)
                    if name in found:
                        raise ValueError(f"tensor '{name[:80]}' is in {found[name].file} too")
                    part = opened.get_slice(name)
                    found[name] = Tensor(file.name, part.get_dtype(), tuple(part.get_shape()))
        except Exception as error:
            raise HarnessError(
                f"{file}: damaged or cut short ({shortened(error, 200)}); fetch it again"
            ) from error
        if len(found) > MOST_TENSORS:
            raise HarnessError(f"{file}: more than {MOST_TENSORS:,} tensors; this is no model's file")
    for name, tensor in found.items():
        if tensor.numbers == 0 and max(tensor.shape) > LONGEST_SIDE:
            raise HarnessError(f"{tensor.file}: tensor '{name[:80]}' is empty and claims {tensor.shape}")
    return found


def _check_header(file: Path) -> None:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > LARGEST_HEADER:
        raise ValueError(f"a header of {size:,} bytes")


def weight_files(folder: Path) -> list[Path]:
    """The files with a whole model's weights, as transformers chooses them. Raises HarnessError where there
    are two sets of them, or none is named."""
    whole, named = folder / WHOLE, sorted({*_indexed(folder).values()})
    if whole.is_file() and named not in ([], [WHOLE]):
        raise HarnessError(
            f"{folder}: two sets of weights: {WHOLE}, and the files of {INDEX} ({named[0]}, …); take one out"
        )
    if named:
        return [folder / file for file in named]
    if not whole.is_file():
        there = sorted(file.name for file in folder.glob("*.safetensors"))
        raise HarnessError(
            f"{folder}: no {WHOLE} and no {INDEX}, one of which says which weights to read; there is "
            f"'{one_line(there[0])[:80] if there else 'nothing'}'"
        )
    return [whole]


def unread(folder: Path, formats: Sequence[str] = FORMATS) -> Iterator[str]:
    """A line on weights in a model's or adapter's folder that are not read. ``formats``: how names end."""
    adapter = (folder / ADAPTER_CONFIG).is_file()
    read = [folder / ADAPTER_WEIGHTS] if adapter else weight_files(folder)
    there = {
        file.name
        for file in folder.iterdir()
        if file.name.lower().endswith(tuple(formats)) and not _NO_WEIGHTS.match(file.name)
    }
    others = sorted(there - {file.name for file in read})
    if others:
        shown = ", ".join(one_line(name)[:80] for name in others[:3])
        more = f" and {len(others) - 3:,} more" if len(others) > 3 else ""
        names = read[0].name if len(read) == 1 else f"the {len(read)} files of {INDEX}"
        yield f"{folder}: {names} {'is' if len(read) == 1 else 'are'} read, and not {shown}{more} beside it"


def _indexed(folder: Path) -> dict[str, str]:
    """The file of each tensor, by the list of a model's files, if it has one. They must lie beside it."""
    path = folder / INDEX
    if not path.is_file():
        return {}
    named = object_of(path).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise HarnessError(f"{path}: no weight_map, which says where each tensor is; fetch it again")
    if not isinstance(object_of(path).get("metadata"), dict):
        raise HarnessError(
            f'{path}: no metadata, which transformers looks for there; write "metadata": {{}} into it'
        )
    for file in dict.fromkeys(map(str, named.values())):
        if Path(file).name != file or "\\" in file or not file.endswith(".safetensors"):
            raise HarnessError(f"{path}: '{file[:80]}' is no safetensors file of this folder")
        if not (folder / file).is_file():
            raise HarnessError(f"{path}: '{file[:80]}' is not there; fetch it")
    return {str(tensor): str(file) for tensor, file in named.items()}


def object_of(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises HarnessError for anything else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise HarnessError(f"{path}: expected a JSON object")
    return value


# --- models ----------------------------------------------------------------------------------------


def check_model(folder: Path) -> dict[str, Tensor]:
    """Look at a whole model's folder: its tensors, by name. Raises HarnessError, which names file, key and
    value, for a config.json that claims what its weights cannot hold."""
    held = tensors(weight_files(folder))
    gone = sorted(name for name in _indexed(folder) if name not in held)
    if gone:
        raise HarnessError(
            f"{folder / INDEX}: tensor '{one_line(gone[0])[:120]}' is not in the file that it names"
            f"{f' (and {len(gone) - 1:,} more)' if len(gone) > 1 else ''}; fetch the folder again"
        )
    path = folder / CONFIG
    config = object_of(path)
    if config.get("transformers_weights") is not None:
        raise HarnessError(f"{path}: transformers_weights names another file of weights; take it out")
    if not isinstance(config.get("text_config") or {}, dict):
        raise HarnessError(f"{path}: text_config must be an object, not {brief(config['text_config'])}")
    for section in _sections(config):
        _check_types(path, section)
    check_claims(path, config, held)
    return held


def check_quantization(folder: Path) -> None:
    """Raises HarnessError for quantised weights that transformers would load with other code than what is
    installed, or by a regular expression that may not end."""
    path = folder / CONFIG
    settings = object_of(path).get("quantization_config")
    if not settings:
        return
    settings = settings if isinstance(settings, dict) else {}
    older = any(settings.get(key) for key in ("load_in_4bit", "load_in_8bit"))  # had no quant_method
    method = settings.get("quant_method") or ("bitsandbytes" if older else None)
    if method in FETCHING and importlib.util.find_spec("kernels") is not None:
        raise HarnessError(
            f"{path}: quant_method {brief(method)} would fetch a kernel from the hub: use --engine vllm, or "
            "uninstall the package kernels"
        )
    if method not in (*QUANTISED, *FETCHING):
        raise HarnessError(
            f"{path}: quant_method {brief(method)} is not loaded with transformers, only "
            f"{', '.join(QUANTISED + FETCHING)}; use --engine vllm, or weights that are not quantised"
        )
    slow = next((text for text in _texts(settings) if len(text) > 1_000 or _SLOW.search(text)), None)
    if slow is not None:
        raise HarnessError(f"{path}: quantization_config has a regular expression too complex: {brief(slow)}")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for inner in (
        [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from _texts(inner)


def check_claims(path: Path, config: Mapping[str, Any], held: Mapping[str, Tensor]) -> None:
    """Compare what a configuration claims with the tensors that there are. Raises HarnessError.

    ``config``: that of a config.json (``path``), as it stands there or with a library's defaults filled in.
    """
    numbers = sum(tensor.numbers for tensor in held.values())
    if config.get("quantization_config") or config.get("compression_config"):
        numbers *= PACKED
    for section in _sections(config):
        for key, claimed, most in _claims(section, len(held), numbers):
            if claimed > most:
                named = brief(section[key]) if key in section else "(not given)"
                raise HarnessError(
                    f"{path}: {key} {named} is more than the weights beside it can hold "
                    f"({len(held):,} tensors, {numbers:,} numbers); fetch the folder again"
                )


def _sections(value: Any) -> Iterator[Mapping[str, Any]]:
    """The objects of a config.json: the model's own, and those of its parts."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _sections(inner)


def _check_types(path: Path, section: Mapping[str, Any]) -> None:
    for key in sorted(_POSITIVE & section.keys()):
        value = section[key]
        for one in value if isinstance(value, list) else [value]:
            if one is not None and (isinstance(one, bool) or not isinstance(one, int) or one < 1):
                raise HarnessError(f"{path}: {key} must be a whole number from 1, not {brief(one)}")


def _claims(section: Mapping[str, Any], count: int, numbers: int) -> Iterator[tuple[str, int, int]]:
    """What a section claims: (key, how much, the most there may be). ``count``: tensors that there are;
    ``numbers``: what they hold together."""
    most, width = max(SLACK * numbers, FLOOR), _largest(section, _WIDTHS)
    named = [key for key in section if isinstance(key, str)]  # a library's id2label has numbers
    for key in sorted(
        named, key=lambda key: key not in _WIDTHS
    ):  # these first: others are multiplied by them
        size = _largest(section, [key])
        if _LAYERS.fullmatch(key):
            yield key, size, min(count, MOST_LAYERS)
        if _SIZES.fullmatch(key) and not _NO_SIZES.fullmatch(key):
            spared = FLOOR_OF_POSITIONS if _POSITIONS.fullmatch(key) else 0
            yield key, size * (1 if key in _WIDTHS else width), max(most, spared)
    in_all_layers = width * _largest(section, _LAYER_COUNTS)
    inner = _largest(section, _INNER)
    expert = _largest(section, _EXPERT_INNER) if any(key in section for key in _EXPERT_INNER) else inner
    yield _first(section, _WIDTHS), in_all_layers * width, most
    yield _first(section, _INNER), in_all_layers * inner, most
    yield _first(section, _EXPERTS), in_all_layers * _largest(section, _EXPERTS) * expert, most
    yield (
        _first(section, _HEADS),
        in_all_layers * _largest(section, _HEADS) * _largest(section, ["head_dim"]),
        most,
    )


def _first(section: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((key for key in keys if key in section), keys[0])


def _largest(section: Mapping[str, Any], keys: Iterable[str]) -> int:
    """The largest whole number under the keys; 1 where there is none."""
    values = [section.get(key) for key in keys]
    whole = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return max([1, *(one for one in whole if isinstance(one, int))])


def brief(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= 10**30:
        return "of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
