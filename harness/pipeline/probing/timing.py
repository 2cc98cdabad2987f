"""Seconds of a kind of work by its amount, from pieces of it that fit into a budget.

The smallest piece is timed first, each larger one only if it will fit. Two sizes give the fixed cost of a
piece and its cost for each unit of work, and with them any other size. Should a piece take longer than its
predecessors let expect, it is broken off between two layers.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.pipeline.probing.time_budget import OutOfTimeError, TimeBudget

GROWTH_MARGIN = 1.5  # a larger piece may take so many times what a smaller one lets expect
GROWTH = 8.0  # and is at most so many times as large
RISK = 6.0  # times the amount may cost as much, for the first larger piece
REPEATS = 4  # timed pieces of one size, at most
ROUNDING = 1e-6

Point = tuple[float, float]  # amount of work, seconds
Piece = Callable[[], float]  # does some work and returns what of its seconds counts


@dataclass(frozen=True)
class Line:
    """Seconds of a piece of work by its amount: ``fixed`` + ``slope`` * amount."""

    fixed: float
    slope: float

    def __call__(self, amount: float) -> float:
        return self.fixed + self.slope * amount

    @classmethod
    def through(cls, points: Sequence[Point], share: float = 1.0) -> Line:
        """From (amount, seconds) of a smallest and a largest size, each the median of its points: what else
        a machine does for a moment is no part of it. ``share``: how much of the fixed cost the largest has.
        Where the larger took less, or so much more that a pass would begin below zero, seconds go with the
        amount."""
        sizes = sorted({amount for amount, _ in points})
        small, large = sizes[0], sizes[-1]
        took_small, took_large = (
            statistics.median(seconds for amount, seconds in points if amount == size)
            for size in (small, large)
        )
        if large > small:
            slope = (took_large - share * took_small) / (large - share * small)
            if took_large > share * took_small * (1 - ROUNDING) and took_small >= slope * small:
                return cls(took_small - max(0.0, slope) * small, max(0.0, slope))
        return cls(0.0, took_large / large)


def time_pieces(
    budget: TimeBudget,
    pieces: Sequence[tuple[float, Piece]],
    repeats: int = REPEATS,
    warm_s: float | None = None,
) -> list[Point]:
    """(amount, seconds) of the largest of ``pieces`` that fits into the budget, and of the smallest, each up
    to ``repeats`` times. Raises OutOfTimeError where not even the smallest fits.

    The smallest warms up, where that has not been done in ``warm_s`` seconds; it counts where there is no
    time for it again. A larger one is begun if it fits into half of what is left, going by those before.
    While one size alone is known, which may be little more than what any pass costs, one larger piece is
    risked: what is too much is broken off.
    """
    sizes = _Sizes(budget, pieces)
    least, warm_s = sizes.warm_up(warm_s)
    points, place = list[Point](), 0
    with contextlib.suppress(OutOfTimeError):
        while (following := sizes.find_next(place)) is not None:
            place, points = following, [sizes.take(following)]
        sizes.repeat(place, repeats, points)
    if all(amount != least and warm_s <= seconds for amount, seconds in points):
        return [(least, warm_s), *points]  # what took longer had something to read first
    return points


class _Sizes:
    """The pieces from the smallest to the largest, and what those that were taken have cost."""

    def __init__(self, budget: TimeBudget, pieces: Sequence[tuple[float, Piece]]):
        self._budget = budget
        self._pieces = sorted(pieces, key=lambda piece: piece[0])
        self._costs: dict[float, float] = {}  # seconds by amount, with what does not count

    def take(self, place: int) -> Point:
        """Do a piece. Raises OutOfTimeError."""
        amount, piece = self._pieces[place]
        self._budget.check()
        start = self._budget.clock()
        seconds = piece()
        self._costs[amount] = self._budget.clock() - start
        return amount, seconds

    def warm_up(self, warm_s: float | None) -> Point:
        """The smallest, taken unless that has been done in ``warm_s`` seconds."""
        if warm_s is None:
            _, warm_s = self.take(0)
        least = self._pieces[0][0]
        self._costs.setdefault(least, warm_s)
        return least, warm_s

    def find_next(self, place: int) -> int | None:
        """The place of the largest piece that can be begun after the one at ``place``."""
        amount, known, left = self._pieces[place][0], Line.through([*self._costs.items()]), self._budget.left
        larger = [at for at in range(len(self._pieces) - 1, place, -1) if self._pieces[at][0] > amount]
        for later in larger:
            following = self._pieces[later][0]
            near = following <= GROWTH * amount or later == place + 1
            if near and GROWTH_MARGIN * known(following) <= left() / 2:
                return later
        for later in larger if len(self._costs) == 1 else ():
            if self._costs[amount] * max(1.0, self._pieces[later][0] / amount / RISK) <= left():
                return later
        return None

    def repeat(self, place: int, times: int, points: list[Point]) -> None:
        """Add to ``points`` the smallest piece and the one at ``place``, up to so many ``times``. Of two, the
        second was taken once already. Raises OutOfTimeError when the time is over."""
        for number in range(times):
            for one in dict.fromkeys((0, place)):
                if number == 0 and one == place and place:
                    continue  # that was the first
                if GROWTH_MARGIN * self._costs[self._pieces[one][0]] > self._budget.left():
                    raise OutOfTimeError
                points.append(self.take(one))
