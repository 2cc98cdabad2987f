"""Progress of long work: bars with ETA in a terminal, one plain line a step elsewhere.

Work reports to a Reporter and does not know who looks: the same process, or the parent of a worker.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Event = tuple[Any, ...]  # ("start", key, label, total) | ("advance", key, n) | …
_numbers = itertools.count()


class Reporter:
    """Sends what happens to ``send``; quiet by default."""

    def __init__(self, send: Callable[[Event], None] = lambda event: None):
        self.send = send

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "items") -> Iterator[Callable[[int], None]]:
        """While the block runs, it calls the yielded function with each number of ``unit`` done."""
        key, start = (os.getpid(), next(_numbers)), time.perf_counter()
        self.send(("start", key, label, total))
        try:
            yield lambda done: self.send(("advance", key, done))
        except BaseException:
            self.send(("drop", key))
            raise
        count = f"{total:,} {unit.removesuffix('s') if total == 1 else unit}"
        self.send(("end", key, label, count, time.perf_counter() - start))


class Display:
    """Shows events on a console; ``whole`` counts the run's cells, or what else ``parts`` says."""

    def __init__(self, console: Console, whole: int, parts: str = "cells"):
        self.console, self._bars = console, dict[Any, TaskID]()
        self._lock = threading.Lock()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._progress.add_task(f"[bold]{parts}[/bold]", total=whole)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def cell_done(self) -> None:
        self._progress.advance(self._whole)

    def forget(self, owner: Any) -> None:
        """Take down the bars of a process that died, or of a cell whose worker did."""
        with self._lock:
            for key in [key for key in self._bars if key[0] == owner]:
                self._progress.remove_task(self._bars.pop(key))

    def show(self, event: Event) -> None:
        kind, key, *rest = event
        with self._lock:
            if kind == "note":
                self.console.print(escape(rest[0]), highlight=False, soft_wrap=True)
            elif kind == "start":
                self._bars[key] = self._progress.add_task(escape(rest[0]), total=rest[1])
            elif kind == "advance":
                self._progress.advance(self._bars[key], rest[0])
            else:
                self._progress.remove_task(self._bars.pop(key))
                if kind == "end":
                    label, count, seconds = rest
                    line = f"{escape(label)}  [dim]{count} in {seconds:.1f} s[/dim]"
                    self.console.print(line, highlight=False, soft_wrap=True)
