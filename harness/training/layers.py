"""A model's decoder blocks and the names of its weights, whether adapters are around it or not."""

from __future__ import annotations

from typing import Any

import torch

from harness.contracts import HarnessError

WRAPPER, WRAPPED = "base_model.model.", ".base_layer."  # what peft writes into names


def layers(model: Any) -> list[torch.nn.Module]:
    """The blocks of a causal language model's decoder, in the order of a forward pass; adapters are inside
    them. Raises HarnessError where they cannot be told from other modules."""
    decoder = model.get_decoder()
    wanted = decoder.config.get_text_config().num_hidden_layers
    for module in decoder.modules():  # outer ones come first
        if isinstance(module, torch.nn.ModuleList) and len(module) == wanted:
            return list(module)
    raise HarnessError(
        f"model type '{model.config.model_type}': its {wanted} decoder blocks cannot be told from its other "
        "modules; choose another method or model"
    )


def plain_name(name: str) -> str:
    """The name that a weight or module has in the model without adapters around it."""
    return name.removeprefix(WRAPPER).replace(WRAPPED, ".")
