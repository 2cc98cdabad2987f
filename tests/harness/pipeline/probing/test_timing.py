"""Guards that pieces of work are timed as far as the time allows, and that two sizes give any other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from told_clock import Clock

from harness.pipeline.probing.time_budget import LEAST_S, OutOfTimeError, TimeBudget
from harness.pipeline.probing.timing import Line, time_pieces

positive = st.floats(1e-4, 50.0)


@given(fixed=st.floats(0, 10), slope=positive, sizes=st.tuples(st.floats(1, 10), st.floats(20, 1000)))
def test_a_line_through_two_sizes_is_the_fit(fixed: float, slope: float, sizes: tuple[float, float]) -> None:
    noise = (-0.01, 0.01)
    points = [(x, (fixed + slope * x) * (1 + e)) for x in sizes for e in noise]
    found = Line.through(points)
    expected_slope, expected_fixed = np.polyfit(*np.array(points).T, 1)
    if expected_fixed >= 0:
        assert found(123.0) == pytest.approx(expected_fixed + expected_slope * 123.0, rel=1e-6, abs=1e-6)


def test_where_two_sizes_contradict_each_other_seconds_go_with_the_amount() -> None:
    assert Line.through([(1.0, 5.0), (10.0, 4.0)]) == Line(0.0, 0.4)  # the larger took less
    assert Line.through([(1.0, 1.0), (10.0, 40.0)]) == Line(0.0, 4.0)  # a pass would begin below zero
    assert Line.through([(4.0, 2.0), (4.0, 4.0)]) == Line(0.0, 0.75)  # one size
    busy = [(1.0, 2.0), (1.0, 2.0), (1.0, 90.0), (10.0, 11.0), (10.0, 50.0), (10.0, 11.0)]
    assert Line.through(busy) == Line(1.0, 1.0)  # another program ran for a moment
    assert Line.through([(1.0, 0.3), (9.0, 0.3)]) == Line(0.3, 0.0)


@given(fixed=st.floats(0, 5), slope=st.floats(1e-6, 5), most=st.integers(1, 4000))
def test_pieces_grow_as_far_as_the_time_allows(fixed: float, slope: float, most: int) -> None:
    clock = Clock()
    budget = TimeBudget(clock)
    sizes = [float(2**n) for n in range(12) if 2**n < most] + [float(most)]

    def piece(seconds: float) -> Callable[[], float]:
        def work() -> float:  # of a hundred layers
            for _ in range(100):
                budget.check()
                clock.now += seconds / 100
            return seconds

        return work

    costs = {size: fixed + slope * size for size in sizes}
    try:
        points = time_pieces(budget, [(size, piece(seconds)) for size, seconds in costs.items()])
    except OutOfTimeError:
        assert costs[sizes[0]] >= 0.98 * LEAST_S
        return
    assert budget.spent() <= LEAST_S + max(costs.values()) / 100 + 1e-9
    amounts = {amount for amount, _ in points}
    assert len(amounts) <= 2
    assert all(seconds == pytest.approx(costs[amount]) for amount, seconds in points)
    if 40 * costs[most] < LEAST_S:  # there was time for the whole, and for the smallest beside it
        assert amounts == {sizes[0], sizes[-1]}


def test_one_larger_piece_is_risked_where_the_smallest_takes_most_of_the_time() -> None:
    """A pass of 135 M parameters on a slow core: 16 tokens take little less than 64."""
    clock = Clock()
    budget = TimeBudget(clock)
    costs = {16.0: 1.2, 64.0: 1.4, 128.0: 2.5, 2000.0: 30.0}
    pieces = [(size, clock.taking(seconds)) for size, seconds in costs.items()]
    assert time_pieces(budget, pieces) == [(16.0, 1.2), (128.0, 2.5)]  # what warmed up counts
    budget.grant(400.0)
    assert {amount for amount, _ in time_pieces(budget, pieces)} == {16.0, 128.0}
    budget.grant(1e6)
    cold = time_pieces(budget, pieces, repeats=1, warm_s=9.0)  # what warmed up read its weights first
    assert (16.0, 9.0) not in cold
    assert (128.0, 2.5) in cold


def test_a_piece_that_takes_longer_than_foreseen_is_the_last() -> None:
    clock = Clock()
    budget = TimeBudget(clock)

    def breaks_off() -> float:
        clock.now += 10.0
        budget.check()
        return 10.0

    assert time_pieces(budget, [(1.0, clock.taking(0.1)), (2.0, breaks_off)]) == [(1.0, 0.1)]
