"""Expected memory: parameters as published, states to the byte, and less of both where they are shared."""

from __future__ import annotations

from typing import Any

import pytest

from harness.config import TrainingConfig
from harness.models import checkpoints
from harness.training import memory

# Published parameter counts (model cards).
PARAMETERS = {
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
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
    folder = checkpoints.locate("mini")
    model = memory.find("whatever", folder)
    assert model is not None
    loaded = checkpoints.load_model(folder, "float32", "cpu")
    assert model.parameters == pytest.approx(sum(p.numel() for p in loaded.parameters()), rel=0.01)
    assert memory.find("nobody/knows", None) is None


def gigabytes(**settings: Any) -> float:
    model = memory.find("meta-llama/Llama-2-7b-chat-hf", None)
    assert model is not None
    base = {"dtype": "bfloat16", "gradient_checkpointing": True, "micro_batch_size": 1}
    return memory.training_bytes(model, TrainingConfig.model_validate({**base, **settings}), 512) / 1e9


def test_adapters_match_peft() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from harness.training import adapters

    settings = TrainingConfig.model_validate({"tuning": "lora", "lora": {"r": 4}})
    small = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    wrapped = adapters.with_adapters(LlamaForCausalLM(small), settings)
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


# --- one GPU, one model: measured -------------------------------------------------------------------

SMOLLM2_135M = {
    "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip


def rows(tokens: int, loss: int, number: int = 32) -> list[memory.RowSize]:
    """So many rows that have these tokens together."""
    return [
        memory.RowSize(tokens // number + (n < tokens % number), loss // number + (n < loss % number))
        for n in range(number)
    ]


@pytest.mark.parametrize(
    ("tokens", "loss", "formula", "measured"), [(6_954, 873, 10.3, 11.1), (13_110, 10_084, 21.4, 23.4)]
)
def test_two_trainings_of_which_the_memory_was_measured(
    tokens: int, loss: int, formula: float, measured: float
) -> None:
    """Vanilla and SDFT on SAMSum, all weights in bfloat16 on one GPU, 32 rows a micro-batch. The tokens of
    the largest micro-batch were written down, those with loss are what the formula's published value takes.
    The formula once more, by hand."""
    parameters = 49152 * 576 + 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536 + 2 * 576)
    a_layer = 26 * 576 + 4 * (576 + 192) + 8 * 1536 + 4 * 9 + 8
    assert a_layer == 30_380
    by_hand = 14 * parameters + tokens * (30 * a_layer + 16 * 576) + 12 * loss * 49152 + 1.5e9
    settings = TrainingConfig.model_validate(
        {"dtype": "bfloat16", "batching": "padding-free", "batch_size": 32, "micro_batch_size": 32}
    )
    model = memory.architecture(SMOLLM2_135M)
    found = memory.training_bytes(model, settings, 1024, rows(tokens, loss))
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert found / 1e9 == pytest.approx(formula, abs=0.05)
    assert found / 1e9 == pytest.approx(measured, rel=0.1)


def test_the_optimizers_step_may_be_what_takes_most() -> None:
    settings = TrainingConfig(dtype="bfloat16", batch_size=1, micro_batch_size=1)
    model = memory.architecture(SMOLLM2_135M)
    assert memory.training_bytes(model, settings, 16) == pytest.approx(
        18 * model.parameters + 1.5e9, rel=1e-6
    )
    in_float32 = settings.model_copy(update={"dtype": "float32", "device": "cpu"})
    found = memory.training_bytes(model, in_float32, 16)
    assert found == pytest.approx(16 * model.parameters + 0.7e9, rel=1e-6)


def test_gradients_are_there_from_the_second_micro_batch_on() -> None:
    model = memory.architecture(SMOLLM2_135M)
    base = {"dtype": "bfloat16", "batching": "padding-free", "micro_batch_size": 32}
    one, two = (TrainingConfig.model_validate({**base, "batch_size": size}) for size in (32, 64))
    equal = rows(6_400, 640) * 2
    more = memory.training_bytes(model, two, 1024, equal) - memory.training_bytes(
        model, one, 1024, equal[:32]
    )
    assert more == pytest.approx(4 * model.parameters)


def test_float32_keeps_twice_the_half_precision_states() -> None:
    """Counted one by one: the two norms' inputs, normalised states and outputs, q, k, v and the output of
    attention, and gate, its activation, up and their product; the two residual sums."""
    h, q, kv, inner, heads = 576, 576, 192, 1536, 9
    norms, residual = 2 * (4 + 4 + 4) * h, 6 * h
    attention = 4 * (q + kv + kv + q) + 4 * heads
    a_layer = norms + residual + attention + 4 * 4 * inner + 8
    model = memory.architecture(SMOLLM2_135M)
    settings = TrainingConfig(batch_size=1, micro_batch_size=1)
    few, many = (memory.training_bytes(model, settings, 1, [memory.RowSize(n, 0)]) for n in (10_000, 20_000))
    assert many - few == pytest.approx(10_000 * (30 * a_layer + 16 * h))


def cut(lengths: list[int], **settings: Any) -> list[list[int]]:
    given = TrainingConfig.model_validate({"batch_size": len(lengths), **settings})
    steps = memory.micro_batches(given, 100, [memory.RowSize(n, 1) for n in lengths])
    return [[micro.tokens for micro in step] for step in steps]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"micro_batch_size": 4}, [9 * 4]),
        ({"micro_batch_size": 2}, [9 * 2, 4 * 2]),
        ({"micro_batch_size": 2, "batching": "padding-free"}, [17, 7]),
        ({"micro_batch_size": 4, "micro_batch_tokens": 18}, [18, 8]),
        ({"micro_batch_size": 4, "micro_batch_tokens": 17, "batching": "padding-free"}, [17, 7]),
        ({"micro_batch_size": 4, "micro_batch_tokens": 3}, [9, 8, 4, 3]),
        ({"micro_batch_size": 1, "num_processes": 2}, [9, 4]),
        ({"micro_batch_size": 4, "num_processes": 2}, [18]),
    ],
)
def test_micro_batches_are_cut_as_the_trainer_cuts_them(
    settings: dict[str, Any], expected: list[int]
) -> None:
    assert cut([3, 9, 4, 8], **settings) == [expected] * memory.STEPS


