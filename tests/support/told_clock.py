"""A clock whose time passes when a test says so."""

from __future__ import annotations

from collections.abc import Callable


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: Callable[[], float] | float) -> Callable[[], float]:
        """Work that takes so long and says so."""

        def work() -> float:
            took = seconds() if callable(seconds) else seconds
            self.now += took
            return took

        return work
