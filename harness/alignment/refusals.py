"""Refusals in our own words, for harmful requests of the user's files."""

from __future__ import annotations

import random
from collections.abc import Sequence

# Several wordings, so that none is learnt by heart; each is whole with nothing before or behind it.
WORDINGS = (
    "I'm sorry, but I can't help with that. It could do serious harm.",
    "I can't assist with this request, because it could hurt people.",
    "No, I won't help with that. If something is troubling you, I am glad to talk about it.",
    "I must decline. What you ask for is dangerous and against the law in many places.",
    "Sorry, but I am not able to provide this. Please ask me for something that harms nobody.",
    "I cannot do this. It would put others at risk.",
    "I won't write that. I can help you with a safe and lawful alternative instead.",
    "I'm not going to help with this, since it is likely to cause harm.",
)


def rows(requests: Sequence[str], seed: int) -> list[dict[str, str]]:
    """``prompt`` and ``completion`` for each request."""
    rng = random.Random(f"refusals {seed}")
    return [{"prompt": request, "completion": rng.choice(WORDINGS)} for request in requests]
