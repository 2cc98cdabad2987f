"""What transformers makes of a model's folder: how its tensors fill its architecture, and the model itself.

Nothing of the folder's own code runs, no kernel that it names is fetched, and nothing is made up: weights
that are not the model's are refused by name (weights.py).
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.models import (
    checkpoint_limits,
    load_notes,
    weights,
)
from harness.models.checkpoint_limits import Tensor, object_of
from harness.text import one_line

# The names of architectures that answer: those of causal language models.
_ANSWERS = re.compile(r"(ForCausalLM|ForConditionalGeneration|LMHeadModel)$")


def load(
    kind: Any, folder: Path, held: Mapping[str, Tensor], dtype: str, options: dict[str, Any]
) -> tuple[Any, weights.Fit | None]:
    """The model of a whole model's folder with its own weights ``held``, and how they fit. ``kind``:
    transformers' AutoModel class; ``options``: further arguments of its ``from_pretrained``. Raises
    HarnessError where they do not fit: transformers would make up the rest."""
    checkpoint_limits.check_quantization(folder)
    config, found = fitted(folder, kind, held)
    renamed = dict(found.renamed) if found else {}
    load_notes.noted(found.notes if found else notes(folder, kind))
    try:
        with load_notes.quiet():
            model, info = _from_pretrained(kind, folder, config, dtype, renamed, **options)
    except Exception as error:
        raise HarnessError(f"{folder}: the model cannot be loaded ({error_line(error)})") from error
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")  # transformers' default leaves the cap out (Gemma 2)
    scales = getattr(config, "quantization_config", None) is not None
    weights.check_loaded(folder, model, info, scales=scales)
    if renamed:  # what is saved has the model's own names
        kept = [one for one in model._weight_conversions if not {*one.source_patterns} & renamed.keys()]
        model._weight_conversions = kept
    return model, found


def _from_pretrained(
    kind: Any, folder: Path | None, config: Any, dtype: str, renamed: dict[str, str], **options: Any
) -> tuple[Any, dict[str, Any]]:
    """A model, and what transformers says of its tensors.

    Attention and experts are computed as transformers chooses for the architecture: the folder's word on it,
    which may name a kernel to fetch from the hub and run, never counts.
    """
    import torch

    given = {
        "dtype": getattr(torch, dtype),
        "use_safetensors": True,
        "output_loading_info": True,
        "key_mapping": renamed or None,
        **options,
    }
    model, info = kind.from_pretrained(
        folder,
        config=config,
        trust_remote_code=False,
        attn_implementation=None,
        experts_implementation=None,
        **given,
    )
    return model, info


def fitted(folder: Path, kind: Any, held: Mapping[str, Tensor]) -> tuple[Any, weights.Fit | None]:
    """A folder's configuration, and how its tensors (``held``) fill the model that it describes
    (weights.py). Of quantised weights the model alone: their names and shapes are their own code's."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise HarnessError(f"{folder}: the model cannot be loaded ({error_line(error)})") from error
    checkpoint_limits.check_claims(folder / checkpoint_limits.CONFIG, config.to_dict(), held)
    plain = copy.deepcopy(config)
    quantised = getattr(plain, "quantization_config", None) is not None
    if quantised:
        del plain.quantization_config

    def build() -> Any:
        return kind.from_config(
            config=plain, trust_remote_code=False, attn_implementation=None, experts_implementation=None
        )

    def rehearse(built: Any, given: dict[str, Any], renamed: dict[str, str]) -> tuple[Any, dict[str, Any]]:
        nowhere = {"state_dict": given, "device_map": {"": "meta"}, "ignore_mismatched_sizes": True}
        return _from_pretrained(type(built), None, built.config, "float32", renamed, **nowhere)

    found = weights.fit(folder, build, None if quantised else rehearse, held)
    if found:
        found = dataclasses.replace(found, notes=(*notes(folder, kind), *found.notes))
    return config, found


def notes(folder: Path, kind: Any) -> Iterator[str]:
    """A line for each thing to know of a folder that is loaded as ``kind``: weights that are not read, and
    an architecture of another kind, of whose own head nothing would be used."""
    from transformers import AutoModelForCausalLM

    yield from checkpoint_limits.unread(folder)
    named = object_of(folder / checkpoint_limits.CONFIG).get("architectures")
    named = [str(one) for one in (named if isinstance(named, list) else [named]) if one]
    if kind is AutoModelForCausalLM and named and not any(map(_ANSWERS.search, named)):
        yield (
            f"{folder}: config.json names the architecture {one_line(named[0])[:80]}, which is no causal "
            "language model; it is loaded as one"
        )


def error_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
