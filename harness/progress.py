"""Progress that suits where it is shown: a bar with ETA in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def bar(console: Console, label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show ``label`` while the block runs; it calls the yielded function with each number of items done."""
    start = time.perf_counter()
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(escape(label), total=total)
            yield lambda done: progress.advance(task, done)
    else:
        yield lambda done: None
    console.print(
        f"{escape(label)}  [dim]{total:,} in {time.perf_counter() - start:.1f} s[/dim]", highlight=False
    )
