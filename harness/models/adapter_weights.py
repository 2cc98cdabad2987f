"""Whether an adapter's tensors are those of its model: peft's own loading, rehearsed without numbers."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.contracts import HarnessError
from harness.models.checkpoint_limits import ADAPTER_CONFIG, Tensor
from harness.models.load_notes import named, quiet, quoted, verb
from harness.models.weights import FLOATS, as_meta
from harness.text import shortened

_MISSHAPEN = re.compile(
    r"size mismatch for (\S+): copying a param with shape torch.Size\((\[.*?\])\) from checkpoint, the shape "
    r"in current model is torch.Size\((\[.*?\])\)"
)


def check_adapter(adapter: Path, base: Path, model: Any, held: Mapping[str, Tensor]) -> None:
    """Rehearse putting an adapter's tensors ``held`` on its base: ``model``, on the meta device, which is
    changed. Raises HarnessError, which names the tensors, where one does not land or one is missing: the
    base's own answers would stand under the adapter's name."""
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    packed = [name for name, tensor in held.items() if tensor.dtype not in FLOATS]
    if packed:
        raise HarnessError(
            f"{adapter}: {named(packed)} {verb(packed)} of type {held[packed[0]].dtype}, and an adapter's "
            f"weights are of {', '.join(FLOATS)}; save it again"
        )
    twice = [name for name in held if _saved(name) != name and _saved(name) in held]
    if twice:
        raise HarnessError(
            f"{adapter}: two sets of weights: {named(twice)} {verb(twice)} there without '.default' too; "
            "which one counts? take one out"
        )
    config = PeftConfig.from_peft_type(**PeftConfig.from_json_file(str(adapter / ADAPTER_CONFIG)))
    config.init_lora_weights = True  # others compute with the base's numbers; names and shapes are the same
    try:
        with quiet():
            wrapped = get_peft_model(model, copy.deepcopy(config), low_cpu_mem_usage=True)
            result = set_peft_model_state_dict(wrapped, as_meta(held), low_cpu_mem_usage=True)
    except Exception as error:
        raise HarnessError(f"{adapter}: not an adapter of {base}: {_misfit(error)}") from error
    left = sorted(result.unexpected_keys)
    if left:
        raise HarnessError(
            f"{adapter}: not an adapter of {base}: {named([_saved(name) for name in left])} "
            f"{verb(left)} nothing of that model's; give its own base, or save it again from the plain model"
        )
    missing = sorted(name for name in result.missing_keys if _is_adapters(name, config.bias))
    if missing:
        raise HarnessError(
            f"{adapter}: its weights are not whole: {named([_saved(name) for name in missing])} "
            f"{verb(missing)} missing, by {base} and adapter_config.json; give its own base, or save it again"
        )


def _is_adapters(name: str, bias: str) -> bool:
    """Whether one of the tensors of a model with an adapter is the adapter's, and has to be in its file. Of
    saved modules and tokens peft itself misses what is not there, and knows which are tied."""
    if ".modules_to_save." in name or ".token_adapter." in name:
        return False
    if ".default" in name:
        return True
    return name.endswith(".bias") and (bias == "all" or (bias == "lora_only" and ".base_layer." in name))


def _saved(name: str) -> str:
    """A tensor's name as an adapter's file has it."""
    return name.replace(".default", "", 1)


def _misfit(error: Exception) -> str:
    found = _MISSHAPEN.search(str(error))
    if found:
        vocabulary = ("embed" in found[1] or "lm_head" in found[1]) and "lora" not in found[1]
        mend = (
            "the vocabulary was resized before it was trained: merge it into that model and give the whole"
            if vocabulary
            else "give its own base"
        )
        return f"{quoted(_saved(found[1]))} has the shape {found[2]}, and on that model {found[3]}; {mend}"
    if isinstance(error, KeyError):
        return f"{quoted(str(error.args[0]))} is missing; give its own base, or save it again"
    return f"{shortened(error, 200)}; give its own base"
