"""Packed rows never see each other, padding is never seen, windows slide: as eager attention has it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from harness.contracts import Encoded
from harness.training.attention import CAUSAL, causal_attention, in_force, is_capped, use
from harness.training.batching import collate
from harness.training.logprobs import TargetHead

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


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"softcap": 50.0}, "soft-capping"),
        ({"s_aux": torch.zeros(2)}, "sinks"),
        ({"position_bias": torch.zeros(1)}, "position biases"),
        ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "attention_mask"),
        ({"dropout": 0.1}, "dropout"),
        ({"is_causal": False}, "is_causal"),
        ({"indices": 3, "softcap": 1.0}, "indices, soft-capping"),
    ],
)
def test_what_it_does_not_know_is_refused_and_not_dropped(asked: dict[str, Any], named: str) -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(ValueError, match=rf"^attention without a mask does not know {named}$"):
        causal_attention(None, states, states, states, **asked)


@pytest.mark.parametrize("packed", [False, True])
def test_what_says_nothing_new_is_passed_over(packed: bool) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 6, 4)
    lengths = {"cu_seq_lens_q": torch.tensor([0, 4, 6]), "max_length_q": 4} if packed else {}
    plain = causal_attention(None, query, key, value, **lengths)[0]
    harmless = {"dropout": 0.0, "is_causal": True, "softcap": None, "s_aux": None, "position_ids": 1}
    assert torch.equal(causal_attention(None, query, key, value, **lengths, **harmless)[0], plain)


def test_scores_are_scaled_as_asked() -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 5, 4)
    for scaling in (0.3, None):
        scores = (query @ key.mT) * (scaling or 4**-0.5)
        seen = torch.ones(5, 5).tril().bool()
        expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value
        found = causal_attention(None, query, key, value, scaling=scaling)[0]
        torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize("window", [1, 3, 5, 6, 7])
def test_windows_in_packed_rows(window: int) -> None:
    """Each packed example for itself, each with its window."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 11, 4)
    bounds = torch.tensor([0, 6, 11])
    packed = causal_attention(None, query, key, value, sliding_window=window, cu_seq_lens_q=bounds)[0]
    for start, end in ((0, 6), (6, 11)):
        part = [states[:, :, start:end] for states in (query, key, value)]
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        scores = (part[0] @ part[1].mT / 2).masked_fill((distance < 0) | (distance >= window), -torch.inf)
        torch.testing.assert_close(packed[:, start:end], (scores.softmax(-1) @ part[2]).transpose(1, 2))


def test_an_architectures_own_attention_comes_back() -> None:
    model = model_of("llama")
    own = in_force(model)
    assert own.name == "eager"
    assert use(model, CAUSAL) == CAUSAL
    assert own.restore(model) == "eager"
    with pytest.raises(dataclasses.FrozenInstanceError):
        own.name = CAUSAL  # type: ignore[misc]
    assert not is_capped(model)
    assert is_capped(model_of("gemma2"))


def test_an_architecture_with_one_attention_keeps_it() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    small = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=16, n_layer=1, n_head=2))
    assert use(small, CAUSAL) == "eager"


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
