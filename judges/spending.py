"""What the requests for one verdict used."""

from __future__ import annotations

import dataclasses
from typing import Any

from judges import prices, replies
from judges.shape import MOST_TOKENS

TOO_LONG = "the exchange is longer than the judge's context"


@dataclasses.dataclass
class Spent:
    """What all requests for one verdict used, and whether another one can help.

    ``asked_room``: tokens that the last request had for its reply; ``cut_at``: the most at which reasoning
    was cut off; ``room``, ``most_room``: the least and the most that the next should have.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    model: str | None = None
    final: bool = False
    refused: str | None = None
    lacked_room: bool = False
    asked_room: int = 0
    cut_at: int = 0
    room: int = 0
    most_room: int = MOST_TOKENS

    def add(self, usage: Any, price: prices.Price | None) -> float:
        """Count one reply's tokens; returns its price in USD (0 where that is not known)."""
        read = max(0, int(replies.part(usage, "prompt_tokens") or 0))
        written = max(0, int(replies.part(usage, "completion_tokens") or 0))
        self.input_tokens += read
        self.output_tokens += written
        return (read * price[0] + written * price[1]) / 1e6 if price else 0.0

    def fields(self, price: prices.Price | None) -> dict[str, Any]:
        """The fields of a verdict."""
        usd = (self.input_tokens * price[0] + self.output_tokens * price[1]) / 1e6 if price else None
        tokens = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return {"model": self.model, "price_usd": usd, **tokens}
