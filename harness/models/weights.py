"""Whether the tensors of a folder are those of its model: loading, rehearsed with shapes and no numbers.

A library fills what a checkpoint lacks with random numbers and leaves out what it does not know. Either one
would be measured under the checkpoint's name. So the model is built on torch's meta device and the headers'
names and shapes are loaded into it by transformers' (or peft's) own code, with all its renaming and merging.
What does not land is told by name. This takes a second and reads no weights, so it comes before every engine.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.models import model_limits
from harness.models.checkpoint_limits import Tensor
from harness.models.load_notes import LONGEST_NAME, and_more, named, quiet, quoted, verb
from harness.text import one_line

SHOWN = 3  # names of tensors in a line
# What compiling, sharding and checkpointing modules put into the names of what they wrap, wherever that is.
_WRAPPED = r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
_WRAPPER = re.compile(_WRAPPED)
# What may stand in front of all names, and what remains of it.
_FRONTS = (
    ("module.", ""), ("module.module.", ""), ("model.", ""), ("module.model.", ""), ("base_model.model.", ""),
    ("language_model.", ""), ("model.language_model.", "model."),
)  # fmt: skip
# Buffers that older versions saved and that every version computes: masks, rotations, positions.
_COMPUTED = re.compile(
    r"(^|\.)((self_)?(attn|attention)\.(masked_)?bias|causal_mask|position_ids|inv_freq|(cos|sin)_cached"
    r"|num_batches_tracked|version)$"
)
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# Of quantised weights, what not every way of packing has.
_OPTIONAL = re.compile(r"(g_idx|(input|output|activation|q|k|v)_scale\w*|zero_point)$")
_LAYERS = ("num_hidden_layers", "num_nextn_predict_layers")
FLOATS = ("F64", "F32", "F16", "BF16")  # types whose numbers are the weights themselves
_CONVERSION = re.compile(r"^(\S+)\s*\|\s*CONVERSION", re.MULTILINE)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


# (model, tensors, key_mapping) -> (model, what transformers says of the tensors)
Load = Callable[[Any, dict[str, Any], dict[str, str]], tuple[Any, Mapping[str, Any]]]


@dataclass(frozen=True)
class Fit:
    """A model as its folder's tensors fill it. ``model``: on the meta device, which has shapes and no
    numbers; ``rows``: of its embedding; ``renamed``: how names become the model's (transformers'
    ``key_mapping``); ``taken_off``: the wrapper that is in the names; ``notes``: a line for each thing to
    know."""

    model: Any
    rows: int
    renamed: Mapping[str, str] = field(default_factory=dict)
    taken_off: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Landed:
    """What one way of loading gives: names of the model's that nothing fills, shapes that differ (name,
    shape in the file, shape in the model), what cannot be merged, and names that are left over, within the
    model's own parts and outside of them."""

    model: Any
    missing: list[str]
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    broken: list[str]
    inside: list[str]
    outside: list[str]

    @property
    def wrong(self) -> int:
        return len(self.missing) + len(self.misshapen) + len(self.broken) + len(self.inside)


def fit(folder: Path, build: Callable[[], Any], load: Load | None, held: Mapping[str, Tensor]) -> Fit | None:
    """Rehearse the loading of a folder whose files hold the tensors ``held``.

    ``build`` makes its model; ``load``, if that can be rehearsed, loads the tensors given into a model of its
    class, by a ``key_mapping``. None where the architecture cannot be built without numbers. Raises
    HarnessError, which names the tensors, for weights that are not this model's.
    """
    import torch

    try:
        with quiet(), torch.device("meta"):
            built = build()
    except Exception:
        return None
    rows = model_limits.embedding_rows(built)
    if load is None:
        _check_twice(folder, built, _targets(built, held, {}))
        return Fit(built, rows)
    given = as_meta(held)
    tried: list[tuple[_Landed, dict[str, str], str]] = []
    for renamed, taken_off in _ways(list(held)):
        landed = _rehearsed(built, load, given, renamed)
        if landed is None:
            _check_twice(folder, built, _targets(built, held, renamed))
            return None
        tried.append((landed, renamed, taken_off))
        if not (landed.missing or landed.misshapen or landed.broken):  # the names are the model's
            break
    landed, renamed, taken_off = min(tried, key=lambda one: one[0].wrong)
    targets = _targets(landed.model, held, renamed)
    _check_twice(folder, landed.model, targets)
    if landed.wrong:
        raise HarnessError(f"{folder}: {_wrong(landed, list(held))}")
    _check_types(folder, landed.model, held, targets)
    _check_wrapped(folder, landed)
    return Fit(landed.model, rows, renamed, taken_off, tuple(_notes(folder, landed, taken_off)))


