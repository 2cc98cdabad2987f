"""One line of what ``harness doctor`` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, how it is, and, unless it passes, what to do about it."""

    status: Literal["pass", "warn", "fail"]
    about: str
    found: str
    mend: str = ""
