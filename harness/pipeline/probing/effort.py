"""What a piece of work takes, in seconds, tokens and bytes, and how pieces add up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Effort:
    """What a piece of work takes: seconds of one process, tokens trained, read and written, bytes left."""

    seconds: float = 0.0
    trained: float = 0.0
    read: float = 0.0
    written: float = 0.0
    disk: float = 0.0

    def __add__(self, other: Effort) -> Effort:
        return Effort(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, factor: float) -> Effort:
        return Effort(*(value * factor for value in vars(self).values()))
