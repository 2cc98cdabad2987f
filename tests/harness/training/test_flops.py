"""The FLOP formula against torch's own counter: several architectures, full, partly frozen, with adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from harness.config import TrainingConfig
from harness.contracts import Encoded
from harness.training import adapters, flops
from harness.training.batching import MicroBatch, collate
from harness.training.flops import ModelFlops, Work
from harness.training.logprobs import TargetHead
from harness.training.step_probe import StepProbe

SIZES = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,  # so that heads x head_dim is not hidden_size
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attn_implementation": "eager",
}
GPT2 = {"n_embd": 48, "n_layer": 3, "n_head": 4, "head_dim": None}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "experts_implementation": "eager"}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama without GQA": ("llama", {"num_key_value_heads": 4}),
    "qwen2": ("qwen2", {"head_dim": 12}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {}),
    "gemma3": ("gemma3_text", {}),
    "gemma3, windows shorter than the text": ("gemma3_text", {"sliding_window": 16}),
    "mistral": ("mistral", {}),
    "phi3": ("phi3", {"head_dim": None}),
    "gpt2": ("gpt2", GPT2),
    "mixtral": ("mixtral", MIXTRAL),
}
# What the formula ignores in these models is less than a thousandth of them.
CLOSE = 0.001


def build(variant: str = "llama", **changes: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    family, own = VARIANTS[variant]
    settings = {name: value for name, value in {**SIZES, **own, **changes}.items() if value is not None}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))


def adapted(model: Any, modules: Any = "all-linear") -> Any:
    settings = {"tuning": "lora", "lora": {"r": 4, "target_modules": modules}, "device": "cpu"}
    return adapters.with_adapters(model, TrainingConfig.model_validate(settings))


def micro_batch(length: int, answers: tuple[int, ...]) -> MicroBatch:
    """Rows of one length, so without padding; the last tokens of each carry loss."""
    rows = [
        Encoded(str(n), list(range(5, 5 + length)), [False] * (length - answer) + [True] * answer)
        for n, answer in enumerate(answers)
    ]
    return collate(rows, 0)


LENGTHS, TRAINED = [40, 40, 40, 17, 17], 12 + 9 + 6 + 16 + 1
MICRO_BATCHES = micro_batch(40, (12, 9, 6)), micro_batch(17, (16, 1))


def counted(model: Any, backward: bool) -> int:
    """By torch, over both micro-batches, the output head on the trained positions alone, as the trainer."""
    head = TargetHead(model)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        for micro in MICRO_BATCHES:
            logp = head.logp(model, micro)
            if backward:
                logp.sum().backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_full_tuning_as_torch_counts_it(variant: str, tied: bool) -> None:
    model = build(variant, tie_word_embeddings=tied)
    costs = flops.count(model)
    assert costs.forward(LENGTHS, TRAINED) == pytest.approx(counted(model, backward=False), rel=CLOSE)
    assert costs.train(LENGTHS, TRAINED) == pytest.approx(counted(model, backward=True), rel=CLOSE)
    assert costs.train(LENGTHS, TRAINED) == 3 * costs.forward(LENGTHS, TRAINED)
    assert costs.parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3", "gemma2", "gemma3", "mistral", "phi3"])
def test_adapters_on_all_layers_as_torch_counts_them(variant: str) -> None:
    """Frozen weights need no gradient of their own, but their inputs' gradients pass through them, save where
    nothing trained is before them."""
    model = adapted(build(variant))
    costs = flops.count(model)
    assert costs.forward(LENGTHS, TRAINED) == pytest.approx(counted(model, backward=False), rel=CLOSE)
    assert costs.train(LENGTHS, TRAINED) == pytest.approx(counted(model, backward=True), rel=CLOSE)


@pytest.mark.parametrize(
    ("modules", "close"),
    [
        (("gate_proj", "up_proj", "down_proj"), CLOSE),
        (("down_proj",), CLOSE),
        (("o_proj",), CLOSE),
        (("q_proj", "v_proj"), 0.02),  # keys without adapters have no gradient in the first layer
    ],
)
def test_adapters_on_some_layers_as_torch_counts_them(modules: tuple[str, ...], close: float) -> None:
    model = adapted(build(), modules)
    assert flops.count(model).train(LENGTHS, TRAINED) == pytest.approx(counted(model, True), rel=close)


@pytest.mark.parametrize("first", [1, 2])
def test_frozen_lower_layers_as_torch_counts_them(first: int) -> None:
    model = build()
    model.get_input_embeddings().requires_grad_(False)
    for layer in model.model.layers[:first]:
        layer.requires_grad_(False)
    assert flops.count(model).train(LENGTHS, TRAINED) == pytest.approx(counted(model, True), rel=CLOSE)


def test_gradients_pass_frozen_layers_down_to_trained_embeddings() -> None:
    model = build(tie_word_embeddings=False)
    model.model.layers.requires_grad_(False)
    assert flops.count(model).train(LENGTHS, TRAINED) == pytest.approx(counted(model, True), rel=CLOSE)


def test_a_head_that_alone_is_trained() -> None:
    model = build(tie_word_embeddings=False).requires_grad_(False)
    model.lm_head.requires_grad_(True)
    assert flops.count(model).train(LENGTHS, TRAINED) == pytest.approx(counted(model, True), rel=CLOSE)


class Packed(nn.Linear):
    """As a 4-bit layer stores its weights: two in a byte, frozen."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        packed = torch.zeros(linear.weight.numel() // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)


