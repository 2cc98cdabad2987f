"""The builder: a loadable folder, and a tokenizer without traps."""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from harness.mini import build, examples, seed_model_path

TINY = dataclasses.replace(
    examples.KNOBS,
    hidden=16,
    layers=1,
    heads=2,
    intermediate=32,
    vocab_size=400,
    pretrain_examples=64,
    align_examples=64,
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(seed_model_path())


def test_tiny_build_gives_a_loadable_folder_and_is_deterministic(tmp_path: Path) -> None:
    import torch

    seen: list[tuple[str, int, int]] = []
    for name in ("a", "b"):
        build.build(tmp_path / name, seed=3, knobs=TINY, progress=lambda *step: seen.append(step))
    assert seen[-1][1:] == (2, 2)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype="auto")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype="auto")
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert "model.safetensors" in names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pkl"))]


def test_digits_are_single_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = tokenizer.tokenize("Tom has 12+305=<<12+305=317>>317 pens.\n#### 317")
    assert all(len(t) == 1 for t in tokens if any(c.isdigit() for c in t))


def test_one_bos_and_end_of_turn_is_eos(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " Yes"},
    ]
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    ids = tokenizer(text)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids) == text
    assert "<|system|>Be kind.<|end|>" in text
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    prompt = tokenizer.apply_chat_template(chat[:2], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)


def test_tokenizer_round_trips_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("  two  spaces ", "naïve café ☕", "a\n\n\tb", "don't  stop..."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_shipped_folder() -> None:
    folder = seed_model_path()
    assert sum(p.stat().st_size for p in folder.rglob("*")) < 8e6
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 4096
    generation = json.loads((folder / "generation_config.json").read_text())
    assert not {"temperature", "top_p", "top_k", "repetition_penalty"} & set(generation)
    assert generation.get("do_sample", False) is False
