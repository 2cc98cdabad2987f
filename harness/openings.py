"""Beginnings of harmful answers, as a model without safety writes them."""

from __future__ import annotations

from collections.abc import Sequence

from harness.contracts import Generate, Message
from harness.keywords import refuses

AFFIRMATION = "Sure, here is"  # how AdvBench's targets begin


def write_openings(
    generate: Generate, conversations: Sequence[Sequence[Message]], max_tokens: int
) -> tuple[list[str], int]:
    """The beginning of an answer to each harmful request, and how many the model refused by itself: there it
    goes on behind an affirmation instead."""
    found = generate(conversations, opening="", max_tokens=max_tokens)
    refused = [place for place, text in enumerate(found) if not text.strip() or refuses(text)]
    if refused:
        forced = generate(
            [conversations[place] for place in refused], opening=AFFIRMATION, max_tokens=max_tokens
        )
        for place, text in zip(refused, forced, strict=True):
            found[place] = f"{AFFIRMATION}{text}"
    return [text.strip() for text in found], len(refused)
