"""Rates, means and their paired differences, in one seed and over several; Holm's correction of p-values.

Pure functions over per-document values. Everything is a fraction in [0, 1], or a difference of two in
[-1, 1]; intervals are 95 % unless a level ``alpha`` is given, tests two-sided. A value of None is an
answer that could not be judged: it is left out of the figure and counted beside it. Resampling is seeded
and doesn't see the order of its input, so equal values give equal figures. The libraries (scipy,
statsmodels) do the statistics; ``harness simulate`` prints how often the intervals hold what they
promise.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from harness.leaderboard.spread import ALPHA, score_limits, spread_of

RESAMPLES = 9_999  # bootstrap and permutation: the smallest two-sided p is 2 / 10,000
SEED = 0
_BATCH_VALUES = 400_000  # floats resampled at a time: bounds the memory, whatever the number of documents


@dataclass(frozen=True, slots=True)
class Estimate:
    """A rate or mean with its interval; ``n`` judged and ``unjudged`` documents. None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    unjudged: int = 0


@dataclass(frozen=True, slots=True)
class Difference:
    """``values`` minus ``baseline`` over the ``n`` documents judged in both. None where undefined."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int


def rate(outcomes: Iterable[bool | float | None]) -> Estimate:
    """The share of outcomes that are true, with Wilson's interval (Wilson 1927), over the judged ones.

    Raises ValueError for an outcome that is neither true (1) nor false (0).
    """
    everything = list(outcomes)
    judged = [_binary(outcome) for outcome in everything if outcome is not None]
    n, unjudged = len(judged), len(everything) - len(judged)
    if not n:
        return Estimate(None, None, None, 0, unjudged)
    low, high = map(float, wilson(sum(judged), n))
    return Estimate(sum(judged) / n, low, high, n, unjudged)


def mean(values: Iterable[float | None]) -> Estimate:
    """The mean of the judged values with a BCa bootstrap interval (Efron 1987).

    Where BCa is undefined the interval is the percentile one: equal values give one of no width. A single
    value has no interval. Raises ValueError for a value that is not finite.
    """
    everything = list(values)
    judged = _numbers(value for value in everything if value is not None)
    unjudged = len(everything) - len(judged)
    if not len(judged):
        return Estimate(None, None, None, 0, unjudged)
    low, high = bootstrap_mean(judged)
    return Estimate(float(judged.mean()), low, high, len(judged), unjudged)


def paired_rate_difference(
    values: Mapping[str, bool | float | None], baseline: Mapping[str, bool | float | None]
) -> Difference:
    """The difference of two rates on the same documents: exact McNemar p, square-and-add interval.

    Source of the interval: method 10 of Newcombe 1998, Statistics in Medicine 17:2635-2650. Both rates'
    Wilson limits, combined with the correlation (phi) of the two, continuity-corrected where positive.
    """
    both, gained, lost, n = paired_counts(values, baseline)
    if not n:
        return Difference(None, None, None, None, 0)
    return _rate_difference(both, gained, lost, n)


def paired_counts(
    values: Mapping[str, bool | float | None], baseline: Mapping[str, bool | float | None]
) -> tuple[int, int, int, int]:
    """How many documents are true in both, in ``values`` alone and in ``baseline`` alone, and how many were
    judged in both."""
    pairs = [(_binary(value), _binary(reference)) for value, reference in _pairs(values, baseline)]
    both, gained, lost = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    return both, gained, lost, len(pairs)


@lru_cache(2**14)  # over many seeds the same counts come again and again
def _rate_difference(both: int, gained: int, lost: int, n: int) -> Difference:
    low, high = map(float, square_and_add(both, gained, lost, n))
    p = float(mcnemar([[0, gained], [lost, 0]], exact=True).pvalue)  # pairs that agree say nothing
    return Difference((gained - lost) / n, low, high, p, n)


def paired_mean_difference(
    values: Mapping[str, float | None], baseline: Mapping[str, float | None]
) -> Difference:
    """The mean difference on the same documents: bootstrap interval, paired permutation p.

    The permutation test swaps the two values of a document, which flips the sign of its difference; it is
    exact where all swaps number fewer than the resamples. One pair shows nothing: no interval, p = 1.
    """
    differences = _numbers(value - reference for value, reference in _pairs(values, baseline))
    n = len(differences)
    if not n:
        return Difference(None, None, None, None, 0)
    low, high = bootstrap_mean(differences)
    return Difference(float(differences.mean()), low, high, _permutation_p(differences), n)


# --- several seeds -----------------------------------------------------------------------------------


def rate_over_seeds(seeds: Sequence[Mapping[str, bool | float | None]]) -> Estimate:
    """The mean of several seeds' rates on the same documents; ``n`` and ``unjudged`` count answers.

    Wilson's interval, with the effective sample size and the quantile that the rate's ``Spread`` gives it
    (as Korn and Graubard 1998, Survey Methodology 24:193-201, do for clustered samples): a document's answers
    in several seeds are no independent ones. One seed, or several equal ones, have ``rate``'s interval.
    """
    if len(seeds) < 2:
        return rate(seeds[0].values())
    table = _table([{name: _judged(value) for name, value in seed.items()} for seed in seeds])
    value, n = _mean_of_means(table), int(np.isfinite(table).sum())
    unjudged = sum(len(seed) for seed in seeds) - n
    spread = spread_of(table, rates=True, exactly=True)
    if value is None or spread is None:
        return Estimate(value, None, None, n, unjudged)
    low, high = score_limits(value, spread, n)
    return Estimate(value, float(low), float(high), n, unjudged)


def mean_over_seeds(seeds: Sequence[Mapping[str, float | None]]) -> Estimate:
    """The mean of several seeds' means on the same documents, with the t interval of its ``Spread``."""
    if len(seeds) < 2:
        return mean(seeds[0].values())
    table = _table(seeds)
    value, n = _mean_of_means(table), int(np.isfinite(table).sum())
    unjudged = sum(len(seed) for seed in seeds) - n
    spread = spread_of(table, rates=False)
    if value is None or spread is None:
        return Estimate(value, None, None, n, unjudged)
    margin = float(spread.margin())
    return Estimate(value, max(0.0, value - margin), min(1.0, value + margin), n, unjudged)


