"""Figures in columns for a terminal: one line a row, digits under digits, and never a figure cut.

Where the width ends, names are shortened first; what still finds no room goes into a further table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.cells import cell_len
from rich.text import Text

ELLIPSIS = "…"
GAPS = (2, 1)  # blanks between columns, the most spacious first
SHORTEST = {2: 17, 1: 12}  # by gap: the cells that a name keeps where there is another way
LAST = 8  # and where there is none: below it, a line runs over
HEAD = "method"


@dataclass(frozen=True)
class TextCell:
    """``text``: a figure; ``behind``: what belongs to it, such as a mark. One that ``spans`` may reach over
    the empty cell before it."""

    text: str = ""
    behind: str = ""
    style: str = ""
    spans: bool = False


@dataclass(frozen=True)
class Column:
    """``least``: a width that it must have."""

    head: str
    cells: Sequence[TextCell]
    least: int = 0

    @cached_property
    def behind(self) -> int:
        """The width kept behind the figures, so that their digits stand under each other."""
        return max((cell_len(cell.behind) for cell in self.cells), default=0)

    @cached_property
    def width(self) -> int:
        figures = max((cell_len(cell.text) for cell in self.cells if not cell.spans), default=0)
        return max(cell_len(self.head), figures + self.behind, self.least)

    def shown_head(self) -> Text:
        """Above the digits, where there is room for it."""
        after = min(self.behind, self.width - cell_len(self.head))
        return Text(" " * (self.width - after - cell_len(self.head)) + self.head + " " * after)

    def shown(self, cell: TextCell) -> Text:
        behind = cell.behind if cell.spans else cell.behind + " " * (self.behind - cell_len(cell.behind))
        before = " " * (self.width - cell_len(cell.text) - cell_len(behind))
        return Text(before).append(cell.text + behind, style=cell.style)


Block = Sequence[Column]  # columns that stand in one table


@dataclass(frozen=True)
class TextTable:
    """One that has found its place: its lines, the names that it shows, and the rows whose words are cut."""

    lines: list[Text]
    names: list[str]
    cut: list[int]


def fits(names: Sequence[str], blocks: Sequence[Block], width: int) -> bool:
    """Whether there is room for all of it, spaciously and with whole names (or much of very long ones)."""
    longest = min(_longest(names), SHORTEST[2] + 7)
    return longest + _needed(blocks, GAPS[0]) <= width


def tables(
    names: Sequence[str],
    blocks: Sequence[Block],
    width: int,
    words: Mapping[int, tuple[str, str]] | None = None,
    *,
    dense: bool = True,
) -> list[TextTable]:
    """As few tables as the width allows. ``words``: of rows without figures, what stands there and its style;
    ``dense``: rather shorten names and narrow the gaps than begin a further table."""
    for gap in GAPS if dense else GAPS[:1]:
        if _room(blocks, gap, width) >= min(_longest(names), SHORTEST[gap]):
            return [_table(names, blocks, gap, width, words or {})]
    parts: list[list[Block]] = []
    for block in blocks:
        if parts and _room([*parts[-1], block], GAPS[0], width) >= min(_longest(names), SHORTEST[GAPS[0]]):
            parts[-1].append(block)
        else:
            parts.append([block])
    return [_table(names, part, _gap(names, part, width), width, words or {}) for part in parts]


def _gap(names: Sequence[str], blocks: Sequence[Block], width: int) -> int:
    least = min(_longest(names), SHORTEST[1])
    return next((gap for gap in GAPS if _room(blocks, gap, width) >= least), GAPS[-1])


def _needed(blocks: Sequence[Block], gap: int) -> int:
    return sum(gap + column.width for block in blocks for column in block)


def _room(blocks: Sequence[Block], gap: int, width: int) -> int:
    """The cells that are left for names."""
    return width - _needed(blocks, gap)


def _longest(names: Sequence[str]) -> int:
    return max(map(cell_len, [HEAD, *names]))


def _table(
    names: Sequence[str],
    blocks: Sequence[Block],
    gap: int,
    width: int,
    words: Mapping[int, tuple[str, str]],
) -> TextTable:
    longest = _longest(names)
    room = max(min(longest, _room(blocks, gap, width)), min(longest, LAST))
    shown = shortened(names, room)
    columns = [column for block in blocks for column in block]
    head = Text(_padded(HEAD, room), style="bold")
    for column in columns:
        head.append(" " * gap).append_text(column.shown_head())
    lines = [head, Text("─" * (room + _needed(blocks, gap)))]
    cut = []
    for index, name in enumerate(shown):
        line = Text(_padded(name, room))
        if index in words:
            text, style = words[index]
            some = _start_of(text, max(width - room - gap, 1))
            cut += [index] if some != text else []
            line.append(" " * gap).append(some, style=style)
        else:
            for column in columns:
                cell = column.cells[index]
                figure = column.shown(cell)
                line.append(" " * gap)
                if reach := cell_len(figure.plain) - column.width:
                    line.right_crop(reach)
                line.append_text(figure)
        line.rstrip()
        lines.append(line)
    head.rstrip()
    return TextTable(lines, shown, cut)


# --- names -----------------------------------------------------------------------------------------


def shortened(names: Sequence[str], room: int) -> list[str]:
    """The names, longer ones without their middle, and where possible each still another than the others."""
    if _longest(names) <= room:
        return [*names]
    for tail in sorted(range(room), key=lambda tail: abs(tail - room // 2)):
        found = [_without_middle(name, room, tail) for name in names]
        if len({*found}) == len({*names}):
            return found
    numbers = [f"{ELLIPSIS}{names.index(name) + 1}" for name in names]
    return [
        name if cell_len(name) <= room else _kept(name, room - cell_len(number)) + number
        for name, number in zip(names, numbers, strict=True)
    ]


def _without_middle(name: str, room: int, tail: int) -> str:
    if cell_len(name) <= room:
        return name
    end = _kept(name[::-1], tail)[::-1]
    return f"{_kept(name, room - 1 - cell_len(end))}{ELLIPSIS}{end}"


def _start_of(text: str, room: int) -> str:
    return text if cell_len(text) <= room else _kept(text, room - 1).rstrip() + ELLIPSIS


def _kept(text: str, room: int) -> str:
    """As many characters as fit."""
    while cell_len(text) > max(room, 0):
        text = text[:-1]
    return text


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))
