"""How much a mean over documents and seeds varies: its variance, its quantile and the limits that follow.

Tables are (documents, seeds), or many of such; values are fractions in [0, 1] or differences of two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm
from scipy.stats import t as student

ALPHA = 0.05  # of the 95 % intervals
SMALLEST_P = 1e-30  # of several seeds' differences
_NOISE = 1e-12  # mean squares below are rounding


@dataclass(frozen=True, slots=True)
class Spread:
    """The variance of a mean over documents crossed with seeds, both random: y = m + document + seed + rest.

    ``documents`` is the part that more documents would lower and more seeds would not, ``seeds`` that of the
    seeds' means around each other, the rest included. With two-way mean squares over n documents and S seeds:

        documents = max(0, MS_documents - MS_rest) / (n S)        seeds = MS_seeds / (n S)

    Their sum is the usual variance of a mean in a crossed design (Cameron, Gelbach and Miller 2011, Journal
    of Business & Economic Statistics 29:238-249: clusters both ways, less what counts twice). Its quantile is
    midway between Cochran's (1964, Biometrics 20:191-195), which is a little wide with three seeds, and
    Satterthwaite's (1946, Biometrics Bulletin 2:110-114), which is a little narrow (``harness simulate``).
    Where documents do not matter both are t with ``df_seeds``. The fields may be arrays, one element a study.
    """

    documents: Any
    seeds: Any
    df_documents: float
    df_seeds: float

    @property
    def variance(self) -> Any:
        return self.documents + self.seeds

    def quantile(self, alpha: float = ALPHA) -> Any:
        """Two-sided, of the mean's deviation in standard errors."""
        share = self.seeds / np.maximum(self.variance, np.finfo(np.float64).tiny)
        documents, seeds = (student.isf(alpha / 2, df) for df in (self.df_documents, self.df_seeds))
        cochran = documents + share * (seeds - documents)
        with np.errstate(divide="ignore"):
            df = 1 / ((1 - share) ** 2 / self.df_documents + share**2 / self.df_seeds)
        satterthwaite = student.isf(alpha / 2, df)
        return (cochran + satterthwaite) / 2

    def margin(self, alpha: float = ALPHA) -> Any:
        """Half the interval's width."""
        return self.quantile(alpha) * np.sqrt(self.variance)

    def p(self, value: float) -> float:
        """The two-sided level at which the interval around a value reaches 0; the spread is not 0."""
        if value == 0:
            return 1.0
        least = -math.log(SMALLEST_P)
        if self.margin(SMALLEST_P) < abs(value):
            return SMALLEST_P
        return math.exp(-brentq(lambda log: float(self.margin(math.exp(-log))) - abs(value), 0.0, least))


def crossed_spread(
    table: NDArray[np.float64], *, rates: bool, exactly: bool = False, weight: float | None = None
) -> Spread:
    """The ``Spread`` of the means of complete tables (..., documents, seeds), two or more of both.

    ``rates``: answers are 0 or 1, or differences of such. Seeds whose answers are not the same are then taken
    to deviate by half an answer at least: equal counts may be chance. ``exactly``: a rate's variance follows
    from its value, as Wilson's interval takes it (n, not n - 1; normal). ``weight``: the sum of the
    documents' squared weights, where the mean weighs them unequally.
    """
    n, seeds = table.shape[-2:]
    documents, between, rest = mean_squares(table)
    documents = documents * (n - 1) / n if exactly else documents
    if rates:
        between = np.where(rest > _NOISE, np.maximum(between, 1 / (4 * n)), between)
    shared = np.maximum(documents - rest, 0.0) / seeds * (1 / n if weight is None else weight)
    return Spread(shared, between / (n * seeds), math.inf if exactly else n - 1, seeds - 1)


def mean_squares(table: NDArray[np.float64]) -> tuple[Any, Any, Any]:
    """Of documents, seeds and the rest, in a two-way analysis of variance without replication."""
    n, seeds = table.shape[-2:]
    total = table.mean(axis=(-2, -1), keepdims=True)
    by_document = table.mean(axis=-1, keepdims=True) - total
    by_seed = table.mean(axis=-2, keepdims=True) - total
    rest = table - total - by_document - by_seed

    def squares(part: NDArray[np.float64]) -> Any:
        return (part**2).sum(axis=(-2, -1))

    return (
        seeds * squares(by_document) / (n - 1),
        n * squares(by_seed) / (seeds - 1),
        squares(rest) / ((n - 1) * (seeds - 1)),
    )


def score_limits(value: Any, spread: Spread, answers: int) -> tuple[Any, Any]:
    """Wilson's limits of rates whose variance is not p (1 - p) / n. The effective sample size is at most all
    the ``answers``; where every answer is the same, it is a seed's."""
    binomial, z = value * (1 - value), float(norm.isf(ALPHA / 2))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = spread.margin() ** 2 / binomial
    ratio = np.where(binomial > 0, found, z**2 * (spread.df_seeds + 1) / answers)  # t² / n
    ratio = np.maximum(ratio, z**2 / answers)
    centre = (value + ratio / 2) / (1 + ratio)
    margin = np.sqrt(ratio * (binomial + ratio / 4)) / (1 + ratio)
    return np.maximum(centre - margin, 0.0), np.minimum(centre + margin, 1.0)


def spread_of(table: NDArray[np.float64], *, rates: bool, exactly: bool = False) -> Spread | None:
    """Of one table (documents, seeds), nan where unjudged. The mean squares are those of the documents judged
    in every seed; None where these are too few."""
    judged = np.isfinite(table)
    complete = table[judged.all(axis=1)]
    if min(complete.shape) < 2:
        return None
    weights = (judged / judged.sum(axis=0)).mean(axis=1)
    weight = float((weights**2).sum())
    return crossed_spread(complete, rates=rates, exactly=exactly, weight=weight)
