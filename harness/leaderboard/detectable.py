"""The smallest true difference that a comparison would have shown: found at a level, with 80 % power.

The level is that of the test that sets the star: Holm's for this comparison, the others as they were
found (``statistics.holm_levels``). The power is the test's own, by the spread that was found: exact
McNemar for rates of one seed, the paired permutation test (by its t) for means, the t of crossed
documents and seeds for several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import binom, nct
from scipy.stats import t as student

from harness.leaderboard import statistics
from harness.leaderboard.spread import Spread, spread_of
from harness.leaderboard.statistics import RESAMPLES, SEED

POWER = 0.8
DRAWS = 2**14  # of a difference over several seeds: power is then known to 0.3 points
_SHARES = np.linspace(0.0, 1.0, 129)  # of the seeds in a variance; quantiles in between are interpolated
_STEP = 1e-5  # to which a difference is found

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """The k-th of ``values`` minus the k-th of ``baselines``, by document; a pair a seed. ``rates``: 0 or
    1."""

    values: Sequence[Values]
    baselines: Sequence[Values]
    rates: bool


def least_difference(comparison: Comparison, alpha: float) -> float | None:
    """The smallest true difference that the comparison would have found at level ``alpha`` in 80 % of runs.

    None where no difference would do, or where nothing tells the spread (one pair; equal differences of
    means).
    """
    table = statistics.differences(comparison.values, comparison.baselines)
    if not np.isfinite(table).any(axis=0).all():  # a seed without a pair
        return None
    pairs = list(zip(comparison.values, comparison.baselines, strict=True))
    if table.shape[1] > 1 and not statistics.is_constant(table):
        least = _of_table(table, comparison.rates, alpha)
    elif comparison.rates:  # several seeds that are all alike say no more than the least certain of them
        least = _largest([_of_counts(*pair, alpha) for pair in pairs])
    else:
        least = _largest([_of_means(*pair, alpha) for pair in pairs])
    return least if least is not None and least <= 1 else None


def _of_table(table: NDArray[np.float64], rates: bool, alpha: float) -> float | None:
    spread = spread_of(table, rates=rates)
    if spread is None or not spread.variance:
        return None
    least = over_seeds(spread, alpha)
    if not rates:
        return least
    errors = least / math.sqrt(spread.variance)
    n = int(np.isfinite(table).sum())
    return max(least, errors**2 / (n + errors**2))  # d of n pairs: d = errors sqrt(d (1 - d) / n)


def _largest(found: Sequence[float | None]) -> float | None:
    return None if None in found else max(one for one in found if one is not None)


# --- one seed ----------------------------------------------------------------------------------------


def _of_counts(values: Values, baseline: Values, alpha: float) -> float | None:
    _, gained, lost, n = statistics.paired_counts(values, baseline)
    return of_rates(gained + lost, n, alpha)


@lru_cache(2**14)
def of_rates(differing: int, n: int, alpha: float) -> float | None:
    """The smallest difference that exact McNemar finds in ``n`` pairs of which as many differ as were found.

    Where the difference is larger than the share of pairs that differ, all of them differ its way. The
    power is a sum over how many pairs differ, of which the test needs so many one way.
    """
    counts = np.arange(n + 1)
    needed = binom.isf(alpha / 2, counts, 0.5)  # more than so many one way

    def missing(difference: float) -> float:
        share = max(differing / n, difference)
        found = binom.sf(needed, counts, (1 + difference / share) / 2)
        return POWER - float((binom.pmf(counts, n, share) * found).sum())

    return _root(missing, 1e-9, 1.0)


def _of_means(values: Values, baseline: Values, alpha: float) -> float | None:
    found = statistics.differences([values], [baseline])[:, 0]
    found = found[np.isfinite(found)]
    n = len(found)
    smallest_p = max(2 / (RESAMPLES + 1), 2.0 ** (1 - n))  # that the permutation test can give
    if not np.ptp(found) or smallest_p > alpha:
        return None
    return of_means(float(found.std(ddof=1)), n, alpha)


def of_means(deviation: float, n: int, alpha: float) -> float | None:
    """The smallest mean that the paired t test finds in ``n`` differences of that standard deviation."""
    error, needed = deviation / math.sqrt(n), float(student.isf(alpha / 2, n - 1))

    def missing(difference: float) -> float:
        return POWER - float(nct.sf(needed, n - 1, difference / error))

    return _root(missing, 0.0, error * (needed + 10))


def _root(missing: Callable[[float], float], low: float, high: float) -> float | None:
    """Where a function that is positive at ``low`` falls through 0; None where it does not."""
    return None if missing(high) > 0 else float(brentq(missing, low, high, xtol=_STEP))


# --- several seeds -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Redrawn:
    """A difference over several seeds, drawn anew: how far each is from the truth, and the margins of the
    intervals that would have been found around it."""

    deviation: NDArray[np.float64]
    margin: Callable[[float], NDArray[np.float64]]  # of a level


def over_seeds(spread: Spread, alpha: float) -> float:
    """The difference that exceeds its margin, as redrawn, in 80 % of the draws."""
    rng = np.random.default_rng(SEED)
    drawn = redrawn(spread, rng.standard_normal(DRAWS), rng)
    return float(np.quantile(drawn.margin(alpha) - drawn.deviation, POWER))


def redrawn(spread: Spread, documents: NDArray[np.float64], rng: np.random.Generator) -> Redrawn:
    """Seeds' means and mean squares are drawn; documents' effects are given as standard normal draws, since
    several comparisons may share them, and their variance, of many documents, is taken as known."""
    seeds = rng.standard_normal(len(documents))
    found = spread.seeds * rng.chisquare(spread.df_seeds, len(documents)) / spread.df_seeds
    variance = spread.documents + found
    share, error = found / np.maximum(variance, np.finfo(np.float64).tiny), np.sqrt(variance)

    def margin(alpha: float) -> NDArray[np.float64]:
        quantiles = _quantiles(alpha, spread.df_documents, spread.df_seeds)
        margins: NDArray[np.float64] = np.interp(share, _SHARES, quantiles) * error
        return margins

    return Redrawn(math.sqrt(spread.documents) * documents + math.sqrt(spread.seeds) * seeds, margin)


@lru_cache(256)
def _quantiles(alpha: float, df_documents: float, df_seeds: float) -> NDArray[np.float64]:
    """At _SHARES."""
    found: NDArray[np.float64] = Spread(1 - _SHARES, _SHARES, df_documents, df_seeds).quantile(alpha)
    return found
