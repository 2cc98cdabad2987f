"""Guards transformers' continuous batching as we use it: the answers of each prompt alone, given sizes,
requests that are there before the start, and errors that are read."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from transformers import GenerationConfig

from harness.contracts import HarnessError
from harness.engines import continuous
from harness.engines.base import Request
from harness.engines.hf import HFEngine
from harness.mini import seed_model_path
from harness.models import checkpoints

STOPS, PAD, TOKENS = [7, 20, 33, 46, 59, 72, 85], 0, 24


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "PAGE", 16)
    monkeypatch.setattr(continuous, "PASS", 32)


def tiny(name: str = "llama", **changes: Any) -> Any:
    model = tiny_models.build(name, **changes)
    model.generation_config = GenerationConfig()
    return model


def random_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(8, 19, (3 + n % 9,), generator=generator).tolist() for n in range(count)]


def alone(model: Any, prompt: list[int]) -> list[int]:
    config = GenerationConfig(do_sample=False, max_new_tokens=TOKENS, eos_token_id=STOPS, pad_token_id=PAD)
    made: list[int] = model.generate(torch.tensor([prompt]), generation_config=config)[0].tolist()
    return made[len(prompt) :]


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("qwen3", {}),
        ("gemma3_text", {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    ],
)
def test_answers_are_those_of_each_prompt_alone(family: str, changes: dict[str, Any]) -> None:
    model, prompts = tiny(family, **changes), random_prompts(9)
    expected = [alone(model, prompt) for prompt in prompts]
    own = model.config._attn_implementation
    for slots in (2, 4):
        assert continuous.answers(model, prompts, TOKENS, STOPS, PAD, slots) == expected
        assert model.config._attn_implementation == own


def test_sizes_are_given_and_requests_are_there_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.generation.continuous_batching import ContinuousBatchingManager

    seen: list[Any] = []
    start = ContinuousBatchingManager.start

    def watched(self: Any) -> None:
        seen.append((self.continuous_batching_config, self.input_queue.qsize()))
        start(self)

    monkeypatch.setattr(ContinuousBatchingManager, "start", watched)
    continuous.answers(tiny(), random_prompts(5), TOKENS, STOPS, PAD, 2)
    ((config, waiting),) = seen
    assert waiting == 5
    assert config.num_blocks == 2 * 2 + 1  # 7 + 24 tokens are two pages
    assert (config.max_requests_per_batch, config.max_batch_tokens) == (2, 32)
    assert not config.allow_block_sharing
    assert not config.auto_switch_to_flash


@pytest.mark.parametrize(
    "error", [RuntimeError("a kernel is missing"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_an_error_in_its_thread_is_raised(error: Exception, capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny()

    def fails(module: Any, given: Any) -> None:
        raise error

    hook = model.model.layers[0].register_forward_pre_hook(fails)
    own = model.config._attn_implementation
    if isinstance(error, torch.OutOfMemoryError):
        with pytest.raises(torch.OutOfMemoryError):
            continuous.answers(model, random_prompts(3), TOKENS, STOPS, PAD, 2)
    else:
        with pytest.raises(
            HarnessError, match=r"continuous batching failed: .*set responses.continuous=false"
        ):
            continuous.answers(model, random_prompts(3), TOKENS, STOPS, PAD, 2)
    assert model.config._attn_implementation == own
    assert "Traceback" not in capfd.readouterr().err
    hook.remove()
    prompts = random_prompts(3)
    assert continuous.answers(model, prompts, TOKENS, STOPS, PAD, 2) == [alone(model, one) for one in prompts]


def test_a_model_without_it_is_refused_in_a_line() -> None:
    with pytest.raises(HarnessError, match=r"no continuous batching .* set responses.continuous=false"):
        continuous.check(object())


def test_the_engine_answers_whole_rounds_and_comes_down_with_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = checkpoints.load_tokenizer(seed_model_path())
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    prompts = [[5 + n, 6, 7] for n in range(5)]
    expected = HFEngine(model, tokenizer, 2).generate(prompts, Request(12))
    engine = HFEngine(
        checkpoints.load_model(seed_model_path(), "float32", "cpu"), tokenizer, 2, continuous=True
    )
    assert engine.plan(prompts * 4) == [list(order) for order in ([*range(16)], [*range(16, 20)])]
    done: list[int] = []
    assert engine.generate(prompts, Request(12, on_progress=done.append)) == expected
    assert done == [5]
    drawn = HFEngine(model, tokenizer, 2).generate(prompts, Request(12, temperature=1.0, seed=3))
    assert engine.generate(prompts, Request(12, temperature=1.0, seed=3)) == drawn
    slots: list[int] = []
    answers = continuous.answers

    def small(*given: Any) -> Any:
        slots.append(given[-1])
        if given[-1] > 1:
            raise torch.OutOfMemoryError
        return answers(*given)

    monkeypatch.setattr(continuous, "answers", small)
    fewer: list[int] = []
    assert engine.generate(prompts, Request(12, on_fewer=fewer.append)) == expected
    assert slots == [2, 1]
    assert fewer == [1]
    slots.clear()
    assert engine.generate(prompts, Request(12, came_down_to=(1,))) == expected  # as the call before did
    assert slots == [1]
