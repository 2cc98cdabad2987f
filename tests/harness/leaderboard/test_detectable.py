"""The smallest difference that a comparison would have shown, against simulated runs of the test itself."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom, ttest_1samp
from statsmodels.stats.power import TTestPower

from harness.leaderboard import detectable, statistics
from harness.leaderboard.detectable import (
    Comparison,
    least_difference,
    of_means,
    of_rates,
    over_seeds,
    redrawn,
)
from harness.leaderboard.spread import Spread, crossed_spread


def comparison(table: NDArray[np.float64], *, rates: bool) -> Comparison:
    """Whose differences are those of a table (documents, seeds)."""
    seeds = [{str(i): float(v) for i, v in enumerate(seed)} for seed in np.maximum(table, 0).T]
    baselines = [{str(i): float(v) for i, v in enumerate(seed)} for seed in np.maximum(-table, 0).T]
    return Comparison(seeds, baselines, rates)


@pytest.mark.parametrize(("differing", "n"), [(60, 330), (0, 330), (90, 200), (7, 100)])
@pytest.mark.parametrize("alpha", [0.05, 0.0036])
def test_exact_mcnemar_finds_it_in_four_of_five_runs(differing: int, n: int, alpha: float) -> None:
    least = of_rates(differing, n, alpha)
    assert least is not None
    share = max(differing / n, least)
    up, down = (share + least) / 2, (share - least) / 2
    counts = np.random.default_rng(1).multinomial(n, [up, down, 1 - share], 40_000)
    gained, lost = counts[:, 0], counts[:, 1]
    p = np.minimum(1, 2 * binom.cdf(np.minimum(gained, lost), gained + lost, 0.5))
    assert ((p <= alpha) & (gained > lost)).mean() == pytest.approx(0.8, abs=0.01)


def test_too_few_pairs_find_no_difference() -> None:
    assert of_rates(1, 3, 0.05) is None  # three of three one way: p = 0.25
    assert of_rates(0, 6, 0.05) is not None  # six of six: p = 0.03
    assert of_rates(0, 6, 0.01) is None


def test_published_sample_sizes_are_near() -> None:
    # Connor 1987 (Biometrics 43:207-211): 155 pairs find 0.30 against 0.15 with 80 % by the test without
    # correction; the exact one is a little weaker, and so finds a little larger differences
    least = of_rates(round(0.45 * 155), 155, 0.05)
    assert least is not None
    assert 0.15 < least < 0.165


@pytest.mark.parametrize(("deviation", "n", "alpha"), [(0.2, 200, 0.05), (0.2, 200, 0.004), (0.1, 12, 0.02)])
def test_the_paired_t_test_finds_it_in_four_of_five_runs(deviation: float, n: int, alpha: float) -> None:
    least = of_means(deviation, n, alpha)
    assert least is not None
    assert TTestPower().power(least / deviation, nobs=n, alpha=alpha) == pytest.approx(0.8, abs=0.001)
    runs = np.random.default_rng(2).normal(least, deviation, (20_000, n))
    assert (ttest_1samp(runs, 0.0, axis=1).pvalue <= alpha).mean() == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize(("document", "seed"), [(0.3, 0.02), (0.3, 0.0), (0.0, 0.05)])
def test_over_seeds_it_is_found_in_four_of_five_runs(
    seeds: int, alpha: float, document: float, seed: float
) -> None:
    """Runs of normal document and seed effects and rest, each tested with the spread that it shows itself."""
    n, rest, runs = 200, 0.3, 4_000
    rng = np.random.default_rng(3)
    documents = Spread(document**2 / n, (n * seed**2 + rest**2) / (n * seeds), n - 1, seeds - 1)
    least = over_seeds(documents, alpha)
    assert least is not None
    table = (
        least
        + document * rng.standard_normal((runs, n, 1))
        + seed * rng.standard_normal((runs, 1, seeds))
        + rest * rng.standard_normal((runs, n, seeds))
    )
    found = table.mean(axis=(1, 2)) > crossed_spread(table, rates=False).margin(alpha)
    assert found.mean() == pytest.approx(0.8, abs=0.02)  # 4,000 runs: 0.6 points of standard error


def test_redrawn_differences_have_the_spread_that_they_are_drawn_from() -> None:
    rng = np.random.default_rng(4)
    spread = Spread(0.0004, 0.0009, 99, 4)
    drawn = redrawn(spread, rng.standard_normal(100_000), rng)
    assert drawn.deviation.mean() == pytest.approx(0, abs=0.001)
    assert drawn.deviation.var() == pytest.approx(0.0013, rel=0.02)
    # the interval that each would have found holds the truth about as often as it says
    assert (np.abs(drawn.deviation) <= drawn.margin(0.05)).mean() == pytest.approx(0.95, abs=0.015)
    alone = redrawn(Spread(0.0, 0.0009, 99, 4), np.zeros(100_000), rng)
    assert (np.abs(alone.deviation) <= alone.margin(0.05)).mean() == pytest.approx(
        0.95, abs=0.003
    )  # t with 4


def test_a_comparison_is_measured_by_its_kind() -> None:
    rng = np.random.default_rng(5)
    table = rng.choice([-1.0, 0.0, 1.0], size=(100, 3), p=[0.1, 0.75, 0.15])
    one = int((table[:, :1] != 0).sum())
    assert least_difference(comparison(table[:, :1], rates=True), 0.02) == of_rates(one, 100, 0.02)
    over = least_difference(comparison(table, rates=True), 0.02)
    assert over == over_seeds(crossed_spread(table, rates=True), 0.02)
    means = rng.normal(0.01, 0.1, (50, 1))
    expected = of_means(float(means.std(ddof=1)), 50, 0.02)
    assert least_difference(comparison(means, rates=False), 0.02) == pytest.approx(expected)


def test_unjudged_answers_are_left_out() -> None:
    values: Mapping[str, float | None] = {"a": 1.0, "b": None, "c": 0.0, **{str(i): 1.0 for i in range(40)}}
    baseline: Mapping[str, float | None] = {"a": 0.0, "b": 1.0, "c": None, **{str(i): 1.0 for i in range(40)}}
    assert least_difference(Comparison([values], [baseline], rates=True), 0.05) == of_rates(1, 41, 0.05)


def test_rates_that_hardly_differ_need_as_many_pairs_that_do() -> None:
    # one pair of 990 differs: a true difference d makes d of them differ, whose variance is d (1 - d) / 990
    rare = np.zeros((330, 3))
    rare[0, 0] = 1
    least = least_difference(comparison(rare, rates=True), 0.05)
    spread = crossed_spread(rare, rates=True)
    bare = over_seeds(spread, 0.05)
    assert least is not None
    assert bare is not None
    errors = bare / math.sqrt(float(spread.variance))
    assert least > bare
    assert least == pytest.approx(errors * math.sqrt(least * (1 - least) / 990))


def test_two_seeds_are_several() -> None:
    table = np.random.default_rng(7).choice([-1.0, 0.0, 1.0], size=(100, 2), p=[0.1, 0.75, 0.15])
    spread = crossed_spread(table, rates=True)
    assert least_difference(comparison(table, rates=True), 0.05) == over_seeds(spread, 0.05)


def test_of_means_over_seeds_no_pairs_are_counted() -> None:
    table = np.zeros((330, 3))
    table[0, 0] = 0.5
    spread = crossed_spread(table, rates=False)
    assert least_difference(comparison(table, rates=False), 0.05) == over_seeds(spread, 0.05)


def test_a_seed_without_a_judged_pair_tells_nothing() -> None:
    judged = {str(i): float(i % 3 == 0) for i in range(60)}
    unjudged: dict[str, float | None] = dict.fromkeys(judged)
    none = dict.fromkeys(judged, 0.0)
    assert least_difference(Comparison([judged, unjudged], [none, none], rates=True), 0.05) is None
    some = {**judged, "0": None}  # in both seeds
    assert least_difference(Comparison([some, some], [none, none], rates=True), 0.05) is not None


def test_the_draws_are_of_one_seed_and_know_the_power_to_a_third_of_a_point() -> None:
    spread = Spread(0.0004, 0.0009, 99, 4)
    rng = np.random.default_rng(statistics.SEED)
    drawn = redrawn(spread, rng.standard_normal(detectable.DRAWS), rng)
    found = over_seeds(spread, 0.05) + drawn.deviation > drawn.margin(0.05)
    assert found.mean() == pytest.approx(0.8, abs=2 / detectable.DRAWS)
    assert math.sqrt(0.8 * 0.2 / detectable.DRAWS) == pytest.approx(0.0031, abs=0.0001)


def test_redrawn_effects_are_added() -> None:
    rng, other = np.random.default_rng(8), np.random.default_rng(8)
    found = redrawn(Spread(0.0004, 0.0009, 99, 4), np.ones(10), rng).deviation
    assert found == pytest.approx(0.02 + 0.03 * other.standard_normal(10))


def test_a_difference_of_more_than_everything_is_none() -> None:
    table = np.array([[1.0], [-1.0], [1.0], [-1.0], [1.0], [-1.0]])
    found = of_means(float(table.std(ddof=1)), 6, 0.05)
    assert found is not None
    assert 1 < found < 2
    assert least_difference(comparison(table, rates=False), 0.05) is None


def test_differences_that_are_equal_but_for_rounding_find_almost_anything() -> None:
    values = {str(i): 0.1 * i / 3 + 0.3 for i in range(20)}
    baseline = {str(i): 0.1 * i / 3 for i in range(20)}
    found = least_difference(Comparison([values], [baseline], rates=False), 0.05)
    assert found is not None
    assert 0 <= found < 1e-5


def test_a_spread_of_nothing_over_seeds_tells_nothing() -> None:
    table = np.zeros((100, 3))
    table[[0, 1, 2], [0, 1, 2]] = -1  # the seeds' means are the same, and so are the documents'
    assert crossed_spread(table, rates=False).variance == 0
    assert least_difference(comparison(table, rates=False), 0.05) is None
    rng = np.random.default_rng(9)
    none = redrawn(Spread(0.0, 0.0, 99, 2), rng.standard_normal(10), rng)
    assert none.deviation.tolist() == none.margin(0.05).tolist() == [0.0] * 10


def test_equal_seeds_find_what_one_of_them_finds() -> None:
    same = np.zeros((330, 3))
    assert least_difference(comparison(same, rates=True), 0.05) == of_rates(0, 330, 0.05)
    assert least_difference(comparison(same, rates=False), 0.05) is None  # no spread to tell by


def test_what_tells_no_spread_has_none() -> None:
    assert least_difference(Comparison([{}], [{}], rates=True), 0.05) is None
    assert least_difference(Comparison([{"a": 1.0}], [{"a": 0.5}], rates=False), 0.05) is None
    assert least_difference(comparison(np.full((20, 1), 0.3), rates=False), 0.05) is None
    assert least_difference(comparison(np.array([[1.0, 0.0]]), rates=True), 0.05) is None  # one document


def test_where_the_permutation_test_has_no_p_so_small_no_mean_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = np.random.default_rng(6).normal(0, 0.1, (5, 1))  # its smallest p is 2 / 32
    assert least_difference(comparison(few, rates=False), 0.05) is None
    assert least_difference(comparison(few, rates=False), 0.07) is not None
    pair = np.array([[0.1], [0.3]])  # 2 / 4
    assert least_difference(comparison(pair, rates=False), 0.49) is None
    assert of_means(0.1, 2, 0.5) is not None
    many = np.random.default_rng(6).normal(0, 0.01, (60, 1))
    monkeypatch.setattr(detectable, "RESAMPLES", 9)  # 2 / 10
    assert least_difference(comparison(many, rates=False), 0.19) is None
    assert least_difference(comparison(many, rates=False), 0.2) is not None
    assert least_difference(comparison(many, rates=False), 0.21) is not None
