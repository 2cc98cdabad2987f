"""Guards the decoding of a batch: rows that leave it change no answer, what is drawn is what transformers
draws, and caches of fixed length do not depend on what was answered before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from harness.contracts import HarnessError
from harness.engines import decoding
from harness.engines.decoding import Decoder, Drawing, Sampling
from harness.engines.hf import HFEngine
from harness.engines.lm import Asking, Decoding, TaskModel
from harness.mini import seed_model_path
from harness.models import checkpoints

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "tie_word_embeddings": False},
    "mistral": {},  # a window of 8 tokens in each layer
    "gpt2": {},  # positions are learnt
}
PAD = 0
TOKENS = 40


def tiny(name: str, **changes: Any) -> Any:
    model = tiny_models.build(name, **changes)
    model.generation_config = GenerationConfig()
    return model


def random_prompts(seed: int, lengths: Sequence[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    draw = (torch.randint(3, tiny_models.VOCABULARY, (length,), generator=generator) for length in lengths)
    return [ids.tolist() for ids in draw]


def generated(model: Any, prompts: Sequence[list[int]], stops: Sequence[int], **how: Any) -> list[list[int]]:
    """One call of transformers' own ``generate``, and each row up to its first stop token."""
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    config = GenerationConfig(
        **({"do_sample": False} | how), max_new_tokens=TOKENS, eos_token_id=[*stops], pad_token_id=PAD
    )
    made = model.generate(input_ids=ids, attention_mask=seen, generation_config=config)[:, width:].tolist()
    return [
        row[: next((place for place, token in enumerate(row) if token in stops), len(row)) + 1]
        for row in made
    ]


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each piece had."""
    seen: list[int] = []
    piece = Decoder._piece

    def watched(self: Decoder, rows: Any, *more: Any) -> Any:
        seen.append(len(rows.ids))
        return piece(self, rows, *more)

    monkeypatch.setattr(Decoder, "_piece", watched)
    return seen


# --- rows that leave -------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_each_prompt_alone(family: str, sizes: list[int]) -> None:
    """Token for token those of one call of ``generate`` for each prompt, in float32."""
    model = tiny(family, **FAMILIES[family])
    stops = [7, 20, 33, 46, 59, 72, 85]
    for seed in range(2):
        prompts = random_prompts(seed, [3, 5, 5, 9, 12, 14, 15, 15, 20])
        decoder = Decoder(model, stops, PAD)
        with torch.inference_mode():
            found = decoder.answers(prompts, TOKENS)
        assert decoder.whole is None
        assert found == [generated(model, [prompt], stops)[0] for prompt in prompts]
    assert len(sizes) > 4  # rows did leave
    assert sizes[0] == 9
    assert min(sizes) < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "bloom",
        "cohere2",
        "deepseek_v3",
        "falcon",
        "gemma2",
        "gpt_neox",
        "gpt_oss",
        "llama4_text",
        "olmo2",
        "opt",
        "phi3",
        "qwen2_moe",
        "qwen3_next",
        "smollm3",
        "stablelm",
    ],
)
def test_answers_are_those_of_the_whole_batch(family: str) -> None:
    model, stops = tiny(family), list(range(7, 90, 9))
    prompts = random_prompts(1, [3, 5, 5, 9, 12, 14])
    assert Decoder(model, stops, PAD).answers(prompts, TOKENS) == generated(model, prompts, stops)


def test_an_answer_that_does_not_end_goes_on_alone(sizes: list[int]) -> None:
    """Of eight rows seven end at their first token: what is left has one row."""
    model = tiny("llama")
    prompts = random_prompts(0, [6] * 8)
    first = [generated(model, [prompt], ())[0] for prompt in prompts]
    endless = next(row for row in first if not {other[0] for other in first if other != row} & {*row})
    stops = [row[0] for row in first if row != endless]
    passes: list[int] = []
    model.register_forward_hook(
        lambda module, given, kwargs, made: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = Decoder(model, stops, PAD).answers(prompts, TOKENS)
    assert sizes == [8, 1]
    assert passes == [8] + [1] * (TOKENS - 1)
    assert found == [row if row == endless else row[:1] for row in first]


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("lfm2", {"full_attn_idxs": [1, 3]}, "its cache has layers of another kind (LinearAttentionLayer)"),
        ("mamba", {}, "MambaForCausalLM has states besides keys and values"),
    ],
)
def test_a_cache_that_cannot_be_reduced_is_told_and_the_batch_decoded_whole(
    family: str, changes: dict[str, Any], why: str
) -> None:
    model, stops = tiny(family, **changes), list(range(7, 90, 5))
    prompts = random_prompts(1, [4, 4, 9, 12])
    decoder = Decoder(model, stops, PAD)
    for _ in range(2):  # the second time it is known
        assert decoder.answers(prompts, TOKENS) == generated(model, prompts, stops)
        assert decoder.whole == why
    drawing = Drawing(1.5, 0.9, 3)
    drawn = Decoder(model, stops, PAD).answers(prompts, TOKENS, Sampling(drawing, range(4), 4))
    torch.manual_seed(3)
    assert drawn == generated(model, prompts, stops, do_sample=True, temperature=1.5, top_p=0.9, top_k=0)


def test_positions_that_a_model_keeps_by_row_hold_the_batch_together() -> None:
    model = tiny("llama")
    model.model.rope_deltas = None
    assert Decoder(model, [7], PAD).whole == "LlamaForCausalLM keeps positions by row"


def test_a_cache_that_is_none_or_does_not_hold_the_text_is_not_reduced() -> None:
    from transformers import DynamicCache

    assert decoding._irreducible(None, 3) == "its cache is of another kind (NoneType)"
    assert decoding._irreducible(DynamicCache(), 3) == "its cache does not hold the whole text"
    cache = DynamicCache()
    cache.update(torch.zeros(2, 1, 3, 4), torch.zeros(2, 1, 3, 4), 0)
    assert decoding._irreducible(cache, 3) is None


# --- what is drawn ---------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    temperature=st.sampled_from([0.6, 1.0, 2.0]),
    top_p=st.sampled_from([0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**40),
    lengths=st.lists(st.integers(2, 12), min_size=1, max_size=6),
    cut=st.integers(1, 6),
)
def test_what_is_drawn_is_what_transformers_draws(
    temperature: float, top_p: float, seed: int, lengths: list[int], cut: int
) -> None:
    """The same tokens as ``generate`` with ``do_sample`` from that seed, whichever rows have left, and in
    parts of the batch (out of memory) as in the whole."""
    model, stops = tiny("llama"), list(range(7, 90, 9))
    prompts, drawing = random_prompts(seed % 1000, lengths), Drawing(temperature, top_p, seed)
    torch.manual_seed(seed)
    expected = generated(model, prompts, stops, do_sample=True, temperature=temperature, top_p=top_p, top_k=0)
    decoder = Decoder(model, stops, PAD)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    found = []
    for places in (range(len(prompts))[:cut], range(len(prompts))[cut:]):
        if places:
            part = [prompts[place] for place in places]
            found += decoder.answers(part, TOKENS, Sampling(drawing, places, len(prompts)))
    whole = decoder.answers(prompts, TOKENS, Sampling(drawing, range(len(prompts)), len(prompts)))
    assert whole == found == expected
    assert torch.equal(torch.random.get_rng_state(), state)


def test_probabilities_that_are_no_numbers_are_refused() -> None:
    model = tiny("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight[5] = float("nan")
    sampling = Sampling(Drawing(1.0, 1.0, 0), [0], 1)
    with pytest.raises(HarnessError, match="the model's probabilities are no numbers"):
        Decoder(model, [7], PAD).answers([[3, 4]], 4, sampling)


# --- a cache of fixed length -----------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_fixed_cache_is_as_long_as_its_batch_needs_whatever_came_before(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    cache = decoding.StaticCache

    def watched(**given: Any) -> Any:
        made.append(given["max_cache_len"])
        return cache(**given)

    monkeypatch.setattr(decoding, "StaticCache", watched)
    monkeypatch.setattr(decoding, "STEP", 16)
    model, stops = tiny(family, **FAMILIES[family]), [7, 20, 33]
    short, long = random_prompts(0, [3, 4]), random_prompts(1, [30, 40])
    decoder = Decoder(model, stops, PAD, static=True)
    for prompts in (short, long, short):
        assert decoder.answers(prompts, TOKENS) == generated(model, prompts, stops)
    assert made == [48, 80, 48]
    assert decoder.whole == "its cache has a fixed length"


def test_a_model_without_such_a_cache_is_refused_in_a_line() -> None:
    with pytest.raises(HarnessError, match="MambaForCausalLM takes no cache of fixed length: set responses"):
        Decoder(tiny("mamba"), [7], PAD, static=True).answers([[3, 4]], 4)


# --- an interrupted run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini() -> tuple[Any, Any]:
    """The mini world's model with noise on its weights, so that its answers end at various lengths."""
    model = checkpoints.load_model(seed_model_path(), "float32", "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * weight.std() * 0.8)
    return model, checkpoints.load_tokenizer(seed_model_path())


class KilledError(Exception):
    """The process has died."""


def answers(
    mini: tuple[Any, Any],
    prompts: Sequence[list[int]],
    groups: Mapping[Decoding, Sequence[int]],
    batch_size: int,
    *,
    static_cache: bool = False,
    known: Mapping[int, list[int]] | None = None,
    batches: int | None = None,
) -> dict[int, list[int]]:
    """What is known when a process that answers has ended, or died after so many ``batches``."""
    engine = HFEngine(*mini, batch_size, static_cache=static_cache)
    written: list[dict[int, list[int]]] = []

    def write(found: dict[int, list[int]]) -> None:
        if len(written) == batches:
            raise KilledError
        written.append(found)

    model = TaskModel(engine, Asking(known=known or {}, on_answers=write))
    try:
        return dict(model._answers(prompts, groups))
    except KilledError:
        return {index: ids for found in written for index, ids in found.items()}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=20),
    batch_size=st.integers(1, 8),
    tokens=st.integers(1, 48),
    kills=st.lists(st.integers(0, 3), max_size=3),
    temperature=st.sampled_from([0.0, 1.2]),
    static_cache=st.booleans(),
)
def test_an_interrupted_run_ends_with_the_same_answers(
    mini: tuple[Any, Any],
    lengths: list[int],
    batch_size: int,
    tokens: int,
    kills: list[int],
    temperature: float,
    static_cache: bool,
) -> None:
    generator = torch.Generator().manual_seed(len(lengths))
    prompts = [torch.randint(5, 90, (length,), generator=generator).tolist() for length in lengths]
    half = len(prompts) // 2
    groups = {
        Decoding(tokens, temperature, 0.9, 1234): range(half),
        Decoding(tokens // 2 + 1): range(half, len(prompts)),
    }
    whole = answers(mini, prompts, groups, batch_size, static_cache=static_cache)
    known: dict[int, list[int]] = {}
    for batches in kills:
        known |= answers(
            mini, prompts, groups, batch_size, static_cache=static_cache, known=known, batches=batches
        )
    resumed = answers(mini, prompts, groups, batch_size, static_cache=static_cache, known=known)
    assert resumed == whole
    assert sorted(whole) == list(range(len(prompts)))
