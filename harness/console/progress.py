"""Progress of long work: bars with the time left in a terminal, plain lines elsewhere.

Work reports to a Reporter and does not know who looks: the same process, or the parent of a worker.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_S = 20.0  # between two lines where there is no terminal
SHOWN = 3  # steps under way in such a line
Event = tuple[Any, ...]  # ("start", key, label, total, unit) | ("advance", key, n) | …
_numbers = itertools.count()


class Reporter:
    """Sends what happens to ``send``; quiet by default."""

    def __init__(self, send: Callable[[Event], None] = lambda event: None):
        self.send = send

    @contextmanager
    def bar(self, label: str, total: int, unit: str = "items") -> Iterator[Callable[[int], None]]:
        """While the block runs, it calls the yielded function with each number of ``unit`` done."""
        key, start = (os.getpid(), next(_numbers)), time.perf_counter()
        self.send(("start", key, label, total, unit))
        try:
            yield lambda done: self.send(("advance", key, done))
        except BaseException:
            self.send(("drop", key))
            raise
        count = f"{total:,} {unit.removesuffix('s') if total == 1 else unit}"
        self.send(("end", key, label, count, time.perf_counter() - start))


@dataclass
class _Bar:
    """A step under way. ``first``: when it first told of something done, and of how much."""

    label: str
    total: int
    unit: str
    task: TaskID
    done: int = 0
    first: tuple[float, int] | None = None

    def left_s(self, now: float) -> float | None:
        """Seconds to its end at the pace since ``first``, so that what was done already does not count."""
        if self.first is None or self.done <= self.first[1]:
            return None
        return (now - self.first[0]) / (self.done - self.first[1]) * max(0, self.total - self.done)


class Display:
    """Shows events on a console; ``whole`` counts the run's cells, or what else ``parts`` says, None where
    there is nothing to count. Where there is no terminal, a line every ``LINE_S`` seconds says how far the
    work is."""

    def __init__(
        self,
        console: Console,
        whole: int | None,
        parts: str = "cells",
        *,
        line_s: float = LINE_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.console, self._bars = console, dict[Any, _Bar]()
        self._total, self._parts, self._done = whole, parts, 0
        self._clock, self._line_s, self._begun = clock, line_s, clock()
        self._end: float | None = None  # when all will be done, as far as is known
        self._forecast_s: float | None = None
        self._expected: Mapping[str, float] = {}  # seconds by name of a part
        self._done_names: list[str] = []
        self._jobs = 1
        self._lock, self._over = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("eta"),
            _TimeLeft(self),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._whole = self._progress.add_task(f"[bold]{parts}[/bold]", total=whole, visible=whole is not None)

    def __enter__(self) -> Display:
        self._progress.start()
        if not (self.console.is_terminal or self.console.quiet):
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        self._progress.stop()

    def cell_done(self, name: str = "") -> None:
        """``name``: under which a forecast has its seconds."""
        with self._lock:
            self._done += 1
            self._done_names.append(name)
            self._foresee()
        self._progress.advance(self._whole)

    def forget(self, owner: Any) -> None:
        """Take down the bars of a process that died, or of a cell whose worker did."""
        with self._lock:
            for key in [key for key in self._bars if key[0] == owner]:
                self._progress.remove_task(self._bars.pop(key).task)

    def show(self, event: Event) -> None:
        kind, key, *rest = event
        with self._lock:
            if kind == "note":
                self.console.print(escape(rest[0]), highlight=False, soft_wrap=True)
            elif kind == "forecast":
                self._forecast_s, self._expected, self._jobs = rest
                self._end = self._clock() + rest[0]
            elif kind == "start":
                label, total, *unit = rest
                task = self._progress.add_task(escape(label), total=total)
                self._bars[key] = _Bar(label, total, unit[0] if unit else "", task)
            elif kind == "advance":
                self._advance(self._bars[key], rest[0])
            else:
                self._progress.remove_task(self._bars.pop(key).task)
                if kind == "end":
                    label, count, seconds = rest
                    line = f"{escape(label)}  [dim]{count} in {seconds:.1f} s[/dim]"
                    self.console.print(line, highlight=False, soft_wrap=True)

    def _advance(self, bar: _Bar, done: int) -> None:
        bar.done += done
        bar.first = bar.first or (self._clock(), bar.done)
        self._progress.advance(bar.task, done)

    def left_s(self) -> float | None:
        """Seconds until all is done; None where nothing tells."""
        left = None if self._end is None else self._end - self._clock()
        return left if left is not None and left > 0 else None

    def _foresee(self) -> None:
        """When all will be done, now that a part is: by the forecast at first, and ever more by the pace of
        the parts that are done. Of each that is under way beside the last, half counts as done."""
        if not self._total:
            return
        now, jobs = self._clock(), self._jobs
        expected = sum(self._expected.values())
        share = self._done / self._total
        if expected:
            share = sum(self._expected.get(name, 0.0) for name in self._done_names) / expected
        if not share:
            return
        reached = min(1.0, share * (1 + (jobs - 1) / 2 / self._done))
        by_pace = (now - self._begun) * (1 - reached) / reached
        forecast = by_pace if self._forecast_s is None else self._forecast_s * (1 - reached)
        trust = min(1.0, 2 * share)  # in the pace
        self._end = now + trust * by_pace + (1 - trust) * forecast

    def line(self) -> str:
        """How far the work is: done, total and time left, of all of it and of the steps under way."""
        parts = []
        if self._total is not None:
            parts.append(_told(f"{self._done}/{self._total} {self._parts}", self.left_s()))
        with self._lock:
            now, bars = self._clock(), list(self._bars.values())
        for bar in bars[:SHOWN]:
            count = f"{bar.label} {bar.done:,}/{bar.total:,} {bar.unit}".rstrip()
            parts.append(_told(count, bar.left_s(now)))
        more = [f"{len(bars) - SHOWN} more"] if len(bars) > SHOWN else []
        return "; ".join([*(parts or [self._parts]), *more])

    def _tell(self) -> None:
        while not self._over.wait(self._line_s):
            self.console.print(escape(self.line()), highlight=False, soft_wrap=True)


class _TimeLeft(ProgressColumn):
    """The time left: rich's own by a bar's pace, and the display's for all of the work."""

    max_refresh = 0.5

    def __init__(self, display: Display):
        super().__init__()
        self._display = display
        self._of_bar = TimeRemainingColumn(compact=True)

    def render(self, task: Task) -> Text:
        left = self._display.left_s() if task.id == self._display._whole else None
        if left is None:
            return self._of_bar.render(task)
        return Text(_clock_time(left), style="progress.remaining")


def _clock_time(seconds: float) -> str:
    """12:05, or 1:12:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _told(count: str, left: float | None) -> str:
    return count if left is None else f"{count}, {_clock_time(left)} left"
