"""Single-step max-T, the rule that was tried for the star and not taken (DESIGN.md, "Numbers").

It gives each comparison of a family its interval at a level at which all of them hold the truth together
with 95 % (Hothorn, Bretz and Westfall 2008, Biometrical Journal 50:346-363), so that a star would be an
interval that excludes 0. ``family_simulation.py`` puts its power beside Holm's.

The level carries over how the comparisons hang together. Documents get N(0, 1) weights (the multiplier
bootstrap of Chernozhukov, Chetverikov and Kato 2013, Annals of Statistics 41:2786-2819): comparisons
share each document's difficulty, and vanilla's answer to it. Seeds' means and mean squares are drawn
anew, which gives each comparison the t distribution of its spread; a few seeds do not tell how they
correlate, so they are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm

from harness.leaderboard.detectable import redrawn
from harness.leaderboard.spread import ALPHA, Spread
from harness.leaderboard.statistics import SEED

_SMALLEST = 1e-9  # level that is looked for


def joint_level(
    influence: NDArray[np.float64], spreads: Sequence[Spread] | None = None, *, draws: int
) -> float:
    """The level at which the intervals of all members hold together with 95 %; at most 5 %.

    ``influence``: (documents, members), how much each document moves a difference; columns of length 1,
    or 0 of those in which all pairs differ alike, which count as independent. ``spreads``: of each member
    over several seeds; None for one seed.
    """
    rng = np.random.default_rng(SEED)
    correlation = influence.T @ influence
    np.fill_diagonal(correlation, 1.0)
    values, vectors = np.linalg.eigh(correlation)
    documents = rng.standard_normal((draws, len(values))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    if spreads is None:
        largest = np.abs(documents).max(axis=1)
        return min(ALPHA, 2 * float(norm.sf(np.quantile(largest, 1 - ALPHA))))
    drawn = [redrawn(spread, column, rng) for spread, column in zip(spreads, documents.T, strict=True)]

    def surplus(log: float) -> float:
        held = np.ones(draws, dtype=bool)
        for one in drawn:
            held &= np.abs(one.deviation) <= one.margin(math.exp(log))
        return float(held.mean()) - (1 - ALPHA)

    bounds = math.log(_SMALLEST), math.log(ALPHA)
    return ALPHA if surplus(bounds[1]) >= 0 else math.exp(brentq(surplus, *bounds, xtol=1e-3))
