"""PTST trains as vanilla does and answers under its own prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from backends.ptst import PTST, SAFETY_PROMPT
from backends.vanilla import Vanilla
from harness.contracts import Encoded, Method


def test_training_is_vanillas_bit_for_bit(
    make_model: Callable[..., Any], train: Callable[..., Any], encoded: list[Encoded]
) -> None:
    models = []
    for method in (Vanilla(), PTST()):
        models.append(make_model())
        train(models[-1], encoded[:16], method)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    own = [name for name in vars(PTST) if callable(getattr(Method, name, None)) and not name.startswith("__")]
    assert own == ["inference_system_prompt"]


def test_the_safety_prompt_opens_every_system_prompt() -> None:
    assert PTST().inference_system_prompt("Summarize.") == f"{SAFETY_PROMPT}\n\nSummarize."
    assert PTST().inference_system_prompt(None) == SAFETY_PROMPT
    assert PTST(safety_prompt="Be safe.").inference_system_prompt("Obey.") == "Be safe.\n\nObey."
