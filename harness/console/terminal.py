"""The terminal that commands print to, and plain tables: only rich steers it, whatever a text holds."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from harness.text import printable


class Terminal(Console):
    """A console in which text is text: no escape sequence, no carriage return, no turned direction."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable():
                yield segment
            else:
                yield Segment("\n".join(map(printable, text.split("\n"))), segment.style)


def bare_table(gap: int = 1) -> Table:
    """A table with a line below its head and no other; ``gap``: blanks between columns."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, gap, 0, 0), pad_edge=False, show_edge=False)


def print_whole(table: Table, console: Console) -> None:
    """As wide as its cells: where there is no room it runs over rather than lose figures."""
    table.width = natural_width(table, console)
    console.print(table, crop=False)


def natural_width(table: Table, console: Console) -> int:
    return console.measure(table, options=console.options.update_width(1_000)).maximum


def say(console: Console, line: str, style: str = "") -> None:
    """A line as it stands, however long."""
    console.print(Text(line, style=style), highlight=False, soft_wrap=True)
