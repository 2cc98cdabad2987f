"""What a judge's tokens cost. Prices change: ``--set judging.prices.MODEL=[2.5,10]`` sets one."""

from __future__ import annotations

import re
from collections.abc import Mapping

# USD per million tokens, input and output: https://developers.openai.com/api/docs/pricing
OPENAI = {
    "gpt-4o": (2.5, 10.0),
    "gpt-4o-mini": (0.15, 0.6),
    "gpt-4.1": (2.0, 8.0),
    "gpt-4.1-mini": (0.4, 1.6),
    "gpt-4.1-nano": (0.1, 0.4),
    "gpt-4-turbo": (10.0, 30.0),
    "gpt-4": (30.0, 60.0),
    "gpt-5": (1.25, 10.0),
    "gpt-5-mini": (0.25, 2.0),
    "gpt-5-nano": (0.05, 0.4),
}
AS_OF = "prices of mid-2026"
BATCH_SHARE = 0.5  # of the price, in the Batch API

Price = tuple[float, float]  # USD per million tokens, input and output
_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{4})$")


def per_million(model: str, host: str | None, own: Mapping[str, Price]) -> Price | None:
    """USD per million (input, output) tokens, or None where it is not known. ``host`` None: OpenAI itself;
    a server on this machine costs nothing."""
    if model in own:
        return own[model]
    if host is None:
        return OPENAI.get(model) or OPENAI.get(_SNAPSHOT.sub("", model))
    return (0.0, 0.0) if host in ("localhost", "127.0.0.1", "::1", "0.0.0.0") else None


def batched(price: Price | None) -> Price | None:
    return (BATCH_SHARE * price[0], BATCH_SHARE * price[1]) if price else None
