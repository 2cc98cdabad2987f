"""Guards what vLLM says of an answer's end; the rest of it needs vLLM (tests/extras)."""

from __future__ import annotations

import pytest

from harness.engines import replies, vllm
from harness.engines.vllm_process import Made


@pytest.mark.parametrize("reason", [None, "stop", "length"])
def test_ids_alone_say_how_they_ended(reason: str | None) -> None:
    assert vllm._answer(Made([1], [5, 7, 2], [], [], reason)) == [5, 7, 2]


@pytest.mark.parametrize("reason", ["abort", "error", "repetition"])
def test_another_end_is_told(reason: str) -> None:
    found = replies.unpacked(vllm._answer(Made([1], [5, 7], [], [], reason)))
    assert found == replies.Reply(ids=[5, 7], finish_reason=reason)