def difference_over_seeds(
    values: Sequence[Mapping[str, float | None]],
    baselines: Sequence[Mapping[str, float | None]],
    *,
    rates: bool,
) -> Difference:
    """The mean of several seeds' paired differences, of ``rates`` or of means: the k-th of ``values`` is
    compared with the k-th of ``baselines``, by document. ``n`` counts pairs; two seeds or more.

    A t interval by the differences' ``Spread``; p is the level at which it would just reach 0. Where all
    pairs differ alike (none does, as a rule) the seeds say no more than one of them: the comparison of
    the least certain is given.
    """
    table = differences(values, baselines)
    value, n = _mean_of_means(table), int(np.isfinite(table).sum())
    spread = spread_of(table, rates=rates)
    if value is None or spread is None:
        return Difference(value, None, None, None, n)
    if is_constant(table):
        compare = paired_rate_difference if rates else paired_mean_difference
        found = [compare(*pair) for pair in zip(values, baselines, strict=True)]
        return replace(max(found, key=lambda one: (one.high or 0.0) - (one.low or 0.0)), n=n)
    margin = float(spread.margin())
    return Difference(value, max(-1.0, value - margin), min(1.0, value + margin), spread.p(value), n)


def differences(
    values: Sequence[Mapping[str, float | None]], baselines: Sequence[Mapping[str, float | None]]
) -> NDArray[np.float64]:
    """(documents, seeds): values minus baselines, nan where either was not judged."""
    return _table([dict(_differences(*pair)) for pair in zip(values, baselines, strict=True)])


def is_constant(table: NDArray[np.float64]) -> bool:
    """Whether all of a table's values are the same."""
    return not np.ptp(table[np.isfinite(table)])


def _table(seeds: Sequence[Mapping[str, float | None]]) -> NDArray[np.float64]:
    """(documents, seeds), sorted by document; nan where there is no judged value."""
    documents = sorted({name for seed in seeds for name in seed})
    rows = [
        [math.nan if (v := seed.get(name)) is None else _finite(v) for seed in seeds] for name in documents
    ]
    return np.array(rows, dtype=np.float64).reshape(len(documents), len(seeds))


