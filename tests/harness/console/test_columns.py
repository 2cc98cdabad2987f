"""Columns of figures: each figure whole and on its row's line, at any width."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st
from rich.cells import cell_len

from harness.console.columns import HEAD, Column, TextCell, fits, shortened, tables

NAMES = st.lists(st.text("ab-…日", min_size=1, max_size=30), min_size=1, max_size=6, unique=True)


def column(head: str, *figures: str, behind: str = "") -> Column:
    return Column(
        head, [TextCell(figure, behind if number == 0 else "") for number, figure in enumerate(figures)]
    )


def test_digits_stand_under_digits_and_marks_behind_them() -> None:
    block = [column("JSR", "+1.5", "-20.0", behind="*"), column("refusals", "", "3.0")]
    (table,) = tables(["a", "vanilla"], [block], 80)
    assert [line.plain for line in table.lines] == [
        "method     JSR   refusals",
        "─────────────────────────",
        "a         +1.5*",
        "vanilla  -20.0        3.0",
    ]


def test_a_cell_may_reach_over_the_empty_one_before_it() -> None:
    block = [column("Δ", "", "+0.0"), Column("RSR", [TextCell("no figure", spans=True), TextCell("50.0")])]
    (table,) = tables(["a", "b"], [block], 80)
    assert [line.plain for line in table.lines[2:]] == ["a        no figure", "b       +0.0  50.0"]


def test_names_are_shortened_before_a_further_table_begins() -> None:
    name = "my-checkpoint-of-step-1000"
    wide = [[column("first", "1" * 10)], [column("second", "2" * 10)]]
    assert [len(tables([name], wide, width)) for width in (80, 50, 34, 33)] == [1, 1, 1, 2]
    assert tables([name], wide, 50)[0].names == [name]
    assert tables([name], wide, 34)[0].names == ["my-ch…p-1000"]
    assert [table.names for table in tables([name], wide, 33)] == [["my-checkpo…-step-1000"]] * 2
    assert [len(tables([name], wide, width, dense=False)) for width in (41, 40)] == [1, 2]


def test_words_stand_where_there_are_no_figures_and_are_cut_at_the_end_of_the_line() -> None:
    block = [column("JSR", "50.0", "", "")]
    (table,) = tables(["a", "b", "c"], [block], 22, {1: ("failed: for a reason", ""), 2: ("failed", "")})
    assert [line.plain for line in table.lines[2:]] == [
        "a       50.0",
        "b       failed: for a…",
        "c       failed",
    ]
    assert table.cut == [1]


def test_where_nothing_fits_a_figure_is_whole_all_the_same() -> None:
    (table,) = tables(["a-long-name-it-is"], [[column("JSR", "100.0")]], 5)
    assert table.lines[2].plain.endswith(" 100.0")


def test_it_fits_where_one_spacious_table_does() -> None:
    block = [column("JSR", "100.0")]
    assert [fits(["vanilla"], [block], width) for width in (13, 14)] == [False, True]


@given(NAMES, st.integers(4, 30))
def test_shortened_names_fit_and_differ(names: list[str], room: int) -> None:
    assume(room >= len(HEAD))
    found = shortened(names, room)
    assert all(cell_len(name) <= room for name in found)
    assert [new for new, old in zip(found, names, strict=True) if cell_len(old) <= room] == [
        name for name in names if cell_len(name) <= room
    ]
    if room >= 12:
        assert len({*found}) == len(names)


def test_names_that_differ_only_in_the_middle_are_numbered() -> None:
    names = [f"{'a' * 30}{letter}{'b' * 30}" for letter in "xyz"]
    assert shortened(names, 12) == ["aaaaaaaaaa…1", "aaaaaaaaaa…2", "aaaaaaaaaa…3"]


@given(
    NAMES,
    st.lists(st.lists(st.floats(-100, 100), min_size=1, max_size=3), min_size=1, max_size=5),
    st.sampled_from([40, 80, 120]),
)
def test_no_line_is_wider_than_the_terminal_and_no_figure_is_lost(
    names: list[str], blocks: list[list[float]], width: int
) -> None:
    made = [
        [column("head", *(f"{value:+.1f}" for _ in names), behind="*") for value in some] for some in blocks
    ]
    found = tables(names, made, width)
    lines = [line.plain for table in found for line in table.lines]
    assert max(map(cell_len, lines)) <= width
    assert all(len(table.lines) == len(names) + 2 for table in found)
    for row in range(len(names)):
        shown = [figure for table in found for figure in table.lines[row + 2].plain.split()[1:]]
        assert [figure.rstrip("*") for figure in shown] == [f"{v:+.1f}" for some in blocks for v in some]