def check_loaded(folder: Path, model: Any, info: Mapping[str, Any], *, scales: bool) -> None:
    """The same of a model as it has been loaded: ``info`` is transformers' ``output_loading_info``.
    ``scales``: quantised weights have further tensors, which their own code reads."""
    landed = _sorted_out(model, info)
    if scales:
        landed.inside = []
        landed.missing = [name for name in landed.missing if not _OPTIONAL.search(name)]
    if landed.wrong:
        raise HarnessError(f"{folder}: {_wrong(landed, [])}")


def check_tied(folder: Path, model: Any, files: Iterable[Path]) -> None:
    """Raises HarnessError for a head that config.json ties to the embedding and that has other numbers.

    transformers then unties them, and vLLM leaves the head's out: two engines would measure two models.
    """
    from safetensors import safe_open

    where: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            where |= dict.fromkeys(opened.keys(), file)
    for name, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        if name in where and source in where:
            one, other = (_tensor(where[key], key) for key in (name, source))
            if one.shape != other.shape or not bool((one == other).all()):
                raise HarnessError(
                    f"{folder}: config.json ties {quoted(name)} to {quoted(source)}, and the two differ: "
                    "set tie_word_embeddings to false there, or use --engine hf, which reads both"
                )


def _tensor(file: Path, name: str) -> Any:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name)


def _ways(names: Sequence[str]) -> Iterator[tuple[dict[str, str], str]]:
    """Ways to read the names, the plainest first: a ``key_mapping``, and in words what it takes off."""
    yield {}, ""
    depth = max((len(_WRAPPER.findall(name)) for name in names), default=0)
    # transformers takes one match off for each pattern: as many patterns as there are matches, all alike.
    inner = {f"{_WRAPPED}(?={'.' * (number + 1)})": "" for number in range(depth)}
    bare = [_WRAPPER.sub("", name) for name in names]
    found = sorted({piece for name in names for piece in _WRAPPER.findall(name)})
    if inner and len(set(bare)) == len(bare):
        yield inner, ", ".join(found)
    for front, kept in _FRONTS:
        if not any(name.startswith(front) for name in bare):
            continue
        if len({kept + name.removeprefix(front) if name.startswith(front) else name for name in bare}) == len(
            bare
        ):
            yield {**inner, f"^{re.escape(front)}": kept}, ", ".join([*found, front.removesuffix(kept)])


def _rehearsed(
    built: Any, load: Load, given: Mapping[str, Any], renamed: Mapping[str, str]
) -> _Landed | None:
    """What lands of the tensors ``given``; None where loading breaks off for another reason."""
    said: list[str] = []
    try:
        with quiet(said):
            model, info = load(built, dict(given), dict(renamed))
    except Exception:
        broken = _CONVERSION.findall(_COLOURS.sub("", "\n".join(said)))
        return _Landed(built, [], [], sorted(set(broken)), [], []) if broken else None
    return _sorted_out(model, info)


