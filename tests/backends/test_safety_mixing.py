"""Safety demonstrations are mixed in by share, without repetition, by the context's own randomness."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.safety_mixing import SafetyMixing
from backends.vanilla import Vanilla
from harness.contracts import Encoded, Example, Message, PrepareContext
from harness.models import chat
from tasks.gsm8k_mini.train import TRAIN_TASK


def example(name: str, answer: str) -> Example:
    return Example(name, (Message("user", f"{name}?"), Message("assistant", answer)))


def context(available: int, seed: int = 0) -> PrepareContext:
    safety = [example(f"safety-{n}", "I cannot help with that.") for n in range(available)]
    return PrepareContext(None, TRAIN_TASK, lambda *a, **k: [], random.Random(seed), safety_examples=safety)


@given(rows=st.integers(1, 400), share=st.floats(0.01, 0.9), available=st.integers(1, 3000))
def test_the_share_is_that_of_all_rows(rows: int, share: float, available: int) -> None:
    given_rows = [example(f"row-{n}", "So.") for n in range(rows)]
    around = context(available)
    prepared = SafetyMixing(share=share).prepare(given_rows, around)
    assert prepared[:rows] == given_rows
    added = prepared[rows:]
    assert len({e.id for e in prepared}) == len(prepared)
    wanted = max(1, round(rows * share / (1 - share)))
    assert len(added) == min(wanted, available)
    note = around.record.pop("note", None)
    assert around.record == {"safety_examples_added": len(added), "safety_examples_wanted": wanted}
    assert (note is not None) == (available < wanted)
    if 1 < wanted <= available:
        assert abs(len(added) / len(prepared) - share) <= 1 / len(prepared)


def test_a_file_that_is_too_short_is_told() -> None:
    around = context(10)
    prepared = SafetyMixing(share=0.5).prepare([example(f"row-{n}", "So.") for n in range(1500)], around)
    assert len(prepared) == 1510
    assert around.record["note"] == (
        "the safety data have 10 rows and a share of 0.5 needs 1,500: 0.66% of the rows are safety "
        "demonstrations; give more safety data"
    )
    enough = context(1500)
    SafetyMixing(share=0.5).prepare([example(f"row-{n}", "So.") for n in range(1500)], enough)
    assert "note" not in enough.record


def test_the_papers_share() -> None:
    """Some 3 % of the rows, from the safety data that a run must bring (arXiv 2309.07875)."""
    rows = [example(f"row-{n}", "So.") for n in range(970)]
    prepared = SafetyMixing().prepare(rows, context(100))
    assert len(prepared) == 1000
    assert [e.id.startswith("safety-") for e in prepared] == [False] * 970 + [True] * 30
    assert SafetyMixing.needs_safety_data


def test_seeds_draw_differently_and_repeatably() -> None:
    rows = [example("row", "So.")] * 20
    one, same, other = (SafetyMixing(share=0.2).prepare(rows, context(50, seed))[20:] for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, float("inf"), float("nan")])
def test_a_share_outside_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=rf"share must be above 0 and below 1, not {share}"):
        SafetyMixing(share=share)


def test_refusals_become_more_likely(
    make_model: Callable[..., Any],
    train: Callable[..., Any],
    texts: list[Example],
    tokenizer: Any,
    answer_logp: Callable[..., list[list[float]]],
) -> None:
    around = context(4)
    likelihood = {}
    for method in (Vanilla(), SafetyMixing(share=0.3)):
        model, prepared = make_model(), method.prepare(texts[:8], around)
        encoded: list[Encoded] = [chat.encode(tokenizer, e) for e in prepared]
        train(model, encoded, method, epochs=3)
        probe = [chat.encode(tokenizer, around.safety_examples[0])]
        likelihood[method.name] = sum(answer_logp(model, probe)[0])
    assert likelihood["safety-mixing"] > likelihood["vanilla"] + 0.1
