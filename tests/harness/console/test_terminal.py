"""Guards that only rich steers the terminal, colours and bars of ours left as they are."""

from __future__ import annotations

import io
import re

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from harness.console.terminal import Terminal

OSC = "\x1b]52;c;ZXZpbA==\x07"


def printed(*things: object, terminal: bool = False) -> str:
    buffer = io.StringIO()
    console = Terminal(
        file=buffer, width=80, force_terminal=terminal, color_system="standard" if terminal else None
    )
    for thing in things:
        console.print(thing)
    return buffer.getvalue()


@pytest.mark.parametrize("text", [OSC, "a\rb", "\x1b[2Jx", "a\u202eb", "\x9b1m", "a\x00b", "\ud800"])
def test_text_is_text(text: str) -> None:
    table = Table("head")
    table.add_row(Text(text))
    for thing in (Text(text), text, table):
        for terminal in (False, True):
            shown = re.sub(r"\x1b\[[0-9;]*m", "", printed(thing, terminal=terminal))
            assert all(character.isprintable() or character == "\n" for character in shown)


def test_colours_and_lines_are_ours() -> None:
    shown = printed("[red]a[/red]\nb", terminal=True)
    assert "\x1b[31ma\x1b[0m" in shown
    assert shown.endswith("\nb\n")


def test_a_bars_description_is_text() -> None:
    buffer = io.StringIO()
    with Progress(console=Terminal(file=buffer, force_terminal=True, width=80)) as bars:
        bars.add_task(f"respond {OSC}", total=1)
    assert "respond" in buffer.getvalue()
    assert "\x1b]" not in buffer.getvalue()
