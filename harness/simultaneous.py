"""Many comparisons with one control: intervals that hold together, and what they could have shown.

A *family* is the comparisons that one table makes at once, such as every method against vanilla on every
train task. Each of them gets its ordinary interval of statistics.py, but at a level at which *all*
intervals of the family hold the truth together with 95 % probability. This is single-step max-T (Hothorn,
Bretz and Westfall 2008, Biometrical Journal 50:346-363), with the maximum taken over levels, so that
comparisons of different spread and degrees of freedom count alike. A difference is a finding where this
interval excludes 0.

The level comes from resampling, which carries over how the comparisons hang together:

- *documents*: N(0, 1) weights on the paired documents (the multiplier bootstrap of Chernozhukov,
  Chetverikov and Kato 2013, Annals of Statistics 41:2786-2819). Comparisons on the same documents are
  correlated: they share each document's difficulty, and vanilla's answer to it;
- *seeds*: each comparison's mean and mean square over S seeds are drawn anew, which gives it the t
  distribution that its spread has. Comparisons share vanilla's seeds as well, but so few seeds do not
  tell how much that matters: they are taken as independent, which makes the intervals a little wide.

A comparison in which no pair differs (100 % against 100 %) has no spread to draw from. It counts as an
independent one, and its interval comes from the counts, as it does alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import gammaln
from scipy.stats import norm
from scipy.stats import t as student

from harness import statistics
from harness.statistics import ALPHA, KEPT, SEED, Spread

POWER = 0.8  # with which the smallest detectable difference would have been shown
DRAWS = 2**16
SEED_DRAWS = 2**14  # over several seeds each draw costs more
_BLOCK = 2**12  # draws at a time: bounds the memory, whatever the number of comparisons
_SHARES = np.linspace(0.0, 1.0, 129)  # of the seeds in a variance; quantiles in between are interpolated
_SMALLEST = 1e-9  # level that is looked for
MANY = 2_000  # pairs
_REACH = 5.0  # standard deviations of a count that can happen

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Comparison:
    """One member of a family: the k-th of ``values`` minus the k-th of ``baselines``, by document; a pair
    a seed.

    ``rates``: values are 0 or 1. ``documents`` names the set that the document ids belong to: comparisons on
    the same set share its documents.
    """

    documents: str
    values: Sequence[Values]
    baselines: Sequence[Values]
    rates: bool


@dataclass(frozen=True)
class Simultaneous:
    """The interval of a difference that holds together with its family's. None where a single pair says
    nothing.

    ``mde``: the smallest true difference whose interval would exclude 0 with 80 % power, by the spread
    that was found; None where no difference would, or where there is no spread to tell by.
    """

    low: float | None
    high: float | None
    mde: float | None


NOTHING = Simultaneous(None, None, None)


def together(family: Sequence[Comparison]) -> list[Simultaneous]:
    """The simultaneous intervals of a family, in its order."""
    members = [_member(comparison) for comparison in family]
    tested = [member for member in members if member is not None]
    if not tested:
        return [NOTHING] * len(family)
    found = joint_level(_influence(tested), [member.spread for member in tested])
    results = iter(
        [_at(member, found.alpha, margins) for member, margins in zip(tested, found.margins, strict=True)]
    )
    return [NOTHING if member is None else next(results) for member in members]


# --- a family's members ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Member:
    """A comparison that has an interval. ``influence``: by document, how much it moves the difference per
    unit of weight (their squares sum to 1); empty where all pairs differ alike. ``spread``: over several
    seeds."""

    comparison: Comparison
    value: float
    influence: Mapping[tuple[str, str], float]
    spread: Spread | None


def _member(comparison: Comparison) -> _Member | None:
    documents, table = statistics.differences(comparison.values, comparison.baselines)
    judged = np.isfinite(table)
    if not judged.size or not judged.any(axis=0).all() or (len(table) < 2 and not comparison.rates):
        return None
    count = judged.sum(axis=0)
    means = np.where(judged, table, 0.0).sum(axis=0) / count
    value, seeds = float(means.mean()), table.shape[1]
    if statistics.is_constant(table):
        return _Member(comparison, value, {}, None)
    spread = statistics.spread_of(table, rates=comparison.rates) if seeds > 1 else None
    if seeds > 1 and spread is None:
        return None
    moved = np.where(judged, (table - means) / count, 0.0).sum(axis=1)
    length = math.sqrt(float((moved**2).sum()))
    named = ((comparison.documents, name) for name in documents)
    influence = {name: float(v) for name, v in zip(named, moved / length, strict=True)} if length else {}
    return _Member(comparison, value, influence, spread)


def _at(member: _Member, alpha: float, margins: NDArray[np.float64] | None) -> Simultaneous:
    """The member's interval at a level, and what it could have shown."""
    comparison = member.comparison
    if member.spread is not None:
        low, high = statistics.t_limits(member.value, member.spread, alpha)
        return Simultaneous(low, high, _over_seeds_mde(member, margins))
    one = [
        _single(values, baseline, alpha, rates=comparison.rates)
        for values, baseline in zip(comparison.values, comparison.baselines, strict=True)
    ]
    return max(one, key=lambda found: (found.high or 0.0) - (found.low or 0.0))  # seeds that are all alike


