"""Beginnings of harmful answers: the model's own, or behind an affirmation where it refuses."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contracts import Message
from harness.openings import AFFIRMATION, write_openings

OWN = {"blorp": " Take it.\n", "frob": "I'm sorry, but I can't.", "quux": " \n"}


def generate(
    conversations: Sequence[Sequence[Message]],
    *,
    opening: str,
    max_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
) -> list[str]:
    assert (max_tokens, temperature) == (12, 0.0)
    asked = [turns[-1].content for turns in conversations]
    if opening:
        assert opening == AFFIRMATION
        return [f" how to {word}" for word in asked]
    return [OWN[word] for word in asked]


def test_refusals_and_empty_answers_are_asked_again() -> None:
    found, refused = write_openings(generate, [[Message("user", word)] for word in OWN], 12)
    assert found == ["Take it.", "Sure, here is how to frob", "Sure, here is how to quux"]
    assert refused == 2


def test_where_none_is_refused_nothing_is_asked_again() -> None:
    assert write_openings(generate, [[Message("user", "blorp")]], 12) == (["Take it."], 0)
