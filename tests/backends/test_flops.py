"""The FLOP formula against torch's own counter, on several architectures, full and with adapters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from backends import flops, tuning
from backends.batching import collate
from backends.logprobs import TargetHead
from harness.config import TrainingConfig
from harness.contracts import Encoded

SIZES = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
FAMILIES = ["llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mistral", "phi3"]


def build(family: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config)


def micro_batch() -> tuple[Any, list[int], int]:
    """Four rows of 40 tokens, of which the last 12, 9, 6 and 3 carry loss: no padding."""
    rows = [
        Encoded(str(n), list(range(5, 45)), [False] * (40 - trained) + [True] * trained)
        for n, trained in enumerate((12, 9, 6, 3))
    ]
    return collate(rows, 0), [40] * 4, 30


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_forward_and_backward_as_torch_counts_them(family: str, tied: bool) -> None:
    model = build(family, tie_word_embeddings=tied)
    batch, lengths, trained = micro_batch()
    costs, head = flops.count(model), TargetHead(model)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        head.logp(model, batch)
    assert costs.forward(lengths, trained) == pytest.approx(forward.get_total_flops(), rel=0.01)
    with FlopCounterMode(display=False) as both:
        head.logp(model, batch).sum().backward()
    assert costs.train(lengths, trained) == pytest.approx(both.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("modules", ["all-linear", ("q_proj", "v_proj")])
def test_adapters(modules: Any) -> None:
    """Frozen weights need no gradient of their own, but their inputs' gradients pass through them."""
    settings = TrainingConfig.model_validate(
        {"tuning": "lora", "lora": {"r": 4, "target_modules": modules}, "device": "cpu"}
    )
    model = tuning.with_adapters(build("llama", hidden_size=96, num_hidden_layers=6), settings)
    batch, lengths, trained = micro_batch()
    costs, head = flops.count(model), TargetHead(model)
    with FlopCounterMode(display=False) as both:
        head.logp(model, batch).sum().backward()
    assert costs.train(lengths, trained) == pytest.approx(both.get_total_flops(), rel=0.05)
    assert costs.train(lengths, trained) < 0.8 * flops.count(
        build("llama", hidden_size=96, num_hidden_layers=6)
    ).train(lengths, trained)


def test_the_head_is_counted_where_it_is_computed() -> None:
    costs = flops.count(build("llama"))
    assert costs.head == 199 * 48
    assert costs.forward([40], 40) - costs.forward([40], 10) == 2 * 199 * 48 * 30
    assert costs.forward([20, 20], 0) < costs.forward([40], 0)  # attention grows with the square


def test_utilisation_is_the_share_of_the_peak() -> None:
    assert flops.peak("NVIDIA H200", "bfloat16") == 989.4e12
    assert flops.peak("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert flops.peak("NVIDIA A100-SXM4-80GB", "float32") == 156e12
    assert flops.peak("NVIDIA L40S", "bfloat16") == 362e12
    assert flops.peak("NVIDIA L4", "bfloat16") == 121e12
    assert flops.peak("cpu", "float32") is None
    assert flops.mfu(3e12, 2.0, 3e12) == 0.5
