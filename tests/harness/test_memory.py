"""Expected memory: parameters as published, states to the byte, and less of both where they are shared."""

from __future__ import annotations

from typing import Any

import pytest

from harness import memory, models
from harness.config import TrainingConfig

# Published parameter counts (model cards).
PARAMETERS = {
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "google/gemma-3-1b-it": 999_885_952,
}


@pytest.mark.parametrize("name", list(memory.PUBLISHED))
def test_parameters_are_the_published(name: str) -> None:
    model = memory.find(name, None)
    assert model is not None
    assert model.parameters == pytest.approx(PARAMETERS[name], rel=1e-3)


def test_a_model_on_disk_is_read_from_its_configuration() -> None:
    folder = models.locate("mini")
    model = memory.find("whatever", folder)
    assert model is not None
    loaded = models.load_model(folder, "float32", "cpu")
    assert model.parameters == pytest.approx(sum(p.numel() for p in loaded.parameters()), rel=0.01)
    assert memory.find("nobody/knows", None) is None


def gigabytes(**settings: Any) -> float:
    model = memory.find("meta-llama/Llama-2-7b-chat-hf", None)
    assert model is not None
    base = {"dtype": "bfloat16", "gradient_checkpointing": True, "micro_batch_size": 1}
    return memory.training_bytes(model, TrainingConfig.model_validate({**base, **settings}), 512) / 1e9


def test_adapters_match_peft() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from backends import tuning

    settings = TrainingConfig.model_validate({"tuning": "lora", "lora": {"r": 4}})
    small = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    wrapped = tuning.with_adapters(LlamaForCausalLM(small), settings)
    trained = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert memory.architecture(small.to_dict()).adapter_parameters(4) == trained


def test_what_is_shared_or_frozen_needs_less() -> None:
    alone = gigabytes()
    assert alone == pytest.approx(18 * 6.738 + 1.5, rel=0.03)  # 4 + 4 + 8 bytes and autocast's 2
    two = [gigabytes(num_processes=n, distributed="zero2") for n in (2, 4, 8)]
    three = [gigabytes(num_processes=n, distributed="zero3") for n in (2, 4, 8)]
    assert alone > two[0] > two[1] > two[2] > 2 * 6.738
    assert all(b < a for a, b in zip(two, three, strict=True))
    assert gigabytes(tuning="lora") < 0.2 * alone
    assert gigabytes(tuning="qlora") < 0.5 * gigabytes(tuning="lora")
    assert gigabytes(optimizer="adamw_8bit") < alone - 5.9 * 6.738
    assert gigabytes(gradient_checkpointing=False) > alone
    assert gigabytes(micro_batch_size=4) > alone
