"""What is trained: all weights, or low-rank adapters on frozen (QLoRA: 4-bit) ones."""

from __future__ import annotations

from typing import Any

import torch


def load_dtype(settings: Any) -> str:
    """In what the seed model is loaded: weights that are trained stay float32, but where they are frozen, or
    where ZeRO keeps a float32 copy of its own."""
    own_copy = settings.num_processes > 1 and settings.distributed in ("zero2", "zero3")
    return "float32" if settings.tuning == "full" and not own_copy else str(settings.dtype)


def with_adapters(model: Any, settings: Any) -> Any:
    """The model ready for ``settings.tuning``: itself, or wrapped by peft with new adapters.

    The adapters' B is zero at first, so that the wrapped model still is the seed model (arXiv 2106.09685,
    §4.1); they are float32 whatever the base is.
    """
    if settings.tuning == "full":
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if settings.tuning == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    modules = settings.lora.target_modules
    return get_peft_model(
        model,
        LoraConfig(
            r=settings.lora.r,
            lora_alpha=settings.lora.alpha,
            lora_dropout=settings.lora.dropout,
            target_modules=modules if isinstance(modules, str) else list(modules),
            task_type="CAUSAL_LM",
        ),
    )


def without_dropout(model: Any) -> None:
    """The recipe trains without dropout; some models keep its rate in their attention modules."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
