"""What a device's kernel for packed rows is given: half precision whatever reaches attention, heads shared or
repeated as its signature has it, windows. Stood in for by one that is as strict as flash attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import strict_kernel
import tiny_models
import torch

from harness import config
from harness.config import TrainingConfig
from harness.contracts import Encoded
from harness.training import adapters, agreement, attention, batching, own_logp
from harness.training.attention import CAUSAL, Kernel, causal_attention
from harness.training.logprobs import TargetHead, autocast
from harness.training.setting import Setting

BF16 = {"dtype": "bfloat16", "batching": "padding-free", "device": "cpu"}
# The packaged recipes' models, by architecture: tiny, with what each asks of attention kept.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "meta-llama/Llama-2-7b-chat-hf": ("llama", {"num_key_value_heads": 4}),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", {}),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", {"tie_word_embeddings": True}),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", {"tie_word_embeddings": True}),
    "Qwen/Qwen3-4B": ("qwen3", {"tie_word_embeddings": True}),
    "Qwen/Qwen3-8B": ("qwen3", {}),
    "google/gemma-3-1b-it": ("gemma3_text", {"sliding_window": 6, "num_key_value_heads": 1}),
    "mini": ("llama", {}),
}
RECIPES = sorted(name for name in config.recipe_names() if name != "mini")


def rows() -> list[Encoded]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for number, length in enumerate((21, 5, 12, 9, 17)):
        ids = torch.randint(3, tiny_models.VOCABULARY, (length,), generator=generator).tolist()
        made.append(Encoded(str(number), ids, [False] * 2 + [True] * (length - 2)))
    return made


def tiny(model: str) -> Any:
    family, changes = FAMILIES[model]
    return tiny_models.build(family, initializer_range=0.1, **changes)  # 0.3 makes much of each rounding


@pytest.fixture(params=["sharing", "unsharing"])
def on_device(request: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The CPU taken for a device whose kernel is strict; returns how often it was asked."""
    calls = 0
    strict = getattr(strict_kernel, request.param)

    def counted(*given: Any, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        found: torch.Tensor = strict(*given, **named)
        return found

    kernel = replace(Kernel.of(strict), run=counted)
    assert kernel.shares_heads == (request.param == "sharing")
    monkeypatch.setattr(attention, "kernel", kernel)
    monkeypatch.setattr(attention, "_takes_kernel", lambda device: True)
    return lambda: calls


def test_every_recipes_model_has_a_tiny_one() -> None:
    assert {config.load(name, {}).model for name in config.recipe_names()} == FAMILIES.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_dtype_contract_holds_under_every_recipe(recipe: str, on_device: Callable[[], int]) -> None:
    """Forwards and backwards as the trainer has it, weights in the precision that the recipe loads; packed
    rows are what each row is for itself."""
    loaded = config.load(recipe, {})
    settings = loaded.training.model_copy(update=BF16 | {"gradient_checkpointing": False})
    base = tiny(loaded.model).to(getattr(torch, adapters.load_dtype(settings)))
    if settings.tuning != "full":  # 4 bits need a device; what reaches attention is the same
        settings = settings.model_copy(update={"tuning": "lora"})
    model = adapters.with_adapters(base, settings)
    head = TargetHead(model)
    agreed = agreement.choose(model, base, head, rows(), 0, settings)
    assert agreed.record["rejected"] == []
    assert agreed.setting == Setting(CAUSAL, "padding-free", settings.micro_batch_size)
    before = on_device()
    model.train()
    with autocast(model, settings):
        logp = head.logp(model, batching.collate(rows(), 0, packed=True))
        logp.sum().backward()
    assert on_device() - before == base.config.num_hidden_layers
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad(), autocast(model, settings):
        for row, found in zip(rows(), logp, strict=True):
            places = [place for place in range(1, len(row.input_ids)) if row.trained[place]]
            alone = own_logp.compute_alone(model, row.input_ids, places)
            assert (found[: len(places)].detach() - alone).abs().mean() < 0.02


@pytest.mark.parametrize("model", sorted(FAMILIES))
def test_rotary_embeddings_do_leave_float32(model: str, on_device: Callable[[], int]) -> None:
    """The case that crashed: float32 weights under autocast. Without the cast the stand-in refuses."""
    seen: list[set[torch.dtype]] = []
    strict = attention.kernel
    assert strict is not None

    def watch(module: Any, query: Any, key: Any, value: Any, *given: Any, **named: Any) -> Any:
        seen.append({query.dtype, key.dtype, value.dtype})
        return causal_attention(module, query, key, value, *given, **named)

    from transformers import AttentionInterface

    AttentionInterface.register("watched", watch)
    made = tiny(model)
    made.set_attn_implementation("watched")
    settings = TrainingConfig(**BF16)
    with torch.no_grad(), autocast(made, settings):
        made(**batching.collate(rows(), 0, packed=True).inputs, use_cache=False)
    assert all(torch.float32 in dtypes for dtypes in seen)
    assert on_device() == len(seen) == made.config.num_hidden_layers


def states(heads: int, shared: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(1, count, 9, 8, dtype=dtype) for count in (heads, shared, shared)]


BOUNDS = torch.tensor([0, 4, 9], dtype=torch.int32)


@pytest.mark.parametrize("window", [None, 1, 2, 3, 5])
@pytest.mark.parametrize(("heads", "shared"), [(2, 2), (4, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize("longest", [5, None])
def test_the_kernel_computes_attention(
    window: int | None, heads: int, shared: int, longest: int | None, on_device: Callable[[], int]
) -> None:
    query, key, value = states(heads, shared, torch.bfloat16)
    given = [query.float(), key, value]  # as rotary embeddings may leave it
    found, weights = causal_attention(
        None, *given, scaling=0.3, sliding_window=window, cu_seq_lens_q=BOUNDS, max_length_q=longest
    )
    assert weights is None
    assert found.dtype == torch.bfloat16
    laid = [each[0].transpose(0, 1).double() for each in (query, key, value)]
    expected = [
        strict_kernel.plain(*(each[start:end] for each in laid), 0.3, window)
        for start, end in ((0, 4), (4, 9))
    ]
    torch.testing.assert_close(found[0].double(), torch.cat(expected), atol=0.02, rtol=0.02)
    assert on_device() == 1


def test_everything_is_cast_where_even_values_are_float32(on_device: Callable[[], int]) -> None:
    """Norms over values (Gemma 3n) leave float32 there too: autocast says what to cast to."""
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = causal_attention(None, *states(4, 2), cu_seq_lens_q=BOUNDS, max_length_q=5)
    assert found.dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="only support fp16 and bf16"):
        causal_attention(None, *states(4, 2), cu_seq_lens_q=BOUNDS, max_length_q=5)


# --- where no kernel applies -------------------------------------------------------------------------


def chosen(**changes: Any) -> agreement.Agreement:
    model = tiny_models.build("llama", **changes.pop("sizes", {}))
    settings = TrainingConfig(**{**BF16, **changes})
    return agreement.choose(model, model, TargetHead(model), rows(), 0, settings)


def rejected(found: agreement.Agreement) -> str:
    (first,) = found.record["rejected"]
    assert (first["attention"], first["batching"]) == (CAUSAL, "padding-free")
    assert found.setting == Setting(CAUSAL, "grouped", 64)
    return str(first["reason"])


def test_float32_on_a_device_is_grouped(on_device: Callable[[], int]) -> None:
    assert "half precision alone, not float32" in rejected(chosen(dtype="float32"))
    assert on_device() == 0


def test_a_torch_without_the_kernel_is_grouped(
    on_device: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "KERNEL_MODULE", "torch.nn.attention.not_there")
    monkeypatch.setattr(attention, "kernel", Kernel.installed())
    assert rejected(chosen()).endswith("has no kernel for packed rows (torch.nn.attention.not_there)")
    with pytest.raises(ValueError, match="has no kernel for packed rows"):
        causal_attention(None, *states(2, 2), cu_seq_lens_q=BOUNDS, max_length_q=5)


def test_a_kernel_that_lacks_what_is_asked_is_not_used(
    on_device: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "kernel", Kernel.of(strict_kernel.windowless))
    assert "knows no scale and no window_size" in rejected(chosen())


def test_heads_that_the_kernel_does_not_take_are_found_before_the_first_step(
    on_device: Callable[[], int],
) -> None:
    """Nothing is left to the forward pass: a backward pass is tried too."""
    assert "a multiple of 8" in rejected(chosen(sizes={"head_dim": 12, "hidden_size": 48}))
    assert on_device() == 1


def test_a_backward_pass_that_fails_counts(
    on_device: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_way(*given: Any, **named: Any) -> torch.Tensor:
        return strict_kernel.sharing(*given, **named).detach()

    monkeypatch.setattr(attention, "kernel", Kernel(one_way, (), True))
    assert "kernel for packed rows fails (RuntimeError" in rejected(chosen())


def test_weights_that_move_to_the_device_later_are_judged_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def takes(device: torch.device) -> bool:
        asked.append(device.type)
        return device.type == "cuda"

    monkeypatch.setattr(attention, "_takes_kernel", takes)
    monkeypatch.setattr(attention, "kernel", None)
    model = tiny_models.build("llama")
    settings = TrainingConfig(**{**BF16, "device": "cuda"})
    assert "has no kernel" in str(attention.no_kernel_for(model, settings))
    assert attention.no_kernel_for(model, settings.model_copy(update={"device": "cpu"})) is None
    assert asked == ["cuda", "cpu"]


def test_on_a_cpu_no_kernel_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "kernel", None)
    found = chosen(dtype="float32")
    assert found.setting.batching == "padding-free"


def test_the_installed_kernel_is_what_torch_has() -> None:
    """Whichever torch is installed: its own function, if it has one that knows windows."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        assert attention.kernel is None
        return
    assert attention.kernel is not None
    assert attention.kernel.run is varlen_attn
    assert attention.kernel.missing == ()


# --- padded rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "dtype", "shared"),
    [
        (None, torch.bfloat16, True),  # flash attention
        (3, torch.bfloat16, False),  # a mask: flash attention knows none
        (None, torch.float32, False),
        (3, torch.float32, False),
        (20, torch.bfloat16, True),  # the window is wider than the row: no mask
    ],
)
def test_padded_rows_keep_to_the_fast_kernels(
    window: int | None, dtype: torch.dtype, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared heads are repeated where torch's only kernel that shares them keeps all scores (Gemma 3)."""
    query, key, value = states(4, 2, dtype)
    expected = causal_attention(None, query, key, value, sliding_window=window)[0]
    asked: list[tuple[bool, int]] = []
    own = attention.scaled_dot_product_attention

    def watch(query: Any, key: Any, value: Any, *, enable_gqa: bool, **named: Any) -> torch.Tensor:
        asked.append((enable_gqa, key.shape[1]))
        return own(query, key, value, enable_gqa=enable_gqa, **named)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watch)
    monkeypatch.setattr(attention, "_takes_kernel", lambda device: True)
    found = causal_attention(None, query, key, value, sliding_window=window)[0]
    assert asked == [(True, 2) if shared else (False, 4)]
    within = 0.01 if dtype == torch.bfloat16 else 1e-5  # older kernels round repeated heads otherwise
    torch.testing.assert_close(found, expected, atol=within, rtol=within)
