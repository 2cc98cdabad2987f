"""Single-step max-T against distributions that are known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from harness.leaderboard.spread import Spread
from harness.studies.max_t import joint_level

DRAWS = 2**16


def unit(columns: int, shared: float, rng: np.random.Generator) -> np.ndarray:
    """Influences (5,000 documents) whose columns correlate by ``shared``."""
    common = rng.standard_normal((5_000, 1))
    own = rng.standard_normal((5_000, columns))
    found = np.sqrt(shared) * common + np.sqrt(1 - shared) * own
    found -= found.mean(axis=0)
    return np.asarray(found / np.sqrt((found**2).sum(axis=0)))


@pytest.mark.parametrize("members", [1, 2, 14])
def test_independent_comparisons_have_sidaks_level(members: int) -> None:
    influence = unit(members, 0.0, np.random.default_rng(0))
    assert joint_level(influence, draws=DRAWS) == pytest.approx(1 - 0.95 ** (1 / members), rel=0.05)


def test_comparisons_that_share_documents_have_the_level_of_their_correlation() -> None:
    influence = unit(4, 0.5, np.random.default_rng(1))
    z = norm.isf(joint_level(influence, draws=DRAWS) / 2)
    matrix = influence.T @ influence
    held = multivariate_normal(cov=matrix, seed=0).cdf(np.full(4, z), lower_limit=np.full(4, -z))
    assert held == pytest.approx(0.95, abs=0.003)


def test_copies_of_one_comparison_count_once() -> None:
    one = unit(1, 0.0, np.random.default_rng(2))
    assert joint_level(np.repeat(one, 8, axis=1), draws=DRAWS) == pytest.approx(0.05, rel=0.03)


def test_comparisons_without_a_pair_that_differs_count_as_independent() -> None:
    assert joint_level(np.zeros((10, 5)), draws=DRAWS) == pytest.approx(1 - 0.95 ** (1 / 5), rel=0.05)


def test_over_seeds_it_is_never_above_five_percent_and_falls_with_the_family() -> None:
    def level(members: int) -> float:
        influence = unit(members, 0.0, np.random.default_rng(3))
        return joint_level(influence, [Spread(0.0, 1.0, 329, 4)] * members, draws=2**14)

    assert level(1) == pytest.approx(0.05, rel=0.06)
    # seeds alone: independent t with 4 degrees of freedom
    assert level(6) == pytest.approx(1 - 0.95 ** (1 / 6), rel=0.12)
