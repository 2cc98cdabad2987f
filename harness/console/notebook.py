"""What the Python API shows while it works: one line that is kept up to date in a notebook, else nothing or a
terminal's lines."""

from __future__ import annotations

import contextlib
import html
import io
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console

from harness.console.terminal import Terminal
from harness.text import one_line

WIDTH = 100  # characters of the line


@contextlib.contextmanager
def console(progress: bool | None, what: str) -> Iterator[Console]:
    """A console for the walk. ``progress`` None: shown in a notebook, and nowhere else."""
    show = _shower() if progress is None or progress else None
    if show is not None:
        with _line(show, what) as file:
            yield Console(file=file, width=WIDTH, force_terminal=False, force_jupyter=False)
    elif progress:
        yield Terminal(stderr=True)
    else:
        with quiet() as silent:
            yield silent


@contextlib.contextmanager
def quiet() -> Iterator[Console]:
    yield Console(quiet=True)


def _shower() -> Callable[[str], None] | None:
    """A function that shows a line in the cell's output, in place of the one before; None outside a notebook.
    IPython is there already if this is one."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    display: Any = ipython.display.display  # type: ignore[union-attr]
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's: no bar of a library's is shown
    handle = display({"text/plain": ""}, raw=True, display_id=True)

    def show(line: str) -> None:
        page = f"<pre style='margin:0'>{html.escape(line)}</pre>"
        handle.update({"text/plain": line, "text/html": page}, raw=True)

    return show


@contextlib.contextmanager
def _line(show: Callable[[str], None], what: str) -> Iterator[LastLine]:
    """A file whose last line is shown; at the end it says how long all took, or that it was stopped."""
    start, file = time.monotonic(), LastLine(show)
    try:
        yield file
    except BaseException:
        show(f"{what}: stopped after {time.monotonic() - start:.0f} s")
        raise
    show(f"{what}: done in {time.monotonic() - start:.0f} s")


class LastLine(io.StringIO):
    """A text file that shows the last whole line with words that is written to it."""

    def __init__(self, show: Callable[[str], None]):
        super().__init__()
        self._show, self._open = show, ""

    def write(self, text: str) -> int:
        *whole, self._open = (self._open + text).split("\n")
        lines = [one_line(line) for line in whole if any(map(str.isalnum, line))]
        if lines:
            self._show(lines[-1])
        return len(text)
