"""The two previews are RECIPE §1 byte for byte, on all real GSM8K rows too, and touch only the data."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.lookahead import LookAheadTrue, LookAheadVirtual
from harness.contracts import Example, Message, Method, PrepareContext
from tasks.gsm8k.train import TRAIN_TASK as GSM8K

CONNECTOR = " The answer begins with: "
P = "Let's solve this problem. "
SHARED = Path(__file__).parents[3] / "shared" / "data"


def context(tokenizer: Any) -> PrepareContext:
    def generate(*args: Any, **kwargs: Any) -> list[str]:
        raise AssertionError("a preview needs no generated text")

    return PrepareContext(tokenizer, GSM8K, generate, random.Random(0))


def conversation(question: str, answer: str, id: str = "one") -> Example:
    turns = (Message("system", "S"), Message("user", question), Message("assistant", answer))
    return Example(id, turns)


@pytest.mark.slow
@pytest.mark.requires_shared_data
@pytest.mark.skipif(
    not SHARED.is_dir(),
    reason="the Llama-2 tokenizer and real GSM8K are not beside the checkout (../shared/data)",
)
def test_every_real_row_is_as_the_recipe_says() -> None:
    """The expected preview comes from the tokenizers library alone, not from the code under test."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    llama = AutoTokenizer.from_pretrained(SHARED / "llama2-tokenizer")
    plain = Tokenizer.from_file(str(SHARED / "llama2-tokenizer" / "tokenizer.json"))
    rows = [
        json.loads(line)
        for name in ("train", "test")
        for line in (SHARED / "gsm8k" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 7473 + 1319
    examples = [conversation(row["question"], row["answer"], str(i)) for i, row in enumerate(rows)]
    true = LookAheadTrue().prepare(examples, context(llama))
    virtual = LookAheadVirtual().prepare(examples, context(llama))
    encoded = plain.encode_batch([row["answer"] for row in rows], add_special_tokens=False)
    for i, row in enumerate(rows):
        question, answer = row["question"], row["answer"]
        preview = plain.decode(encoded[i].ids[:6], skip_special_tokens=False)
        assert preview == answer[: len(preview)]
        assert [m.content for m in true[i].messages] == ["S", question + CONNECTOR + preview, answer]
        assert [m.content for m in virtual[i].messages] == ["S", question + CONNECTOR + P, P + answer]
    # One row written out, so that nothing here rests on a computation.
    assert true[0].instruction == rows[0]["question"] + " The answer begins with: Natalia sold 48"
    assert virtual[0].answer.startswith("Let's solve this problem. Natalia sold 48/2")


@pytest.mark.parametrize("answer", ["Yes.", "4", "<<1+1=2>>2"])
def test_a_short_answer_is_previewed_whole(tokenizer: Any, answer: str) -> None:
    assert len(tokenizer(answer, add_special_tokens=False)["input_ids"]) <= 12
    (changed,) = LookAheadTrue(preview_tokens=12).prepare([conversation("Q?", answer)], context(tokenizer))
    assert changed.instruction == f"Q? The answer begins with: {answer}"
    assert changed.answer == answer


def test_six_tokens_of_the_bare_answer(tokenizer: Any) -> None:
    answer = "Now Kim has 35+2=<<35+2=37>>37 stamps."
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    (changed,) = LookAheadTrue().prepare([conversation("Q?", answer)], context(tokenizer))
    preview = changed.instruction.removeprefix("Q? The answer begins with: ")
    assert preview == tokenizer.decode(ids[:6])
    assert preview != tokenizer.decode(ids[:5])
    assert answer.startswith(preview)
    assert tokenizer.bos_token not in preview


def test_no_double_space_at_the_seams(tokenizer: Any) -> None:
    (virtual,) = LookAheadVirtual().prepare([conversation("Q?", "Kim has 4.")], context(tokenizer))
    assert virtual.instruction == "Q? The answer begins with: Let's solve this problem. "
    assert virtual.answer == "Let's solve this problem. Kim has 4."
    (true,) = LookAheadTrue().prepare([conversation("Q?", "Kim has 4.")], context(tokenizer))
    for text in (virtual.instruction, virtual.answer, true.instruction, true.answer):
        assert "  " not in text


def test_options(tokenizer: Any) -> None:
    (changed,) = LookAheadVirtual(prefix="dadjalsasdfghkjzmnb", connector="|").prepare(
        [conversation("Q?", "A")], context(tokenizer)
    )
    assert (changed.instruction, changed.answer) == ("Q?|dadjalsasdfghkjzmnb", "dadjalsasdfghkjzmnbA")
    (previewed,) = LookAheadTrue(preview_tokens=50, connector="|").prepare(
        [conversation("Q?", "Kim has 4.")], context(tokenizer)
    )
    assert (previewed.instruction, previewed.answer) == ("Q?|Kim has 4.", "Kim has 4.")
    assert (LookAheadTrue().connector, LookAheadVirtual().connector) == (CONNECTOR, CONNECTOR)
    assert (LookAheadTrue().preview_tokens, LookAheadVirtual().prefix) == (6, P)


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_preview_has_at_least_one_token(tokens: int, tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=f"preview_tokens must be at least 1, not {tokens}"):
        LookAheadTrue(preview_tokens=tokens)
    (one,) = LookAheadTrue(preview_tokens=1).prepare([conversation("Q?", "Kim has 4.")], context(tokenizer))
    first = tokenizer("Kim has 4.", add_special_tokens=False)["input_ids"][0]
    assert one.instruction == f"Q?{CONNECTOR}{tokenizer.decode([first])}"


def test_previews_are_of_the_text_as_it_stood_and_white_space_goes_afterwards(tokenizer: Any) -> None:
    """SAMSum's order: the outer white space of dialogue and summary is there when they are previewed."""
    turns = (Message("user", "Sum up:\nA: hm"), Message("assistant", "Kim has 4."))
    given = Example("one", turns, white_space=(" \n", "  ", " \n"))
    (true,) = LookAheadTrue().prepare([given], context(tokenizer))
    ids = tokenizer("  Kim has 4. \n", add_special_tokens=False)["input_ids"]
    assert true.instruction == f"Sum up:\nA: hm \n{CONNECTOR}{tokenizer.decode(ids[:6])}".strip()
    assert true.answer == "Kim has 4."
    (virtual,) = LookAheadVirtual().prepare([given], context(tokenizer))
    assert virtual.instruction == f"Sum up:\nA: hm \n{CONNECTOR}Let's solve this problem."
    assert virtual.answer == "Let's solve this problem.   Kim has 4."
    (kept,) = LookAheadVirtual().prepare([Example("one", turns)], context(tokenizer))
    assert kept.instruction == f"Sum up:\nA: hm{CONNECTOR}{P}"  # a task that strips nothing


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=5))
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("method", [LookAheadTrue(), LookAheadVirtual()], ids=lambda method: method.name)
def test_only_instruction_and_answer_change(
    method: Method, tokenizer: Any, rows: list[tuple[str, str]]
) -> None:
    examples = [
        Example(
            f"id-{i}",
            (
                Message("system", "S"),
                Message("user", "earlier"),
                Message("assistant", "reply"),
                Message("user", question),
                Message("assistant", answer),
            ),
            loss_free_tokens=i,
        )
        for i, (question, answer) in enumerate(rows)
    ]
    before = copy.deepcopy(examples)
    prepared = method.prepare(examples, context(tokenizer))
    assert examples == before  # the input is never changed
    assert [e.id for e in prepared] == [e.id for e in before]
    for new, old in zip(prepared, before, strict=True):
        assert new.loss_free_tokens == old.loss_free_tokens
        assert new.messages[:-2] == old.messages[:-2]
        assert [m.role for m in new.messages] == [m.role for m in old.messages]
        assert new.instruction.startswith(old.instruction + CONNECTOR)
        assert new.answer.endswith(old.answer)


@pytest.mark.parametrize("method", [LookAheadTrue, LookAheadVirtual])
def test_data_only(method: type[Method]) -> None:
    """Plain to see: of all hooks, prepare alone is overridden; inference never changes."""
    hooks = [name for name in vars(Method) if not name.startswith("_") and callable(getattr(Method, name))]
    assert "loss" in hooks
    assert [name for name in hooks if getattr(method, name) is not getattr(Method, name)] == ["prepare"]


def test_a_tokenizers_special_tokens_are_no_part_of_a_preview() -> None:
    """Llama 2's tokenizer puts its beginning-of-sequence token first, unless it is told not to."""

    class Words:
        def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[str]]:
            return {"input_ids": ["<s>"] * add_special_tokens + text.split(" ")}

        def decode(self, ids: list[str]) -> str:
            return " ".join(ids)

    (changed,) = LookAheadTrue(preview_tokens=2).prepare([conversation("Q?", "Kim has 4.")], context(Words()))
    assert changed.instruction == f"Q?{CONNECTOR}Kim has"