def test_weights_in_four_bits_count_as_those_that_they_stand_for() -> None:
    plain, packed = adapted(build()), adapted(build())
    for name, module in list(packed.named_modules()):
        if name.endswith("base_layer"):
            packed.set_submodule(name, Packed(module))
    there, here = flops.count(plain), flops.count(packed)
    assert (here.forward_pass, here.backward_pass) == (there.forward_pass, there.backward_pass)


def test_images_are_no_part_of_it() -> None:
    """Gemma 3 from 4B on comes with a vision tower, which text does not pass."""
    from transformers import AutoModelForCausalLM, Gemma3Config

    text = {**SIZES, "attn_implementation": None}
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = Gemma3Config(text_config=text, vision_config=vision, attn_implementation="eager")
    seeing, blind = AutoModelForCausalLM.from_config(config), build("gemma3")
    assert flops.count(seeing).forward_pass == flops.count(blind).forward_pass


lengths = st.lists(st.integers(1, 4096), min_size=1, max_size=8)


@given(lengths, lengths, st.integers(0, 9999), st.integers(0, 9999))
def test_batches_add_up(one: list[int], other: list[int], head: int, head_too: int) -> None:
    costs = ModelFlops(0, Work(7, 5, 3), Work(11, 13, 17))
    for of in (costs.forward, costs.train):
        assert of(one + other, head + head_too) == of(one, head) + of(other, head_too)
        # one row instead of two: each token of the one looks at the other's, and back
        pairs = 2 * sum(one) * sum(other)
        attention = 2 * (3 if of == costs.forward else 3 + 17)
        assert of([sum(one) + sum(other)], 0) - of([sum(one), sum(other)], 0) == attention * pairs


@pytest.mark.parametrize(
    ("name", "bfloat16", "tf32", "float32"),
    [
        ("NVIDIA H200", 989.4, 494.7, 67.0),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 67.0),
        ("NVIDIA H100 PCIe", 756.0, 378.0, 51.0),
        ("NVIDIA H100 NVL", 835.0, 417.5, 60.0),
        ("NVIDIA GH200 480GB", 989.4, 494.7, 67.0),
        ("NVIDIA B200", 2250.0, 1125.0, 75.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0, 19.5),
        ("NVIDIA A10", 125.0, 62.5, 31.2),
        ("NVIDIA L40S", 362.0, 183.0, 91.6),
        ("NVIDIA L4", 121.0, 60.5, 30.3),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("NVIDIA GeForce RTX 3090", 71.0, 35.6, 35.6),
        ("Tesla V100-SXM2-16GB", 125.0, 15.7, 15.7),
        *((unknown, None, None, None) for unknown in ("cpu", "", "NVIDIA RTX A1000", "NVIDIA A10G")),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None, None),
    ],
)
def test_peaks_of_devices(
    name: str, bfloat16: float | None, tf32: float | None, float32: float | None
) -> None:
    """TF32's is float32's where it is on, and of no matter in bfloat16."""

    def teraflops(dtype: str, **named: bool) -> float | None:
        found = flops.peak(name, dtype, **named)
        return found and found / 1e12

    assert teraflops("bfloat16") == teraflops("bfloat16", tf32=True) == pytest.approx(bfloat16)
    assert teraflops("float32", tf32=True) == pytest.approx(tf32)
    assert teraflops("float32") == teraflops("float32", tf32=False) == pytest.approx(float32)


def test_utilisation_is_the_share_of_the_peak() -> None:
    assert flops.mfu(6e12, 2.0, 12e12) == 0.25


def step_probe(model: Any, **settings: Any) -> StepProbe:
    own = {"device": "cpu", "attention": "eager", "batching": "grouped", **settings}
    tokenizer: Any = SimpleNamespace(pad_token_id=0)
    return StepProbe(model, tokenizer, TrainingConfig.model_validate(own))


@pytest.mark.parametrize("tuned", [{}, {"tuning": "lora", "lora": {"r": 4}}], ids=["full", "lora"])
@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3", "gemma3", "mistral", "phi3"])
def test_a_pass_through_the_first_layers_as_torch_counts_it(variant: str, tuned: dict[str, Any]) -> None:
    """What it computes is left out of, not only what the formula says; then the model is whole again."""
    model = build(variant)
    probe = step_probe(model, **tuned)
    rows = [Encoded(str(n), list(range(5, 45)), [False] * 30 + [True] * 10) for n in range(3)]
    assert probe.layers == model.config.num_hidden_layers == 3
    for layers in (1, 2, None):
        with FlopCounterMode(display=False) as counter:
            probe.passes(rows, layers)
        # The formula takes each layer for an average one; LoRA's first needs no gradient of its input.
        assert probe.flops(rows, layers) == pytest.approx(
            counter.get_total_flops(), rel=0.07 if tuned and layers else CLOSE
        )
    assert model.config.num_hidden_layers == 3


def test_a_decoder_that_always_runs_whole_is_not_cut() -> None:
    assert step_probe(build("gpt2")).layers == 0