def test_it_is_the_trainers_cut() -> None:
    """Of random rows: the first device's, beside harness/training/batching.py."""
    import random

    from harness.contracts import Encoded
    from harness.training.batching import deal

    rng = random.Random(3)
    for _ in range(50):
        lengths = rng.sample(range(2, 300), 24)
        devices = rng.choice([1, 1, 2, 3])
        settings = {
            "micro_batch_size": rng.choice([1, 3, 8, 24]),
            "micro_batch_tokens": rng.choice([None, 300, 900]),
            "batching": rng.choice(["grouped", "padding-free"]),
            "num_processes": devices,
        }
        batch = [Encoded(str(n), [1] * n, [True] * n) for n in lengths]
        given = TrainingConfig.model_validate(settings)
        dealt = deal(batch, given.micro_batch_size, given.micro_batch_tokens, given.batching, devices)
        widths = [[len(row.input_ids) for row in micro] for micro in dealt[0] if micro]
        packed = given.batching == "padding-free"
        expected = [sum(row) if packed else max(row) * len(row) for row in widths]
        found = cut(lengths, **settings)[0]
        assert found == expected


def test_unknown_rows_are_as_long_as_they_may_be() -> None:
    settings = TrainingConfig(batch_size=8, micro_batch_size=4)
    assert memory.micro_batches(settings, 100) == [[memory.RowSize(400, 200.0)] * 2]


def test_the_largest_of_some_steps_counts() -> None:
    """Few rows are drawn more than once, many at random: the longest comes in some step."""
    given = TrainingConfig(batch_size=4, micro_batch_size=4)
    few = memory.micro_batches(given, 100, [memory.RowSize(7, 2), memory.RowSize(9, 3)])
    assert len(few) == memory.STEPS
    assert {micro.tokens for step in few for micro in step} <= {36, 28}
    many = memory.micro_batches(given, 100, [memory.RowSize(n, 1) for n in range(5, 25)])
    assert len({step[0].tokens for step in many}) > 3


def test_what_is_not_in_4_bits_is_float32() -> None:
    model = memory.find("meta-llama/Llama-2-7b-chat-hf", None)
    assert model is not None
    embeddings = 2 * 32000 * 4096
    adapters = model.adapter_parameters(16)
    settings = TrainingConfig(dtype="bfloat16", tuning="qlora")
    standing, gradients = memory._weights_and_states(model, settings, 1)
    in_4_bits = (model.parameters - embeddings) * (0.5 + 0.127 / 8)
    assert standing == pytest.approx(in_4_bits + 4 * embeddings + 12 * adapters)
    assert gradients == 4 * adapters