def _single(values: Values, baseline: Values, alpha: float, *, rates: bool) -> Simultaneous:
    """One seed's."""
    if rates:
        both, gained, lost, n = statistics.paired_counts(values, baseline)
        low, high = statistics.square_and_add(both, gained, lost, n, alpha)
        return Simultaneous(float(low), float(high), least_rate_difference(both, gained, lost, n, alpha))
    found = np.sort(statistics.differences([values], [baseline]).table[:, 0])
    found = found[np.isfinite(found)]
    low, high = statistics.bootstrap_mean(found, alpha=alpha)
    return Simultaneous(low, high, _mean_mde(found, alpha))


# --- the level ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """``margins``: of each member over several seeds, what its difference must exceed in each draw to be
    shown, the draw's own deviation taken off."""

    alpha: float
    margins: Sequence[NDArray[np.float64] | None]


def joint_level(
    influence: NDArray[np.float64], spreads: Sequence[Spread | None], draws: int | None = None
) -> Level:
    """The level at which the intervals of all members hold together with 95 %; at most 5 %.

    ``influence``: (documents, members), columns of length 1, or 0 of those in which all pairs differ alike;
    ``spreads``: of each member over several seeds; None of one seed.
    """
    rng = np.random.default_rng(SEED)
    factor = _factor(influence)
    if all(spread is None for spread in spreads):
        return Level(_one_seed_level(factor, rng, draws or DRAWS), [None] * len(spreads))
    documents = rng.standard_normal((draws or SEED_DRAWS, len(spreads))) @ factor
    drawn = [_draw(spread, column, rng) for spread, column in zip(spreads, documents.T, strict=True)]

    def surplus(log: float) -> float:
        held = np.ones(len(documents), dtype=bool)
        for draw in drawn:
            held &= np.abs(draw.deviation) <= draw.margin(math.exp(log))
        return float(held.mean()) - (1 - ALPHA)

    bounds = math.log(_SMALLEST), math.log(ALPHA)
    alpha = ALPHA if surplus(bounds[1]) >= 0 else math.exp(brentq(surplus, *bounds, xtol=1e-3))
    return Level(alpha, [draw.margin(alpha) - draw.deviation for draw in drawn])


