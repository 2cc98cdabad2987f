"""Guards what long work shows: plain lines where there is no terminal, bars where there is one, names with
brackets as they are, and bars of a worker that died taken down."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from harness.console import progress
from harness.console.progress import Display, Reporter


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


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_without_a_terminal_a_line_says_every_so_often_how_far_the_work_is() -> None:
    console, file = plain()
    with Display(console, 17, line_s=0.01) as display, Reporter(display.show).bar("[1/17] train", 8, "steps"):
        deadline = time.monotonic() + 20
        while file.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = file.getvalue().splitlines()
    assert set(lines[1:3]) == {"0/17 cells; [1/17] train 0/8 steps"}
    said = len(file.getvalue())
    time.sleep(0.05)
    assert len(file.getvalue()) == said  # it ends with the work
    assert progress.LINE_S <= 30


@pytest.mark.parametrize("options", [{"quiet": True}, {"force_terminal": True}])
def test_a_quiet_console_and_a_terminal_get_no_such_lines(options: dict[str, Any]) -> None:
    console = Console(file=io.StringIO(), **options)
    with Display(console, 2, line_s=0.001) as display:
        time.sleep(0.02)
        assert not display._thread.is_alive()


def test_a_line_has_what_is_done_of_what_and_the_time_left() -> None:
    console, clock = plain()[0], Clock()
    display = Display(console, 4, clock=clock)
    assert display.line() == "0/4 cells"
    reporter = Reporter(display.show)
    reporter.send(("forecast", None, 400.0, {"a": 100.0, "b": 300.0}, 1))
    with reporter.bar("[1/4] vanilla  train", 1000, "steps") as advance:
        advance(400)  # what an interrupted run had done: no measure of the pace
        clock.now += 10
        advance(60)
        assert display.line() == "0/4 cells, 06:30 left; [1/4] vanilla  train 460/1,000 steps, 01:30 left"
        with reporter.bar("x", 1) as _, reporter.bar("y", 1) as _, reporter.bar("z", 1) as _:
            assert display.line().endswith("; x 0/1 items; y 0/1 items; 1 more")


def test_the_time_left_follows_the_forecast_and_then_the_pace() -> None:
    clock = Clock()
    display = Display(plain()[0], 4, clock=clock)
    assert display.left_s() is None
    seconds = {"a": 100.0, "b": 100.0, "c": 200.0, "d": 400.0}
    display.show(("forecast", None, 800.0, seconds, 1))
    clock.now += 200  # twice as long as was foreseen
    display.cell_done("a")
    by_pace, by_forecast = 200 * 7, 700
    assert display.left_s() == pytest.approx(by_pace / 4 + by_forecast * 3 / 4)
    for name, took in (("b", 200), ("c", 400)):
        clock.now += took
        display.cell_done(name)
    assert display.left_s() == pytest.approx(800)  # half is done, in 800 s
    clock.now += 10_000
    assert display.left_s() is None  # nothing tells any more
    display.cell_done("d")
    assert display.left_s() is None


@pytest.mark.parametrize(("jobs", "left"), [(1, 300.0), (2, 100 * (1 - 0.375) / 0.375)])
def test_what_is_under_way_beside_a_finished_part_counts_half(jobs: int, left: float) -> None:
    clock = Clock()
    display = Display(plain()[0], 4, clock=clock)
    display.show(("forecast", None, 400.0 / jobs, dict.fromkeys("abcd", 100.0), jobs))
    clock.now += 100
    display.cell_done("a")
    forecast = 400 / jobs * (1 - (0.25 if jobs == 1 else 0.375))
    assert display.left_s() == pytest.approx((left + forecast) / 2)


def test_without_a_forecast_the_pace_tells() -> None:
    clock = Clock()
    display = Display(plain()[0], 4, clock=clock)
    clock.now += 100
    display.cell_done()
    assert display.left_s() == pytest.approx(300)
    assert display.line() == "1/4 cells, 05:00 left"
    clock.now += 3600
    display.cell_done()
    assert display.line() == "2/4 cells, 1:01:40 left"


def test_where_there_is_nothing_to_count_the_steps_alone_are_told() -> None:
    display = Display(plain()[0], None, "judging")
    assert display.line() == "judging"
    with Reporter(display.show).bar("seed  judge x", 9, "verdicts"):
        assert display.line() == "seed  judge x 0/9 verdicts"


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
