"""What commands print: a table to read or JSON for a script, on a terminal of any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def console(*, stderr: bool = False) -> Console:
    from harness.console.terminal import Terminal

    return Terminal(stderr=stderr)


def print_json(record: Any) -> None:
    """For a script: every figure as it is, and no NaN."""
    import json

    click.echo(json.dumps(record, indent=2, allow_nan=False))  # ASCII: nothing in it steers a terminal


WORD = 40  # characters of a word that a listing leaves whole


def listing(rows: Sequence[tuple[Any, ...]], columns: tuple[str, ...], as_json: bool) -> None:
    if as_json:
        print_json([dict(zip(columns, row, strict=True)) for row in rows])
        return
    from rich.markup import escape
    from rich.table import Table

    from harness.console.terminal import natural_width

    def table(gap: int) -> Table:
        made = Table(box=None, header_style="bold", padding=(0, gap, 0, 0))
        for name, cells in zip(columns, zip(*rows, strict=True), strict=True):
            words = max((len(word) for cell in cells for word in cell.split()), default=0)
            whole = words >= max(map(len, cells)) and words <= WORD  # it cannot wrap without breaking a word
            made.add_column(name, overflow="fold", no_wrap=whole)
        for row in rows:
            made.add_row(*map(escape, row))
        return made

    out = console()
    fits = natural_width(table(2), out) <= out.width
    out.print(table(2 if fits else 1))