def _one_seed_level(factor: NDArray[np.float64], rng: np.random.Generator, draws: int) -> float:
    largest = [
        np.abs(rng.standard_normal((min(_BLOCK, draws), len(factor))) @ factor).max(axis=1)
        for _ in range(max(1, draws // _BLOCK))
    ]
    return min(ALPHA, 2 * float(norm.sf(np.quantile(np.concatenate(largest), 1 - ALPHA))))


def _factor(influence: NDArray[np.float64]) -> NDArray[np.float64]:
    """(members, members): standard normal rows times this have the members' correlation."""
    correlation = influence.T @ influence
    np.fill_diagonal(correlation, 1.0)  # one without influence is independent
    values, vectors = np.linalg.eigh(correlation)
    factor: NDArray[np.float64] = (vectors * np.sqrt(np.maximum(values, 0.0))).T
    return factor


def _influence(members: Sequence[_Member]) -> NDArray[np.float64]:
    places = {
        name: row for row, name in enumerate(dict.fromkeys(n for one in members for n in one.influence))
    }
    influence = np.zeros((len(places), len(members)))
    for column, member in enumerate(members):
        influence[[places[name] for name in member.influence], column] = list(member.influence.values())
    return influence


@dataclass(frozen=True)
class _Draw:
    """A member's deviations from its true difference, and the margins that would have been found with
    them."""

    deviation: NDArray[np.float64]
    margin: Callable[[float], NDArray[np.float64]]


def _draw(spread: Spread | None, documents: NDArray[np.float64], rng: np.random.Generator) -> _Draw:
    if spread is None:
        return _Draw(documents, lambda alpha: np.full(len(documents), norm.isf(alpha / 2)))
    seeds = rng.standard_normal(len(documents))
    found = spread.seeds * rng.chisquare(spread.df_seeds, len(documents)) / spread.df_seeds
    variance = spread.documents + found
    share, error = found / variance, np.sqrt(variance)

    def margin(alpha: float) -> NDArray[np.float64]:
        quantiles = _quantiles(alpha, spread.df_documents, spread.df_seeds)
        found: NDArray[np.float64] = np.interp(share, _SHARES, quantiles) * error
        return found

    return _Draw(math.sqrt(spread.documents) * documents + math.sqrt(spread.seeds) * seeds, margin)


@lru_cache(64)
def _quantiles(alpha: float, df_documents: float, df_seeds: float) -> NDArray[np.float64]:
    """At _SHARES; members mostly have the same degrees of freedom."""
    found: NDArray[np.float64] = Spread(1 - _SHARES, _SHARES, df_documents, df_seeds).quantile(alpha)
    return found


# --- what could have been shown ----------------------------------------------------------------------


def _over_seeds_mde(member: _Member, margins: NDArray[np.float64] | None) -> float | None:
    """The difference that exceeds its margin in 80 % of the draws. Of rates at least what it takes where no
    pairs differ but those that make up the difference."""
    if member.spread is None or margins is None:
        return None
    least = float(np.quantile(margins, POWER))
    if member.comparison.rates:
        errors = least / math.sqrt(member.spread.variance)
        pairs = sum(len(values) for values in member.comparison.values)
        least = max(least, errors**2 / (pairs + errors**2))  # d of n pairs: d = errors sqrt(d (1 - d) / n)
    return least if least <= 1 else None


def _mean_mde(differences: NDArray[np.float64], alpha: float) -> float | None:
    """Quantiles of level and power, in standard errors."""
    n = len(differences)
    if n < 2 or np.ptp(differences) == 0:
        return None
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    least = error * float(student.isf(alpha / 2, n - 1) + student.isf(1 - POWER, n - 1))
    return least if least <= 1 else None


@lru_cache(KEPT)
def least_rate_difference(both: int, gained: int, lost: int, n: int, alpha: float) -> float | None:
    """The smallest true difference of two rates that method 10's interval at level ``alpha`` would tell
    from 0 with 80 % power, in ``n`` pairs, of which as many differ as were found, and the baseline is
    right as often.

    The power is the sum of the multinomial probabilities of the tables whose interval lies above 0; pairs
    that are true in both stand at their expectation. Where the difference is larger than the share of
    pairs that differ, all of these differ its way. Beyond MANY pairs the power is McNemar's (Connor 1987,
    Biometrics 43:207-211), to which method 10's tends. None where no difference would do.
    """
    differing, baseline = (gained + lost) / n, (both + lost) / n

    def missing(difference: float) -> float:
        return POWER - _power(difference, differing, baseline, n, alpha)

    start = _root(lambda difference: _missing_in_many(difference, differing, n, alpha), 1e-9, 1.0)
    if n > MANY or start is None:
        return start
    near = start / 1.3, min(1.0, start * 1.3)  # found in half as many steps
    found = _root(missing, *near)
    return _root(missing, 1e-9, 1.0) if found is None else found


def _root(missing: Callable[[float], float], low: float, high: float) -> float | None:
    """Where a falling function crosses 0; None where it does not."""
    if missing(low) < 0 or missing(high) > 0:
        return None
    return float(brentq(missing, low, high, xtol=1e-4))


def _missing_in_many(difference: float, differing: float, n: int, alpha: float) -> float:
    share = max(differing, difference)
    to_level = float(norm.isf(alpha / 2)) * math.sqrt(share) - math.sqrt(n) * difference
    return to_level + float(norm.isf(1 - POWER)) * math.sqrt(share - difference**2)


def _power(difference: float, differing: float, baseline: float, n: int, alpha: float) -> float:
    share = max(differing, difference)
    up, down = (share + difference) / 2, (share - difference) / 2
    both = min(max(baseline - down, 0.0), 1 - share)
    gained, lost = np.meshgrid(_counts(up, n), _counts(down, n))
    rest = n - gained - lost
    possible = rest >= 0
    gained, lost, rest = gained[possible], lost[possible], rest[possible]
    logs = gammaln(n + 1) - gammaln(gained + 1) - gammaln(lost + 1) - gammaln(rest + 1)
    for count, probability in ((gained, up), (lost, down), (rest, 1 - share)):
        logs = logs + count * math.log(probability) if probability > 0 else np.where(count > 0, -np.inf, logs)
    low, _ = statistics.square_and_add(
        rest * (both / (1 - share) if share < 1 else 0.0), gained, lost, n, alpha
    )
    return float(np.exp(logs[low > 0]).sum())


def _counts(probability: float, n: int) -> NDArray[np.float64]:
    """Those of n that can happen, as far as it matters."""
    middle, reach = n * probability, _REACH * math.sqrt(n * probability * (1 - probability)) + _REACH
    return np.arange(max(0, math.floor(middle - reach)), min(n, math.ceil(middle + reach)) + 1, dtype=float)