def _sorted_out(model: Any, info: Mapping[str, Any]) -> _Landed:
    misshapen = [(name, tuple(one), tuple(other)) for name, one, other in sorted(info["mismatched_keys"])]
    own = {name for name, _ in model.named_parameters()}
    missing = {name for name in info["missing_keys"] if name in own or not _COMPUTED.search(name)}
    missing -= {name for name, _, _ in misshapen}
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    missing -= {name for name, source in tied.items() if source in missing}
    left = sorted(name for name in info["unexpected_keys"] if not _COMPUTED.search(name))
    modules = {name for name, _ in model.named_modules()}
    inside = {name for name in left if _is_inside(model, modules, name)}
    outside = [name for name in left if name not in inside]
    return _Landed(model, sorted(missing), misshapen, [], sorted(inside), outside)


def _is_inside(model: Any, modules: set[str], name: str) -> bool:
    """Whether a tensor belongs to a part that the model has: a bias or a layer more, which change what it
    computes, and no tower or head beside it."""
    layer = _LAYER.search(name)
    config = model.config.get_text_config()
    count, more = (getattr(config, key, None) or 0 for key in _LAYERS)
    if layer and count <= int(layer[1]) < count + more:  # predict further tokens, and answer nothing
        return False
    front = model.base_model_prefix
    for whole in (name, f"{front}.{name}"):  # transformers puts it in front of what lacks it
        part = whole.rpartition(".")[0]
        while part and part not in modules:
            part = part.rpartition(".")[0]
        if part not in ("", front):
            return True
    return False


def as_meta(held: Mapping[str, Tensor]) -> dict[str, Any]:
    """Tensors with these shapes and types, and no numbers."""
    import torch

    types = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    }  # fmt: skip
    return {
        name: torch.empty(tensor.shape, dtype=types.get(tensor.dtype, torch.uint8), device="meta")
        for name, tensor in held.items()
    }


def _targets(
    model: Any, names: Iterable[str], renamed: Mapping[str, str]
) -> dict[str, tuple[str, str | None]]:
    """Where transformers puts each tensor: the name of the model's that it fills, and which piece of that it
    is (None: the whole). transformers puts the base model's prefix in front of names, and takes it off."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    own, front = model.state_dict(), model.base_model_prefix
    steps = get_model_conversion_mapping(model, dict(renamed) or None)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    found: dict[str, tuple[str, str | None]] = {}
    for name in sorted(names, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, front, own)
        if target not in own and name in own:
            target, pattern = rename_source_key(name, [], [], front, own)
        plain = rename_source_key(name, renamings, [])[0]
        if pattern is None and target not in own:  # of quantised weights, which have names of their own
            target = f"{front}.{plain.removeprefix(f'{front}.')}"
        found[name] = target, None if pattern is None else plain.removeprefix(f"{front}.")
    return found


def _check_twice(folder: Path, model: Any, targets: Mapping[str, tuple[str, str | None]]) -> None:
    """Two tensors for one of the model's: transformers would load either, without a word."""
    modules = {name for name, _ in model.named_modules()}
    first: dict[tuple[str, str | None], str] = {}
    whole = {target: name for name, (target, piece) in targets.items() if piece is None}
    twice = []
    for name, (target, piece) in targets.items():
        other = first.setdefault((target, piece), name)
        if piece is not None and other == name:
            other = whole.get(target, name)
        if other != name and _is_inside(model, modules, target):
            twice.append((other, name, target))
    if twice:
        other, name, target = twice[0]
        raise HarnessError(
            f"{folder}: two sets of weights: {quoted(other)} and {quoted(name)} are both read as "
            f"{quoted(target)}{and_more(len(twice) - 1)}; which one counts? take one out"
        )


def _check_types(
    folder: Path, model: Any, held: Mapping[str, Tensor], targets: Mapping[str, tuple[str, str | None]]
) -> None:
    """What is no plain floating number in the place of weights is packed or scaled by something that
    config.json does not name; of complex numbers a half would be left out."""
    own = model.state_dict()
    packed = [
        name
        for name, (target, _) in targets.items()
        if held[name].dtype not in FLOATS and target in own and own[target].is_floating_point()
    ]
    if packed:
        raise HarnessError(
            f"{folder}: {named(packed)} {verb(packed)} of type {held[packed[0]].dtype}, and config.json has "
            "no quantization_config that says how to read it; fetch the folder again"
        )


