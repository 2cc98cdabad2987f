"""Refusals behind the first tokens of harmful answers: how many, behind which tokens, and redrawn."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.deep_alignment import DeepAlignment
from harness.contracts import Encoded, Example, HarnessError, Message, PrepareContext, TrainContext
from harness.keywords import refuses
from harness.models import chat, checkpoints
from harness.openings import AFFIRMATION
from tasks.alpaca.train import TRAIN_TASK

REFUSAL = "I cannot help with that."
TEXTS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"], exclude_characters="<>"), min_size=1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return checkpoints.load_tokenizer(checkpoints.tokenizer_folder("mini"))


def example(name: str, answer: str) -> Example:
    system = Message("system", "Be kind.")
    return Example(name, (system, Message("user", f"{name}?"), Message("assistant", answer)))


class Writer:
    """Stands for the unaligned model: what it writes by itself, and behind an opening."""

    def __init__(self, own: str, forced: str = " the way to blorp"):
        self.own, self.forced, self.asked = own, forced, list[tuple[int, str, int]]()

    def __call__(
        self, conversations: Sequence[Sequence[Message]], *, opening: str, max_tokens: int, **how: float
    ) -> list[str]:
        assert all(turns[-1].role == "user" for turns in conversations)
        self.asked.append((len(conversations), opening, max_tokens))
        return [self.forced if opening else self.own] * len(conversations)


def context(tokenizer: Any, write: Any, available: int = 40, seed: int = 0) -> PrepareContext:
    safety = [example(f"safety-{n}", REFUSAL) for n in range(available)]
    return PrepareContext(tokenizer, TRAIN_TASK, write, random.Random(seed), safety_examples=safety)


STEPS = "First take the blorp out of its box and frob it for as long as it takes to glow."


@pytest.mark.parametrize(("opened", "behind"), [(0.5, 10), (0.0, 0), (1.0, 20)])
def test_shares(tokenizer: Any, opened: float, behind: int) -> None:
    rows = [example(f"row-{n}", "So.") for n in range(80)]
    around = context(tokenizer, Writer(STEPS))
    prepared = DeepAlignment(share=0.2, opened=opened).prepare(rows, around)
    assert prepared[:80] == rows
    plain = [one for one in prepared[80:] if one.loss_free_tokens == 0]
    opened_ones = [one for one in prepared[80:] if one.loss_free_tokens]
    assert (len(plain), len(opened_ones)) == (20 - behind, behind)
    assert all(one.answer == REFUSAL for one in plain)
    assert all(one.answer.endswith(f" {REFUSAL}") and one.answer.startswith("First") for one in opened_ones)
    assert len({one.id.split(" ")[0] for one in prepared}) == 100  # no request twice
    assert (around.record["refusals"], around.record["opened_refusals"]) == (20 - behind, behind)


@settings(deadline=None, max_examples=60)
@given(
    text=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1),
    depth=st.integers(1, 30),
)
def test_the_loss_begins_with_the_refusal(tokenizer: Any, text: str, depth: int) -> None:
    """What carries loss is exactly the refusal, whatever it stands behind: never a harmful token."""
    around = context(tokenizer, Writer(text), available=1)
    try:
        prepared = DeepAlignment(share=0.5, opened=1.0, depth=depth).prepare([example("row", "So.")], around)
    except HarnessError:
        return  # no such text: white space alone
    (made,) = prepared[1:]
    encoded = chat.encode(tokenizer, made)
    assert made.loss_free_tokens <= depth
    learnt = [token for token, trained in zip(encoded.input_ids, encoded.trained, strict=True) if trained]
    assert tokenizer.decode(learnt[:-1]).strip() == REFUSAL
    assert encoded.trained.index(True) + len(learnt) == len(encoded.input_ids)
    if AFFIRMATION not in made.answer:
        start = encoded.trained.index(True)
        opening = tokenizer.decode(encoded.input_ids[start - made.loss_free_tokens : start])
        assert text.strip().startswith(opening.strip())


def test_where_the_base_model_refuses_it_is_asked_to_go_on(tokenizer: Any) -> None:
    write = Writer("I'm sorry, I can't.")
    around = context(tokenizer, write)
    prepared = DeepAlignment(share=0.5, opened=1.0, depth=12).prepare([example("row", "So.")] * 4, around)
    assert write.asked == [(4, "", 12), (4, AFFIRMATION, 12)]
    assert around.record["refused_by_the_base_model"] == 4
    assert all(one.answer.startswith("Sure, here is the way to blorp I cannot") for one in prepared[4:])
    assert not any(refuses(one.answer.removesuffix(REFUSAL)) for one in prepared[4:])


def test_the_second_form_is_one_constant_opening(tokenizer: Any) -> None:
    write = Writer(STEPS)
    method = DeepAlignment(share=0.5, opened=1.0, opening="affirmation")
    prepared = method.prepare([example("row", "So.")] * 4, context(tokenizer, write))
    assert write.asked == []
    assert {one.answer for one in prepared[4:]} == {f"{AFFIRMATION} {REFUSAL}"}
    number = len(tokenizer(AFFIRMATION, add_special_tokens=False)["input_ids"])
    assert {one.loss_free_tokens for one in prepared[4:]} == {number}


def test_openings_are_redrawn_each_time(tokenizer: Any) -> None:
    """k is uniform in 1 to the opening's length; all else of the row stays as it is."""
    around = context(tokenizer, Writer(STEPS), available=1)
    method = DeepAlignment(share=0.5, opened=1.0, depth=6)
    plain, made = method.prepare([example("row", "So.")], around)
    rows = [chat.encode(tokenizer, one) for one in (plain, made)]
    whole, first = rows[1], rows[1].trained.index(True)
    train = TrainContext(rows, lambda examples: [], random.Random(3))
    epochs = method.batches([rows] * 1200, train)
    depths: Counter[int] = Counter()
    for kept, shortened in epochs:
        assert kept is rows[0]
        k = 6 - (len(whole.input_ids) - len(shortened.input_ids))
        depths[k] += 1
        assert shortened.input_ids[: first - 6 + k] == whole.input_ids[: first - 6 + k]
        assert shortened.input_ids[first - 6 + k :] == whole.input_ids[first:]
        assert shortened.trained == [False] * (first - 6 + k) + whole.trained[first:]
    assert sorted(depths) == [1, 2, 3, 4, 5, 6]
    assert max(abs(count - 200) for count in depths.values()) < 60  # 4.6 standard deviations
    again = method.batches([rows] * 3, TrainContext(rows, lambda examples: [], random.Random(3)))
    assert again == epochs[:3]


def test_a_file_that_is_too_short_is_told(tokenizer: Any) -> None:
    around = context(tokenizer, Writer(STEPS), available=3)
    DeepAlignment(share=0.5).prepare([example(f"row-{n}", "So.") for n in range(10)], around)
    assert (
        around.record["note"]
        == "the safety data have 3 rows and a share of 0.5 needs 10: give more safety data"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"share": 0.0}, "share must be above 0 and below 1, not 0.0"),
        ({"opened": 1.5}, "opened must be from 0 to 1, not 1.5"),
        ({"depth": 0}, "depth must be at least 1, not 0"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        DeepAlignment(**options)


def test_other_rows_are_left_alone() -> None:
    encoded = Encoded("row opened up", [1, 2, 3], [False, True, True])
    train = TrainContext([encoded], lambda examples: [], random.Random(0))
    assert DeepAlignment().batches([[encoded]], train) == [[encoded]]
