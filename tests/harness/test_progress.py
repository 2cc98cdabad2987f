"""Guards what long work shows: plain lines where there is no terminal, bars where there is one, names with
brackets as they are, and bars of a worker that died taken down."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from harness.progress import Display, Reporter


def plain() -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=80), file


def test_without_a_terminal_a_finished_step_is_one_line() -> None:
    console, file = plain()
    with Display(console, 2) as display:
        reporter = Reporter(display.show)
        with reporter.bar("[1/2] seed  respond x", 1200, "answers") as advance:
            for _ in range(12):
                advance(100)
        with reporter.bar("[1/2] seed  train", 1, "steps") as advance:
            advance(1)
        reporter.send(("note", None, "Estimated [time]: soon"))
        display.cell_done()
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert re.match(r"\[1/2\] seed  respond x  1,200 answers in \d+\.\d s", lines[0])
    assert re.match(r"\[1/2\] seed  train  1 step in \d+\.\d s", lines[1])
    assert lines[2] == "Estimated [time]: soon"


def test_a_step_that_fails_is_not_reported_as_done() -> None:
    console, file = plain()
    with Display(console, 1) as display:
        with pytest.raises(ValueError, match="x"), Reporter(display.show).bar("a", 3) as advance:  # noqa: PT012
            advance(1)
            raise ValueError("x")
        assert display._bars == {}
    assert file.getvalue() == ""


def test_in_a_terminal_there_are_bars_with_an_eta() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100, color_system=None)
    with Display(console, 6) as display, Reporter(display.show).bar("vanilla  train", 10, "steps") as advance:
        advance(5)
        display._progress.refresh()
    shown = file.getvalue()
    assert "vanilla  train" in shown
    assert "5/10" in shown
    assert "eta" in shown
    assert "0/6" in shown


def test_the_bars_of_a_dead_process_are_taken_down() -> None:
    console, _ = plain()
    with Display(console, 1) as display:
        display.show(("start", (111, 0), "a", 3))
        display.show(("start", (222, 0), "b", 3))
        display.forget(111)
        assert list(display._bars) == [(222, 0)]


def test_a_reporter_nobody_listens_to_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Reporter().bar("a", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_two_bars_of_one_label_are_kept_apart() -> None:
    events: list[tuple[Any, ...]] = []
    reporter = Reporter(events.append)
    with reporter.bar("same", 1) as one, reporter.bar("same", 1) as two:
        one(1)
        two(1)
    assert len({event[1] for event in events}) == 2