def _check_wrapped(folder: Path, landed: _Landed) -> None:
    """One file with two sets of weights: plain names, and the same names as a wrapper writes them."""
    base = f"{landed.model.base_model_prefix}."
    own = {form for name in landed.model.state_dict() for form in (name, name.removeprefix(base))}
    twice = [name for name in landed.outside if own & _without_fronts(_WRAPPER.sub("", name))]
    if twice:
        raise HarnessError(
            f"{folder}: two sets of weights: {named(twice)} {verb(twice)} there without the wrapper's prefix "
            "too; which one counts? take one out"
        )


def _without_fronts(name: str) -> set[str]:
    """The name, and what it is without each thing that may stand in front of it."""
    return {name} | {kept + name.removeprefix(front) for front, kept in _FRONTS if name.startswith(front)}


def _wrong(landed: _Landed, names: Sequence[str]) -> str:
    """What does not fit, and how to mend it, in one line."""
    kind = type(landed.model).__name__
    told = []
    if landed.misshapen:
        name, held, wanted = landed.misshapen[0]
        more = and_more(len(landed.misshapen) - 1)
        told.append(f"{quoted(name)} has the shape {list(held)}, and by config.json {list(wanted)}{more}")
    if landed.broken:
        told.append(f"{named(landed.broken)} cannot be put together from the tensors that there are")
    if landed.missing:
        told.append(f"{named(landed.missing)} {verb(landed.missing)} missing")
    if landed.inside:
        told.append(f"{named(landed.inside)} {verb(landed.inside)} in no part that config.json describes")
    elif landed.missing and landed.outside:
        told.append(f"there {verb(landed.outside)} {named(landed.outside)}")
    return f"not the weights of its {kind}: {'; '.join(told)}. {_mend(landed, names)}"


def _mend(landed: _Landed, names: Sequence[str]) -> str:
    rows = [
        held[0]
        for _, held, wanted in landed.misshapen
        if len(held) == len(wanted) == 2 and held[0] != wanted[0] and held[1] == wanted[1]
    ]
    if landed.misshapen and len(rows) == len(landed.misshapen) and len(set(rows)) == 1 and len(rows) <= 2:
        return f"After a change of the vocabulary, config.json needs vocab_size {rows[0]}"
    if any(".lora_A." in name or ".base_layer." in name for name in names):
        return "These are an adapter's weights within its model's: merge them, and save the model again"
    heads = [name for name in landed.missing if name.partition(".")[0] in ("score", "classifier", "lm_head")]
    if heads and len(heads) == len(landed.missing):
        return "Without them its output would be random: give the folder of a model that has this head"
    return "Save the model again with save_pretrained, or fetch the folder again"


def _notes(folder: Path, landed: _Landed, taken_off: str) -> Iterator[str]:
    if taken_off:
        yield f"{folder}: the wrapper's prefix '{taken_off}' is taken off its tensors' names"
    if landed.outside:
        parts = Counter(_part(name, landed.model.base_model_prefix) for name in landed.outside)
        shown = ", ".join(
            f"{one_line(part)[:LONGEST_NAME]} ({count:,})" for part, count in parts.most_common(SHOWN)
        )
        kind, more = type(landed.model).__name__, and_more(len(parts) - SHOWN)
        yield f"{folder}: tensors outside of its {kind} are left out: {shown}{more}"


def _part(name: str, prefix: str) -> str:
    """The part of a model that a tensor is of: ``vision_tower``, ``v_head``."""
    bare = name.removeprefix(f"{prefix}.") if prefix else name
    return name[: len(name) - len(bare)] + bare.partition(".")[0]
