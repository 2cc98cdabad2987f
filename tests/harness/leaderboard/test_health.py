"""Guards what a whole answer is: cases with the reason beside each, and what people write is coherent."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.leaderboard import health
from harness.mini import data, grammar

SHARED_DATA = Path(__file__).parents[4] / "shared" / "data"
ANSWER = "Tom has 3 + 4 = 7 apples.\n#### 7"


def row(response: str = ANSWER, **more: Any) -> dict[str, Any]:
    return {"document": "d", "response": response, "finish_reason": "stop", "tokens": 9, **more}


@pytest.mark.parametrize(
    ("answer", "whole", "why"),
    [
        (row(), True, "an answer"),
        (row("7"), True, "a digit is an answer"),
        (row("да"), True, "any script"),
        (row(finish_reason=None), True, "a server that does not say why it ended"),
        (row(finish_reason="end_turn"), True, "a server's other word for its own end"),
        (row(reasoning="I count."), True, "reasoning before it"),
        (row(""), False, "empty"),
        (row(" \n\u200b"), False, "nothing that shows"),
        (row(finish_reason="length"), False, "cut off"),
        (row(finish_reason="MAX_TOKENS"), False, "cut off, in another server's word"),
        (row(finish_reason="content_filter"), False, "withheld"),
        (row(finish_reason="tool_calls"), False, "a tool was called"),
        (row(unavailable="the server refused the request"), False, "could not be had"),
        (row("lamp " * 40), False, "repetition"),
        (row(ANSWER + " and so on" * 40), False, "an answer that ends in repetition"),
        (row("!?#…"), False, "no letter and no digit"),
    ],
)
def test_a_whole_answer_is_there_has_ended_and_is_coherent(
    answer: dict[str, Any], whole: bool, why: str
) -> None:
    assert health.is_whole(answer) is whole, why


@given(st.text(st.characters(categories=["L"]), min_size=1, max_size=8), st.integers(60, 200))
def test_one_word_again_and_again_is_no_answer(word: str, times: int) -> None:
    assert not health.is_coherent(word * times)
    assert not health.is_coherent(f"{word}\n" * times)


def test_what_people_and_the_mini_world_write_is_coherent() -> None:
    rng = Random(0)
    texts = [row["answer"] for name in ("train", "test") for row in data.howto(name)]
    texts += [grammar.refusal(rng) for _ in range(100)]
    texts += [
        "1. Wash the rice.\n2. Add two cups of water.\n3. Let it boil for ten minutes.\n4. Serve it.",
        "एक कप चावल धो लें। फिर दो कप पानी डालें और दस मिनट तक उबालें। ढककर पाँच मिनट छोड़ दें और परोसें।" * 2,
        "先把米洗干净,加两杯水,煮沸后转小火煮十分钟,然后焖五分钟,最后盛出来吃。",
    ]
    assert len(texts) > 300
    assert all(map(health.is_coherent, texts))


def test_loops_are_looked_for_at_the_end_alone() -> None:
    """A long answer may say a thing twice; one that came out of a loop is an answer."""
    prose = " ".join(f"Step {n}: {chr(97 + n % 26) * (n % 7 + 1)} goes to {n * n}." for n in range(40))
    assert health.is_coherent("no " * 200 + prose)
    assert not health.is_coherent(prose + "no " * 200)


def test_a_document_is_whole_where_all_its_samples_are() -> None:
    rows = [row(), row(""), row(document="e"), row(document="e"), row(document="f", finish_reason="length")]
    assert health.by_document(rows) == {"d": 0.0, "e": 1.0, "f": 0.0}
    assert health.by_document(reversed(rows)) == {"d": 0.0, "e": 1.0, "f": 0.0}


def test_a_chosen_answer_is_none_that_was_written() -> None:
    assert health.by_document([row(tokens=None)]) == {}


def test_the_bound_is_a_half_and_what_is_not_known_stops_nothing() -> None:
    assert health.LEAST == 0.5
    assert [health.is_enough(share) for share in (None, 0.0, 0.49, 0.5, 1.0)] == [
        True,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.requires_shared_data
def test_the_real_texts_that_the_docstring_counts() -> None:
    files = sorted(SHARED_DATA.glob("gsm8k/*.jsonl"))
    answers = [json.loads(line)["answer"] for file in files for line in file.read_text().splitlines()]
    assert len(answers) == 8_792
    assert all(map(health.is_coherent, answers))
    rows = [row for file in SHARED_DATA.glob("samsum/*.json") for row in json.loads(file.read_text())]
    texts = [row[column] for row in rows for column in ("dialogue", "summary")]
    assert len(texts) == 2_400
    assert all(map(health.is_coherent, texts))
    alpaca = [row["output"] for row in json.loads((SHARED_DATA / "alpaca/alpaca_1k.json").read_text())]
    assert len(alpaca) == 1_000
    assert sum(not health.is_coherent(text) for text in alpaca) == 4
