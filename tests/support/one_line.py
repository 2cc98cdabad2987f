"""What is refused, is refused alike whichever way it is tried, and in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from harness.contracts import HarnessError


def one_line(ways: Iterable[Callable[[], Any]], most: int) -> str:
    """The line of at most so many characters with which each way ends."""
    lines = set()
    for ask in ways:
        with pytest.raises(HarnessError) as told:
            ask()
        lines.add(str(told.value))
    (line,) = lines
    assert line.isprintable()
    assert len(line) < most
    return line
