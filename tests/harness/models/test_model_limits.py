"""Guards what a model can take: its context under every name, ids that its embedding has, and an end."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.contracts import Example, HarnessError, Message
from harness.engines.base import Request
from harness.engines.hf import HFEngine
from harness.judging import models
from harness.mini import seed_model_path
from harness.models import chat, checkpoints, model_limits

Saved = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Saves a small random model with the mini world's tokenizer, or with another one."""

    def make(kind: str, tokenizer: Any = None, vocabulary: int = 1400, **settings: Any) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=vocabulary, **settings)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, 2, 0
        folder = tmp_path / kind
        checkpoints.save(AutoModelForCausalLM.from_config(config), tokenizer or own(), folder)
        return folder

    return make


def own() -> Any:
    return checkpoints.load_tokenizer(seed_model_path())


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


def opened(folder: Path) -> HFEngine:
    return HFEngine(checkpoints.load_model(folder, "float32", "cpu"), checkpoints.load_tokenizer(folder), 4)


# --- context ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", model_limits.CONTEXT)
def test_the_context_is_read_under_every_name(name: str) -> None:
    assert checkpoints.context_tokens({name: 96}) == 96
    assert checkpoints.context_tokens({"text_config": {name: 96}, name: 1_000}) == 96
    assert checkpoints.context_tokens({"text_config": {"hidden_size": 8}, name: 96}) == 96


@pytest.mark.parametrize(
    "none", [None, 1e30, 10**30, 0, -1, True, "4096", {}, [], float("nan"), float("inf")]
)
def test_what_stands_for_none_is_no_limit(none: Any) -> None:
    assert checkpoints.context_tokens({"n_positions": none}) == model_limits.UNBOUNDED
    assert checkpoints.context_tokens({"n_positions": none, "max_seq_len": 96}) == 96


@given(st.dictionaries(st.sampled_from(model_limits.CONTEXT), st.integers(1, 10**6), min_size=1))
def test_of_several_limits_the_least_holds(stated: dict[str, int]) -> None:
    assert checkpoints.context_tokens(stated) == min(stated.values())


def test_a_scaled_rotation_changes_no_limit() -> None:
    scaled = {"max_position_embeddings": 64, "rope_scaling": {"factor": 4.0, "type": "linear"}}
    assert checkpoints.context_tokens(scaled) == 64


SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TABLES: dict[str, tuple[dict[str, Any], int]] = {
    "gpt2": ({"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 96}, 96),
    "gpt_bigcode": ({"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 48}, 48),
    "gpt_neo": ({"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 40,
                 "attention_types": [[["global"], 1]]}, 40),
    "opt": ({**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}, 64),
    "biogpt": ({**SMALL, "intermediate_size": 64, "max_position_embeddings": 50}, 50),
    "gptj": ({"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 80, "rotary_dim": 8}, 80),
    "mpt": ({"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 72}, 72),
}  # fmt: skip


@pytest.mark.parametrize("kind", TABLES)
def test_a_loaded_models_context_is_what_it_can_compute(kind: str, saved: Saved) -> None:
    settings, context = TABLES[kind]
    folder = saved(kind, **settings)
    engine = opened(folder)
    assert engine.context_tokens == checkpoints.context_of(folder) == context
    made = engine.generate([[5] * (context - 3), [6, 7]], Request(50))
    assert all(len(ids) <= 3 for ids in made)
    assert len(engine.logprobs([([5] * (context - 1), [6])], Request())) == 1
    for ask in (
        lambda: engine.generate([[5] * context], Request(1)),
        lambda: engine.logprobs([([5] * context, [6])], Request()),
    ):
        with pytest.raises(HarnessError, match=f"tokens and the model's context {context}"):
            ask()


def test_a_table_of_positions_is_a_limit_that_nobody_states(saved: Saved) -> None:
    settings, _ = TABLES["gpt2"]
    engine = opened(saved("gpt2", **settings))
    engine.model.config.n_positions = 10**6
    assert model_limits.context_tokens(engine.model) == 96


def test_a_judges_context_is_its_models(saved: Saved) -> None:
    settings, context = TABLES["gpt2"]
    judge = models.load(saved("gpt2", **settings), "hf", "float32", "cpu", 2)
    assert judge.context_tokens == context


# --- ids -------------------------------------------------------------------------------------------


def larger(*tokens: str, special: bool = False) -> Any:
    tokenizer = own()
    tokenizer.add_tokens(list(tokens), special_tokens=special)
    return tokenizer


def test_a_token_beyond_the_embedding_is_one_line(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "more"))
    larger("do", "many").save_pretrained(folder)
    engine = opened(folder)
    bad = chat.token_ids(engine.tokenizer, "Tom, how do I bake bread?")
    assert max(bad) == 1400
    for ask in (
        lambda: engine.generate([[5], bad], Request(4)),
        lambda: engine.logprobs([([5], bad)], Request()),
        lambda: engine.logprobs([(bad, [5])], Request()),
    ):
        with pytest.raises(HarnessError) as told:
            ask()
        assert str(told.value).startswith(
            f"a prompt: token 1,400 ('do') of the tokenizer of '{folder}' is beyond"
        )
        assert "the 1,400 rows of the model's embedding" in str(told.value)
    fine = chat.token_ids(engine.tokenizer, "How can I bake bread?")
    ours = HFEngine(checkpoints.load_model(seed_model_path(), "float32", "cpu"), own(), 4)
    assert engine.generate([fine], Request(8)) == ours.generate([fine], Request(8))


@given(ids=st.lists(st.integers(0, 1405), max_size=8), rows=st.integers(1390, 1404))
def test_ids_are_those_below_the_rows(ids: list[int], rows: int) -> None:
    tokenizer = own()
    if all(token < rows for token in ids):
        model_limits.check_ids(tokenizer, ids, rows, "x")
    else:
        with pytest.raises(HarnessError, match=f"x: token {max(ids):,} "):
            model_limits.check_ids(tokenizer, ids, rows, "x")


def test_a_token_that_nothing_writes_does_no_harm(tmp_path: Path) -> None:
    """As Gemma has one for pictures."""
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "gemma"))
    larger("<image_soft_token>", special=True).save_pretrained(folder)
    asked = [[5, 6, 7, 8]]
    ours = HFEngine(checkpoints.load_model(seed_model_path(), "float32", "cpu"), own(), 4)
    assert opened(folder).generate(asked, Request(8)) == ours.generate(asked, Request(8))


def test_a_template_that_writes_such_a_token_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "chatml"))
    tokenizer = larger("<|turn|>", special=True)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|turn|>' }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    with pytest.raises(HarnessError, match=r"the chat template: token 1,400 \('<\|turn\|>'\)"):
        opened(folder)


def test_a_padding_token_that_was_only_added_to_the_tokenizer_pads_nothing_wrong(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "padded"))
    tokenizer = own()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == 1400
    tokenizer.save_pretrained(folder)
    asked = [[5, 6, 7, 8, 9, 10], [11, 12]]
    ours = HFEngine(checkpoints.load_model(seed_model_path(), "float32", "cpu"), own(), 4)
    engine = opened(folder)
    assert engine.generate(asked, Request(8)) == ours.generate(asked, Request(8))
    assert engine.logprobs([(asked[0], [3]), (asked[1], [3])], Request()) == ours.logprobs(
        [(asked[0], [3]), (asked[1], [3])], Request()
    )


def test_a_judges_prompts_are_held_to_its_embedding(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "judge"))
    larger("do").save_pretrained(folder)
    judge = models.load(folder, "hf", "float32", "cpu", 2)
    for ask in (
        lambda: judge.choose([[5, 1400]], [10, 20]),
        lambda: judge.choose([[5, 6]], [10, 1400]),
        lambda: judge.generate([[5, 1400]], 4),
    ):
        with pytest.raises(HarnessError, match=r"token 1,400 \('do'\)"):
            ask()


# --- the end of an answer --------------------------------------------------------------------------


def endless() -> Any:
    tokenizer = own()
    tokenizer.eos_token = None
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    )
    return tokenizer


