"""Packed rows never see each other, padding is never seen, windows slide: as eager attention has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from backends.attention import CAUSAL, causal_attention
from backends.batching import collate
from backends.logprobs import TargetHead
from harness.contracts import Encoded

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "max_position_embeddings": 128,
}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "gemma3_text": {"sliding_window": 6},
    "mistral": {"sliding_window": 5},
    "phi3": {},
}


def rows(count: int = 5) -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for number in range(count):
        length = 8 + 5 * number
        ids = torch.randint(3, 97, (length,), generator=generator).tolist()
        made.append(Encoded(str(number), ids, [False] * 4 + [True] * (length - 4)))
    return made


def model_of(family: str, **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, "initializer_range": 0.3, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_equals_each_row_alone_in_value_and_gradient(family: str, packed: bool) -> None:
    model = model_of(family, **FAMILIES[family])
    head = TargetHead(model)

    def gradients() -> dict[str, torch.Tensor]:
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    alone = []
    for row in rows():  # eager, one at a time: no padding, no neighbours
        alone.append(head.logp(model, collate([row], 0))[0])
        alone[-1].sum().backward()
    expected = gradients()
    model.set_attn_implementation(CAUSAL)
    together = head.logp(model, collate(rows(), 0, packed))
    for row, values in zip(together, alone, strict=True):
        torch.testing.assert_close(row[: len(values)], values, atol=2e-5, rtol=0)
        assert not row[len(values) :].any()
    together.sum().backward()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-4, rtol=1e-3)


def test_soft_capping_is_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match="soft-capping"):
        causal_attention(None, states, states, states, softcap=50.0)


def test_a_window_is_as_wide_as_it_says() -> None:
    """Values are one-hot by position, so that the output tells who was seen."""
    query = torch.zeros(1, 1, 6, 6)
    value = torch.eye(6).view(1, 1, 6, 6)
    seen = causal_attention(None, query, query, value, sliding_window=3)[0][0, :, 0] > 0
    assert seen.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
    ]
