"""How a failure that the user can fix is told: one line, and the command's exit code."""

from __future__ import annotations

from harness.text import one_line, without_keys


class HarnessError(Exception):
    """A failure that the user can mend: one line that says what, where and how. Exit code 1.

    It may quote what came from outside: as text it prints, and holds no key of the environment.
    """

    def __str__(self) -> str:
        return one_line(without_keys(super().__str__()))


class NotFetchedError(HarnessError):
    """Data that only the hub has, and that could not be had from it."""


class UsageError(HarnessError):
    """A wrong name or flag on the command line or in a recipe. Exit code 2."""