def _mean_of_means(table: NDArray[np.float64]) -> float | None:
    judged = np.isfinite(table)
    if not judged.any(axis=0).all():
        return None
    return float(np.mean([column[there].mean() for column, there in zip(table.T, judged.T, strict=True)]))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (Holm 1979) of one family. None is no comparison: not counted, and kept.

    By hand: statsmodels' ``multipletests``, which the tests hold this against, collects garbage at each call,
    and a run of many seeds has hundreds of families.
    """
    adjusted = list(p_values)
    tested = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    highest = 0.0
    for rank, (p, place) in enumerate(tested):
        highest = max(highest, min(1.0, p * (len(tested) - rank)))
        adjusted[place] = highest
    return adjusted


def holm_levels(p_values: Sequence[float | None]) -> list[float | None]:
    """The level that each p-value must not exceed to be found by Holm at 5 %, the others as they are: 5 %
    over all those that the others leave unfound, itself included."""
    tested = sorted(p for p in p_values if p is not None)
    found = tested[: _rejected(tested)]
    levels: list[float | None] = []
    for p in p_values:
        if p is None:
            levels.append(None)
            continue
        before = [one for place, one in enumerate(tested) if place != tested.index(p)]
        others = _rejected([*before, math.inf]) if p in found else len(found)
        levels.append(ALPHA / (len(tested) - others))
    return levels


def _rejected(ordered: Sequence[float]) -> int:
    """How many of the sorted p-values Holm finds at 5 %."""
    steps = (p <= ALPHA / (len(ordered) - rank) for rank, p in enumerate(ordered))
    return sum(itertools.takewhile(bool, steps))


def _binary(outcome: bool | float) -> bool:
    if outcome not in (0, 1):
        raise ValueError(f"a rate needs outcomes of 0 or 1, not {outcome!r}")
    return bool(outcome)


def _judged(outcome: bool | float | None) -> float | None:
    return None if outcome is None else float(_binary(outcome))


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("a mean needs finite values")
    return value


def _numbers(values: Iterable[float]) -> NDArray[np.float64]:
    """Sorted, so that a seeded resampling gives the same for the same values in any order."""
    numbers = np.sort(np.fromiter(values, dtype=np.float64))
    if not np.isfinite(numbers).all():
        raise ValueError("a mean needs finite values")
    return numbers


def _pairs(
    values: Mapping[str, float | None], baseline: Mapping[str, float | None]
) -> list[tuple[float, float]]:
    """The documents judged in both."""
    return [
        (value, reference)
        for document, value in values.items()
        if value is not None and (reference := baseline.get(document)) is not None
    ]


def _differences(
    values: Mapping[str, float | None], baseline: Mapping[str, float | None]
) -> Iterable[tuple[str, float]]:
    for document, value in values.items():
        if value is not None and (reference := baseline.get(document)) is not None:
            yield document, value - reference


def wilson(successes: Any, n: int, alpha: float = ALPHA) -> tuple[Any, Any]:
    """Wilson's limits of a rate; of many where ``successes`` is an array."""
    low, high = proportion_confint(successes, n, alpha=alpha, method="wilson")
    return low, high


def square_and_add(both: Any, gained: Any, lost: Any, n: int, alpha: float = ALPHA) -> tuple[Any, Any]:
    """Newcombe's method 10 from the paired table's counts: true in both, only the first, only the second.
    Of many tables where the counts are arrays."""
    first, second, neither = both + gained, both + lost, n - both - gained - lost
    (low_1, high_1), (low_2, high_2) = wilson(first, n, alpha), wilson(second, n, alpha)
    below_1, above_1 = first / n - low_1, high_1 - first / n
    below_2, above_2 = second / n - low_2, high_2 - second / n

    spread = first * (n - first) * second * (n - second)
    covariance = both * neither - gained * lost  # times n squared
    corrected = np.where(covariance > 0, np.maximum(covariance - n / 2, 0.0), covariance)
    phi = corrected / np.sqrt(np.maximum(spread, 1))  # a spread of 0 has no covariance either

    value = (gained - lost) / n
    down = np.sqrt(np.maximum(below_1**2 - 2 * phi * below_1 * above_2 + above_2**2, 0.0))
    up = np.sqrt(np.maximum(above_1**2 - 2 * phi * above_1 * below_2 + below_2**2, 0.0))
    return np.maximum(value - down, -1.0), np.minimum(value + up, 1.0)


def _permutation_p(differences: NDArray[np.float64]) -> float:
    if len(differences) < 2:
        return 1.0
    test = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=_batch(len(differences)),
        alternative="two-sided",
        rng=np.random.default_rng(SEED),
    )
    return float(test.pvalue)


def _batch(n: int) -> int:
    return max(1, _BATCH_VALUES // n)


def bootstrap_mean(
    values: NDArray[np.float64], resamples: int = RESAMPLES, alpha: float = ALPHA
) -> tuple[float | None, float | None]:
    """The BCa interval of a mean, the percentile one where that is undefined. None for a single value."""
    if len(values) < 2:
        return None, None
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateDataWarning)
            warnings.simplefilter("ignore", RuntimeWarning)  # BCa's 0 / 0 on equal values
            interval = bootstrap(
                (values,),
                np.mean,
                vectorized=True,
                n_resamples=resamples,
                batch=_batch(len(values)),
                confidence_level=1 - alpha,
                method=method,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        if np.isfinite(interval).all():
            break
    return float(interval.low), float(interval.high)
