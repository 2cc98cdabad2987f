"""What is trained: all weights, or low-rank adapters on frozen (QLoRA: 4-bit) ones."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import transformers

from harness.config import TrainingConfig
from harness.contracts import HarnessError
from harness.text import shortened


def load_dtype(settings: TrainingConfig) -> str:
    """In what the base model is loaded: weights that are trained stay float32, but where they are frozen, or
    where ZeRO keeps a float32 copy of its own."""
    own_copy = settings.num_processes > 1 and settings.distributed in ("zero2", "zero3")
    return "float32" if settings.tuning == "full" and not own_copy else str(settings.dtype)


def with_adapters(model: Any, settings: TrainingConfig) -> Any:
    """The model ready for ``settings.tuning``: itself, or wrapped by peft with new adapters.

    The adapters' B is zero at first, so that the wrapped model still is the base model (arXiv 2106.09685,
    §4.1); they are float32 whatever the base is.
    """
    if settings.tuning == "full":
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if settings.tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    modules = settings.lora.target_modules
    options: dict[str, Any] = {"target_modules": modules if isinstance(modules, str) else list(modules)}
    if modules == "all-linear":
        options["exclude_modules"] = _no_plain_products(model)
    try:
        return get_peft_model(
            model,
            LoraConfig(
                r=settings.lora.r,
                lora_alpha=settings.lora.alpha,
                lora_dropout=settings.lora.dropout,
                task_type="CAUSAL_LM",
                **options,
            ),
        )
    except ValueError as error:
        raise HarnessError(
            f"model type '{model.config.model_type}' takes no adapters ({shortened(error, 200)}); set "
            "training.lora.target_modules to the names of other layers, or training.tuning to full"
        ) from error


@contextlib.contextmanager
def adapter_casts(model: Any, settings: TrainingConfig) -> Iterator[None]:
    """For the block, peft casts what goes into adapters to their float32 as ``settings`` ask. Under autocast
    in bfloat16 it is cast back at once, to the same numbers, so that without dropout between the two casts
    none is needed. Raises HarnessError where peft cannot leave it."""
    spared = not settings.adapter_casts and settings.tuning == "lora" and settings.dtype == "bfloat16"
    if not spared or settings.lora.dropout:
        yield
        return
    try:
        from peft.helpers import disable_input_dtype_casting
    except ImportError as error:
        raise HarnessError(
            "training.adapter_casts: the installed peft always casts; pip install -U peft, or set "
            "training.adapter_casts to true"
        ) from error
    with disable_input_dtype_casting(model):
        yield


def _no_plain_products(model: Any) -> list[str]:
    """Linear layers that adapters would break, or that would pass adapters by: routers and grouped products
    that only inherit from one, and the last product of a state-space layer, whose weight its kernel reads."""
    parents = dict(model.named_modules())
    found = []
    for name, module in parents.items():
        if isinstance(module, torch.nn.Linear):
            above, _, own_name = name.rpartition(".")
            of_state_space = own_name == "out_proj" and {"A_log", "D"} <= {*parents[above]._parameters}
            if of_state_space or not _is_product(module):
                found.append(name)
    return found


def _is_product(layer: Any) -> bool:
    """Whether a linear layer does what its kind does. Of quantized ones that is taken as given."""
    if not type(layer).__module__.startswith("transformers.models."):
        return True
    states = torch.ones(1, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    plain = torch.nn.functional.linear(states, layer.weight, layer.bias)
    try:
        with torch.no_grad():
            found = layer(states)
    except Exception:
        return False
    return isinstance(found, torch.Tensor) and found.shape == plain.shape and torch.allclose(found, plain)


def without_dropout(model: Any) -> None:
    """The recipe trains without dropout. Its rate may be a module, a number that a module keeps (under any
    name: ``attention_dropout``, ``resid_pdrop``, ``layerdrop``), or one that every forward pass reads from
    the configuration."""
    configs = []
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _without_rates(module)
        configs.append(getattr(module, "config", None))
    known: set[int] = set()
    while configs:
        config = configs.pop()
        if isinstance(config, transformers.PreTrainedConfig) and id(config) not in known:
            known.add(id(config))
            _without_rates(config)
            configs += [getattr(config, name, None) for name in config.sub_configs]


def _without_rates(owner: Any) -> None:
    for name, value in list(vars(owner).items()):
        if "drop" in name and isinstance(value, float) and value:
            setattr(owner, name, 0.0)
