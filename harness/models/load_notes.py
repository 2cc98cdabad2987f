"""What is said while a model loads: transformers' log kept back, notes told once, tensors quoted short."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence

from harness.text import one_line

LONGEST_NAME = 120  # characters of one name


def named(names: Sequence[str]) -> str:
    return ", ".join(map(quoted, names[:1])) + and_more(len(names) - 1)


def quoted(name: str) -> str:
    return f"'{one_line(name)[:LONGEST_NAME]}'"


def and_more(count: int) -> str:
    return f" (and {count:,} more)" if count > 0 else ""


def verb(names: Sequence[str]) -> str:
    """The verb behind them: is, or are."""
    return "is" if len(names) == 1 else "are"


@contextlib.contextmanager
def quiet(said: list[str] | None = None) -> Iterator[None]:
    """What transformers logs and shows meanwhile is kept in ``said``: the rehearsal tells it in its own
    words."""
    import transformers.utils.logging as settings

    logger = settings.get_logger("transformers")
    level, bars = logger.level, settings.is_progress_bar_enabled()
    keeper = _Keeper(said if said is not None else [])
    handlers, propagate = logger.handlers[:], logger.propagate
    logger.handlers, logger.propagate = [keeper], False
    logger.setLevel(logging.WARNING)
    settings.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        if bars:
            settings.enable_progress_bar()


class _Keeper(logging.Handler):
    def __init__(self, said: list[str]):
        super().__init__()
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def noted(lines: Iterable[str]) -> None:
    """Tell each line once."""
    for line in lines:
        if line not in _told:
            _told.add(line)
            logging.getLogger(__name__).warning("%s", line)


_told: set[str] = set()
