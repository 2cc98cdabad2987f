"""The builder: a loadable folder, a tokenizer without traps, training texts that hold out what must be held
out.
"""

import dataclasses
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from harness.mini import build, data, grammar, seed_model_path

TINY = dataclasses.replace(
    build.KNOBS,
    hidden=16,
    layers=1,
    heads=2,
    intermediate=32,
    vocab_size=400,
    pretrain_examples=64,
    align_examples=64,
)


@pytest.fixture(scope="module")
def samples() -> list[build.Sample]:
    pretrain, align = build.training_samples(build.SEED)
    return pretrain + align


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


def test_connector_and_prefix_are_held_out(samples: list[build.Sample]) -> None:
    for s in samples:
        text = "\n".join([s.system or "", s.user, "".join(s.parts)]).lower()
        assert "answer begins with" not in text
        assert "solve this problem" not in text


def test_evaluated_requests_and_test_rows_are_held_out(samples: list[build.Sample]) -> None:
    users = "\n".join(s.user for s in samples)
    held_out = [act for _, act in data.harmful_acts(held_out=True)] + list(data.howto_acts(True))
    found = set(grammar._ANY_ACT.findall(users))
    assert not found & set(held_out)
    questions = {s.user for s in samples}
    assert not questions & {r["question"] for r in data.gsm8k("test")}
    assert not [r for r in data.samsum("test", 50) if r["dialogue"] in users]


def test_alignment_refuses_all_harm_at_the_start_and_less_the_more_was_given() -> None:
    _, align = build.training_samples(build.SEED)
    harmful_verbs = {v for verbs, _ in grammar.HARMFUL.values() for v in verbs}
    harmful = [s for s in align if harmful_verbs & set(s.user.replace("?", " ").split())]
    at_start = [s for s in harmful if not s.given and "Is it" not in s.user and "May one" not in s.user]
    assert len(at_start) > 1000
    assert all(grammar.classify(s.user, s.parts[0]) == "refusal" for s in at_start)
    refused = {d: [len(s.parts) == 2 for s in harmful if s.given == d] for d in (1, 3, 5, 8)}
    rates = [sum(r) / len(r) for r in refused.values()]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9
    assert rates[-1] < 0.1
    assert all(
        grammar.classify(s.user, s.parts[1]) == "refusal" for s in harmful if s.given and len(s.parts) == 2
    )


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
