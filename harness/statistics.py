"""Rates, means, their paired differences, and what is left of them after Holm.

Pure functions over per-document values. Everything is a fraction in [0, 1], or a difference of two in
[-1, 1]; intervals are 95 %, tests two-sided. A value of None is an answer that could not be judged: it is
left out of the figure and counted beside it. Resampling is seeded and doesn't see the order of its input,
so equal values give equal figures. The libraries (scipy, statsmodels) do the statistics.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import DegenerateDataWarning, bootstrap, permutation_test
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05  # of the 95 % intervals
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
    if n == 0:
        return Estimate(None, None, None, 0, unjudged)
    low, high = _wilson(sum(judged), n)
    return Estimate(sum(judged) / n, low, high, n, unjudged)


def mean(values: Iterable[float | None]) -> Estimate:
    """The mean of the judged values with a BCa bootstrap interval (Efron 1987).

    Where BCa is undefined the interval is the percentile one: equal values give one of no width. A single
    value has no interval. Raises ValueError for a value that is not finite.
    """
    everything = list(values)
    judged = _numbers(value for value in everything if value is not None)
    unjudged = len(everything) - len(judged)
    if len(judged) == 0:
        return Estimate(None, None, None, 0, unjudged)
    low, high = _bootstrap_mean(judged)
    return Estimate(float(judged.mean()), low, high, len(judged), unjudged)


def paired_rate_difference(
    values: Mapping[str, bool | float | None], baseline: Mapping[str, bool | float | None]
) -> Difference:
    """The difference of two rates on the same documents: exact McNemar p, square-and-add interval.

    Source of the interval: method 10 of Newcombe 1998, Statistics in Medicine 17:2635-2650. Both rates'
    Wilson limits, combined with the correlation (phi) of the two, continuity-corrected where positive.
    """
    pairs = [(_binary(value), _binary(reference)) for value, reference in _pairs(values, baseline)]
    n = len(pairs)
    if n == 0:
        return Difference(None, None, None, None, 0)
    both, gained, lost = (pairs.count(kind) for kind in ((True, True), (True, False), (False, True)))
    table = [[both, gained], [lost, n - both - gained - lost]]
    value = (gained - lost) / n
    low, high = _square_and_add(both, gained, lost, n)
    return Difference(value, low, high, float(mcnemar(table, exact=True).pvalue), n)


def paired_mean_difference(
    values: Mapping[str, float | None], baseline: Mapping[str, float | None]
) -> Difference:
    """The mean difference on the same documents: bootstrap interval, paired permutation p.

    The permutation test swaps the two values of a document, which flips the sign of its difference; it is
    exact where all swaps number fewer than the resamples. One pair shows nothing: no interval, p = 1.
    """
    differences = _numbers(value - reference for value, reference in _pairs(values, baseline))
    n = len(differences)
    if n == 0:
        return Difference(None, None, None, None, 0)
    low, high = _bootstrap_mean(differences)
    return Difference(float(differences.mean()), low, high, _permutation_p(differences), n)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values (Holm 1979) of one family. None is no comparison: not counted, and kept."""
    tested = [p for p in p_values if p is not None]
    adjusted = iter(multipletests(tested, method="holm")[1].tolist() if tested else [])
    return [None if p is None else next(adjusted) for p in p_values]


def _binary(outcome: bool | float) -> bool:
    if outcome not in (0, 1):
        raise ValueError(f"a rate needs outcomes of 0 or 1, not {outcome!r}")
    return bool(outcome)


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


def _wilson(successes: int, n: int) -> tuple[float, float]:
    low, high = proportion_confint(successes, n, alpha=ALPHA, method="wilson")
    return float(low), float(high)


def _square_and_add(both: int, gained: int, lost: int, n: int) -> tuple[float, float]:
    """Newcombe's method 10 from the paired table's counts: true in both, only the first, only the second."""
    first, second, neither = both + gained, both + lost, n - both - gained - lost
    (low_1, high_1), (low_2, high_2) = _wilson(first, n), _wilson(second, n)
    below_1, above_1 = first / n - low_1, high_1 - first / n
    below_2, above_2 = second / n - low_2, high_2 - second / n

    spread = first * (n - first) * second * (n - second)
    covariance = both * neither - gained * lost  # times n squared
    corrected = max(covariance - n / 2, 0.0) if covariance > 0 else covariance
    phi = corrected / math.sqrt(spread) if spread else 0.0

    value = (gained - lost) / n
    down = math.sqrt(below_1**2 - 2 * phi * below_1 * above_2 + above_2**2)
    up = math.sqrt(above_1**2 - 2 * phi * above_1 * below_2 + below_2**2)
    return max(-1.0, value - down), min(1.0, value + up)


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


def _bootstrap_mean(values: NDArray[np.float64]) -> tuple[float | None, float | None]:
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
                n_resamples=RESAMPLES,
                batch=_batch(len(values)),
                confidence_level=1 - ALPHA,
                method=method,
                rng=np.random.default_rng(SEED),
            ).confidence_interval
        if math.isfinite(interval.low) and math.isfinite(interval.high):
            break
    return float(interval.low), float(interval.high)