def test_no_end_of_answer_is_one_line_in_training_and_in_answering(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "noeos"))
    endless().save_pretrained(folder)
    tokenizer = checkpoints.load_tokenizer(folder)
    example = Example("1", [Message("user", "Hi"), Message("assistant", "Hello.")])
    for ask in (
        lambda: opened(folder),
        lambda: chat.encode(tokenizer, example),
        lambda: checkpoints.stop_ids(checkpoints.declared_stops(folder), tokenizer),
    ):
        with pytest.raises(HarnessError) as told:
            ask()
        assert "nothing ends an answer in the chat template of" in str(told.value)
        assert "name one in tokenizer_config.json" in str(told.value)
        assert "\n" not in str(told.value)


def test_without_a_template_a_model_may_name_the_end_itself(tmp_path: Path) -> None:
    tokenizer = own()
    tokenizer.eos_token = tokenizer.chat_template = None
    assert checkpoints.stop_ids(2, tokenizer) == {2}
    assert checkpoints.stop_ids([2, 1400], tokenizer, 1400) == {2}
    for declared in (None, [], 1400):
        with pytest.raises(HarnessError, match="nothing ends an answer; name an eos_token"):
            checkpoints.stop_ids(declared, tokenizer, 1400)


def test_a_template_may_end_answers_without_a_tokens_role(tmp_path: Path) -> None:
    """No end of sequence and no padding token: batches are filled with the template's end."""
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "turns"))
    tokenizer = own()
    end = chat.end_of_turn_id(tokenizer)
    tokenizer.eos_token = tokenizer.pad_token = None
    tokenizer.chat_template = str(own().chat_template).replace(
        "eos_token", repr(own().convert_ids_to_tokens(end))
    )
    tokenizer.save_pretrained(folder)
    edit(folder / "generation_config.json", eos_token_id=None, pad_token_id=None)
    edit(folder / "config.json", eos_token_id=None, pad_token_id=None)
    engine = opened(folder)
    assert engine.stop_ids == {end}
    asked = [[5, 6, 7, 8, 9, 10], [11, 12]]
    ours = HFEngine(checkpoints.load_model(seed_model_path(), "float32", "cpu"), own(), 4)
    assert engine.generate(asked, Request(8)) == ours.generate(asked, Request(8))


def test_a_judge_keeps_the_ends_that_its_model_declares(tmp_path: Path) -> None:
    """transformers' settings are taken off the model by its first engine."""
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "judge"))
    judge = models.load(folder, "hf", "float32", "cpu", 2)
    whole = judge.generate([[5, 6, 7]], 6)[0]
    third = chat.token_ids(judge.tokenizer, whole)[2]
    edit(folder / "generation_config.json", eos_token_id=[2, third])
    judge = models.load(folder, "hf", "float32", "cpu", 2)
    first = judge.generate([[5, 6, 7]], 6)[0]
    assert first != whole
    assert judge.generate([[5, 6, 7]], 6)[0] == first


# --- through the command line ------------------------------------------------------------------------


def test_a_training_is_cut_at_the_models_context_and_says_so(
    saved: Saved, tmp_path: Path, command: Callable[..., Any], small: Any
) -> None:
    folder = saved("gpt2", n_embd=32, n_layer=1, n_head=2, n_positions=60)
    ended = command("train", "vanilla", "--out", tmp_path / "cut", *small(model=folder))
    assert ended.code == 0, ended.err
    told = " ".join(ended.out.split())
    record = json.loads(next((tmp_path / "cut").rglob("training.json")).read_text(encoding="utf-8"))
    assert record["truncated_examples"] > 0
    assert f"of 32 examples {record['truncated_examples']} lost their answer's end" in told
    assert "were left out at the model's context of 60 tokens (training.too_long)" in told


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda: larger("do", "many", "How"), "training example 'gsm8k-mini-"),
        (endless, "nothing ends an answer in the chat template of"),
    ],
    ids=["more-tokens", "no-end"],
)
def test_a_training_that_cannot_be_is_one_line(
    changed: Callable[[], Any], says: str, tmp_path: Path, command: Callable[..., Any], small: Any
) -> None:
    folder = Path(shutil.copytree(seed_model_path(), tmp_path / "model"))
    changed().save_pretrained(folder)
    ended = command("train", "vanilla", "--out", tmp_path / "run", *small(model=folder))
    assert ended.code == 1
    assert says in " ".join(ended.out.split())
    assert "Traceback" not in ended.out + ended.err
    assert not list((tmp_path / "run").rglob("checkpoint"))
